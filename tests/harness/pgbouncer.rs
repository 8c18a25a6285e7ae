//! PgBouncer for tests.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use tempfile::TempDir;

use super::{
    Port,
    postgres::{Server, User},
};

const HELP: &str = "The tests need PgBouncer. Install it (for instance `apt-get install \
    pgbouncer`), or run the tests through `tests/run`";

/// Longer than PgBouncer takes for its next line while it starts.
const PATIENCE: Duration = Duration::from_secs(20);

/// PgBouncer, which hands its connections to the server round among its clients.
pub struct PgBouncer {
    port: Port,
    _folder: TempDir,
    running: Child,
}

impl PgBouncer {
    /// In this mode (`session`, `transaction`), with so many connections to the server.
    pub fn start(server: &Server, mode: &str, connections: u32) -> Self {
        let (folder, port) = (tempfile::tempdir().expect("a temporary folder"), Port::reserve());
        let settings = folder.path().join("pgbouncer.ini");
        let (user, password) = server.user();
        let password = if password.is_empty() { "" } else { &format!("password={password}") };
        let (upstream, own) = (server.addr(), port.addr);
        let text = format!(
            "[databases]\n\
             * = host={} port={} user={user} {password}\n\
             [pgbouncer]\n\
             listen_addr = {}\n\
             listen_port = {}\n\
             unix_socket_dir =\n\
             auth_type = any\n\
             pool_mode = {mode}\n\
             default_pool_size = {connections}\n\
             ignore_startup_parameters = extra_float_digits\n",
            upstream.ip(),
            upstream.port(),
            own.ip(),
            own.port(),
        );
        fs::write(&settings, text).expect("PgBouncer's settings");
        let mut running = run(&settings).spawn().expect("running a shell");
        let said = BufReader::new(running.stderr.take().expect("a pipe"));
        let (sender, lines) = mpsc::channel();
        // It is read to the end: a full pipe would hold PgBouncer up.
        thread::spawn(move || {
            for line in said.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let mut before = String::new();
        while !before.contains("process up") {
            let Ok(line) = lines.recv_timeout(PATIENCE) else {
                panic!("PgBouncer did not start: {before}{HELP}")
            };
            before = before + &line + "\n";
        }
        Self { port, _folder: folder, running }
    }

    /// The same database, reached through PgBouncer.
    pub fn url(&self, database_url: &str) -> String {
        let path = database_url.rsplit_once('/').expect("a URL of a database").1;
        format!("postgres://anybody@{}/{path}", self.port.addr)
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        drop(self.running.stdin.take());
        let _ = self.running.wait();
    }
}

/// It ends with this process, however that ends: the shell reads a pipe that only this process
/// holds open.
fn run(settings: &Path) -> Command {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", r#""$1" "$2" & cat; kill -KILL $!"#, "sh"]).arg(program()).arg(settings);
    shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    if let Some(User { uid, gid }) = User::unless_unprivileged() {
        for path in settings.ancestors().take(2) {
            chown(path, Some(uid), Some(gid)).expect("giving the folder to PgBouncer's user");
        }
        shell.uid(uid).gid(gid).current_dir("/");
    }
    shell.process_group(0);
    shell
}

fn program() -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/sbin".into()]);
    let mut programs = folders.map(|folder| folder.join("pgbouncer"));
    programs.find(|program| program.is_file()).unwrap_or_else(|| panic!("{HELP}"))
}
