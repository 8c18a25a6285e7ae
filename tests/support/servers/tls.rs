//! Certificates for tests, made by `openssl`.

use std::{fs, path::PathBuf, process::Command};

use tempfile::TempDir;

/// A certificate authority, trusted only by clients that name its file.
pub struct Authority {
    folder: TempDir,
}

/// A certificate and its key, as PEM.
pub struct Certificate {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    pub fn new() -> Self {
        let this = Self { folder: tempfile::tempdir().expect("a temporary folder") };
        this.openssl(
            "req -x509 -newkey rsa:2048 -nodes -keyout authority.key -out authority.pem -days 2 \
             -subj /CN=authority",
        );
        this
    }

    /// The file for `sslrootcert`.
    pub fn file(&self) -> PathBuf {
        self.folder.path().join("authority.pem")
    }

    /// A certificate for the host of this name.
    pub fn certificate(&self, name: &str) -> Certificate {
        self.openssl(&format!(
            "req -newkey rsa:2048 -nodes -keyout key.pem -out request.pem -subj /CN=server \
             -addext subjectAltName=DNS:{name}"
        ));
        self.openssl(
            "x509 -req -in request.pem -CA authority.pem -CAkey authority.key -CAcreateserial \
             -days 2 -copy_extensions copy -out certificate.pem",
        );
        let read = |name| fs::read_to_string(self.folder.path().join(name)).expect("a file");
        Certificate { certificate: read("certificate.pem"), key: read("key.pem") }
    }

    fn openssl(&self, arguments: &str) {
        let mut command = Command::new("openssl");
        command.args(arguments.split_whitespace()).current_dir(self.folder.path());
        let output = command.output();
        let output = output.expect("openssl: install it, or run the tests through `tests/run`");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
