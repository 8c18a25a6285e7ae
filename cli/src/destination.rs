//! Where a new key is written, once.

use std::{
    fs::{File, OpenOptions, remove_file},
    io::{self, Seek as _, Write as _},
    path::{Path, PathBuf},
};

use clap::Args;
use serde_json::{Value, json};
use tower_api_key::{
    key::ApiKey,
    record::{KeyId, KeyRecord},
};

use super::{failure::Failure, output};

#[derive(Args, Debug)]
pub(crate) struct Out {
    /// Write the key to this new file, readable only by you, instead of to standard output
    ///
    /// With --json the whole answer goes there. The file is created before the key: if it exists or
    /// cannot be created, no key is issued.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Written to the file beforehand, so that a full disk is noticed before a key is issued. Answers
/// are rarely longer.
const ROOM: &[u8] = &[b'\n'; 32 * 1024];

/// A destination that was checked to be writable.
pub(crate) enum Destination {
    Stdout,
    File(File, PathBuf),
}

impl Out {
    /// Checks or creates the destination before a key is issued.
    pub(crate) fn prepare(&self) -> Result<Destination, Failure> {
        let Some(path) = &self.out else {
            if leads_nowhere() {
                let problem = "no key was issued: standard output is closed or /dev/null, where \
                    the key would be lost. Leave it open, or give --out FILE";
                return Err(Failure::new(problem));
            }
            return Ok(Destination::Stdout);
        };
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(path).map_err(|error| {
            let failure = Failure::new(format!("--out {}", path.display())).because(&error);
            failure
                .advise("No key was issued; name a file that does not exist, in a folder that does")
        })?;
        let reserved = file.write_all(ROOM).and_then(|()| file.sync_all());
        if let Err(error) = reserved {
            discard(path);
            let failure = Failure::new(format!("--out {}", path.display())).because(&error);
            return Err(failure.advise("No key was issued"));
        }
        Ok(Destination::File(file, path.clone()))
    }
}

impl Destination {
    /// Writes the key. `answer` is the whole answer in JSON, without the key.
    pub(crate) fn hand_over(
        self,
        key: &ApiKey,
        record: &KeyRecord,
        answer: Option<Value>,
    ) -> Result<(), Failure> {
        let written = match answer {
            Some(mut answer) => {
                output::set(&mut answer, "key", json!(key.expose_secret()));
                self.write(&answer.to_string())
            }
            None => self.write(key.expose_secret()),
        };
        written.map_err(|error| lost(record.id, &error))
    }

    fn write(self, line: &str) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut stdout = io::stdout().lock();
                writeln!(stdout, "{line}")?;
                stdout.flush()
            }
            Self::File(mut file, _) => {
                file.rewind()?;
                writeln!(file, "{line}")?;
                let end = file.stream_position()?;
                file.set_len(end)?;
                file.sync_all()
            }
        }
    }

    /// Removes the file: no key was issued.
    pub(crate) fn abandon(self) {
        if let Self::File(_, path) = self {
            discard(&path);
        }
    }
}

fn discard(path: &Path) {
    // If the file stays, the next attempt reports that it exists.
    let _ = remove_file(path);
}

fn lost(id: KeyId, error: &io::Error) -> Failure {
    let problem = format!("key {id} was issued, but could not be written");
    let advice = format!("The key is lost: run `api-key revoke {id}` and issue another one");
    Failure::new(problem).because(error).advise(&advice)
}

/// Whether standard output is `/dev/null`. Rust opens it in place of a closed stream at start.
#[cfg(unix)]
fn leads_nowhere() -> bool {
    use std::os::{fd::AsFd as _, unix::fs::MetadataExt as _};

    let stdout = io::stdout().as_fd().try_clone_to_owned();
    let stdout = stdout.and_then(|stdout| File::from(stdout).metadata());
    let Ok(null) = std::fs::metadata("/dev/null") else { return false };
    stdout.is_ok_and(|stdout| stdout.rdev() == null.rdev())
}

#[cfg(not(unix))]
fn leads_nowhere() -> bool {
    false
}
