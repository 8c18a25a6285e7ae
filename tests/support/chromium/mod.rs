//! Chromium without a window, with a profile of its own.

use std::{
    env, fs,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use tempfile::TempDir;
use tokio::time::Instant;

const HELP: &str = "The tests need Chromium or Google Chrome, as `chromium` or `google-chrome` on the \
    PATH. Install it (on Debian `apt-get install chromium`), or run the tests through `tests/run`";

/// How long the processes of a browser that was killed may take to let go of its files.
const PATIENCE: Duration = Duration::from_secs(10);

/// A browser, which ends when this is dropped.
pub(crate) struct Chromium {
    /// Its profile, log and temporary files.
    folder: TempDir,
    running: Child,
}

impl Chromium {
    /// Opens `url`.
    ///
    /// The browser ends when this process ends for any reason: the shell reads a pipe that only this
    /// process holds open, and then ends its group, to which all processes of the browser belong.
    pub(crate) fn open(url: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let log = fs::File::create(folder.path().join("log")).expect("a log");
        let mut shell = Command::new("/bin/sh");
        let script = r#"program=$1; shift; "$program" "$@" </dev/null & cat; kill -KILL 0"#;
        shell.args(["-c", script, "sh"]).arg(program());
        // In a container, there is no sandbox, no graphics card, and little shared memory.
        shell.args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]);
        shell.args(["--no-first-run", "--disable-background-networking", "--disable-breakpad"]);
        shell.arg(format!("--user-data-dir={}", folder.path().join("profile").display()));
        shell.arg(url).env("TMPDIR", folder.path());
        shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log).process_group(0);
        let running = shell.spawn().expect("running a shell");
        Self { folder, running }
    }

    /// What the browser has said on its standard error.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        drop(self.running.stdin.take());
        let _ = self.running.wait();
        let begun = Instant::now();
        while fs::remove_dir_all(self.folder.path()).is_err() && self.folder.path().exists() {
            if begun.elapsed() > PATIENCE {
                return;
            }
            thread::yield_now();
        }
    }
}

fn program() -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let names = ["chromium", "google-chrome"];
    let mut programs = env::split_paths(&path).flat_map(|folder| names.map(|it| folder.join(it)));
    programs.find(|program| program.is_file()).unwrap_or_else(|| panic!("{HELP}"))
}
