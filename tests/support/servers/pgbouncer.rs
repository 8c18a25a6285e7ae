//! PgBouncer for tests.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
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
/// The path of PgBouncer 1.21 or later, unless it is the one on `PATH`.
const PROGRAM: &str = "PGBOUNCER";

/// Longer than PgBouncer takes for its next line while it starts.
const PATIENCE: Duration = Duration::from_secs(20);

/// PgBouncer, which shares its server connections among its clients.
pub struct PgBouncer {
    port: Port,
    _folder: TempDir,
    running: Child,
}

impl PgBouncer {
    /// Starts in this mode (`session`, `transaction`), with this many connections to the server.
    pub fn start(server: &Server, mode: &str, connections: u32) -> Self {
        let settings = format!("pool_mode = {mode}\ndefault_pool_size = {connections}\n");
        Self::with(&program(), server, &settings)
    }

    /// Starts in transaction mode, a version that supports prepared statements: 1.21 or later.
    pub fn start_with_prepared_statements(server: &Server, connections: u32) -> Self {
        let program = env::var_os(PROGRAM).map_or_else(program, PathBuf::from);
        let version = version(&program);
        assert!(
            version >= (1, 21),
            "{} is PgBouncer {version:?}, and the test needs 1.21 or later: run it through \
             `tests/run`, or name another program in {PROGRAM}",
            program.display()
        );
        let settings = format!(
            "pool_mode = transaction\ndefault_pool_size = {connections}\n\
             max_prepared_statements = 100\n"
        );
        Self::with(&program, server, &settings)
    }

    fn with(program: &Path, server: &Server, more_settings: &str) -> Self {
        let (folder, port) = (tempfile::tempdir().expect("a temporary folder"), Port::reserve());
        let settings = folder.path().join("pgbouncer.ini");
        let (user, password) = server.user();
        let password = if password.is_empty() { "" } else { &format!("password={password}") };
        // PgBouncer refuses to run as root.
        let run_as = if User::unless_unprivileged().is_some() { "user = nobody\n" } else { "" };
        let (upstream, own) = (server.addr(), port.addr);
        let text = format!(
            "[databases]\n\
             * = host={} port={} user={user} {password}\n\
             [pgbouncer]\n\
             listen_addr = {}\n\
             listen_port = {}\n\
             unix_socket_dir =\n\
             auth_type = any\n\
             {run_as}{more_settings}\
             ignore_startup_parameters = extra_float_digits\n",
            upstream.ip(),
            upstream.port(),
            own.ip(),
            own.port(),
        );
        fs::write(&settings, text).expect("PgBouncer's settings");
        let mut running = run(program, &settings).spawn().expect("running a shell");
        let said = BufReader::new(running.stderr.take().expect("a pipe"));
        let (sender, lines) = mpsc::channel();
        // Read to the end: a full pipe would block PgBouncer.
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

/// PgBouncer ends when this process ends for any reason: the shell reads a pipe that only this
/// process holds open.
fn run(program: &Path, settings: &Path) -> Command {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", r#""$1" "$2" & cat; kill -KILL $!"#, "sh"]).arg(program).arg(settings);
    shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    shell.process_group(0);
    shell
}

fn program() -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/sbin".into()]);
    let mut programs = folders.map(|folder| folder.join("pgbouncer"));
    programs.find(|program| program.is_file()).unwrap_or_else(|| panic!("{HELP}"))
}

/// Major and minor version, from a line such as `PgBouncer 1.24.1`.
fn version(program: &Path) -> (u32, u32) {
    let said = Command::new(program).arg("--version").output().expect("running PgBouncer");
    let said = String::from_utf8_lossy(&said.stdout);
    let version = said.lines().next().and_then(|line| line.strip_prefix("PgBouncer "));
    let mut numbers = version.unwrap_or_default().split('.').map_while(|part| part.parse().ok());
    let version = numbers.next().zip(numbers.next());
    version.unwrap_or_else(|| panic!("no version of PgBouncer: {said}"))
}
