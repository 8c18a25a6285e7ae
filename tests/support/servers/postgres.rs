//! PostgreSQL for tests: the server of `DATABASE_URL`, or a throwaway one.

use std::{
    env, fs,
    io::{self, Write as _},
    net::{SocketAddr, ToSocketAddrs},
    os::unix::{
        fs::{PermissionsExt as _, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool, postgres::PgPoolOptions, raw_sql};

use super::{Port, tls::Certificate, unique};

const HELP: &str = "The tests need the programs of a PostgreSQL server (13 or later). Install them \
    (for instance `apt-get install postgresql`), put them on PATH, run the tests through \
    `tests/run`, or name a running server whose role may create databases: \
    DATABASE_URL=postgres://user:password@host/postgres";

/// A PostgreSQL server.
pub struct Server {
    url: String,
    throwaway: Option<Throwaway>,
}

impl Server {
    /// The server of `DATABASE_URL`, or one throwaway server for all tests of this process.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Server> = OnceLock::new();
        SHARED.get_or_init(|| match env::var("DATABASE_URL") {
            Ok(url) if url.starts_with("postgres") => Self { url, throwaway: None },
            _ => Self::start(),
        })
    }

    /// A throwaway server for one test, which may stop it.
    pub fn start() -> Self {
        Self::of(Throwaway::start(), "")
    }

    /// The same; its URL requires TLS.
    pub fn start_with_tls() -> Self {
        Self::of(Throwaway::start_with_tls(), "?sslmode=require")
    }

    /// The same with this certificate. Its URL does not require TLS.
    pub fn start_with_certificate(certificate: &Certificate) -> Self {
        Self::of(Throwaway::start_with_certificate(certificate), "")
    }

    /// A hot standby that follows this throwaway server.
    pub fn standby(&self) -> Self {
        let primary = self.throwaway.as_ref().expect("only a `Server::start()` has standbys");
        Self::of(Throwaway::standby(primary), "")
    }

    fn of(throwaway: Throwaway, query: &str) -> Self {
        let url = format!("postgres://postgres@{}/postgres{query}", throwaway.port.addr);
        Self { url, throwaway: Some(throwaway) }
    }

    /// A new, empty database. Dropping the value drops the database.
    pub async fn database(&self) -> Database {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("test_{}_{count}_{:016x}", process::id(), unique());
        // Connections to the template would fail the statement; template0 allows none.
        let create = format!("CREATE DATABASE {name} TEMPLATE template0");
        if let Err(error) = execute(&self.url, create).await {
            panic!("creating a database for a test: {error}\n{HELP}");
        }
        Database { url: self.url(&name), server_url: self.url.clone(), name }
    }

    /// The URL of a database of this server.
    pub fn url(&self, database: &str) -> String {
        let (scheme, rest) = self.url.split_once("://").expect("a URL");
        let (address, query) = rest.split_at(rest.find('?').unwrap_or(rest.len()));
        let authority = address.split('/').next().unwrap_or_default();
        format!("{scheme}://{authority}/{database}{query}")
    }

    /// User and password from the URL, empty if absent.
    pub(super) fn user(&self) -> (&str, &str) {
        let (_, rest) = self.url.split_once("://").expect("a URL");
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        let user = authority.rsplit_once('@').map_or("postgres", |(user, _)| user);
        user.split_once(':').unwrap_or((user, ""))
    }

    /// The address of this server, for a proxy.
    pub fn addr(&self) -> SocketAddr {
        let (_, rest) = self.url.split_once("://").expect("a URL");
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        let host = authority.rsplit('@').next().unwrap_or_default();
        let found = (host.to_socket_addrs()).or_else(|_| (host, 5432).to_socket_addrs());
        let addr = found.ok().and_then(|mut addrs| addrs.next());
        addr.unwrap_or_else(|| panic!("DATABASE_URL must name a host that TCP reaches: {host:?}"))
    }

    /// Stops the server without notice to its clients, like a crash.
    pub async fn stop_immediate(&self) {
        self.pg_ctl(&["stop", "--mode=immediate"]).await;
    }

    /// Starts a stopped server again: same port, same data.
    pub async fn start_again(&self) {
        self.pg_ctl(&["start"]).await;
    }

    /// Promotes this standby to primary. On return it accepts changes.
    pub async fn promote(&self) {
        self.pg_ctl(&["promote"]).await;
    }

    async fn pg_ctl(&self, arguments: &[&str]) {
        let throwaway = self.throwaway.as_ref().expect("only a `Server::start()` may be stopped");
        let output = tokio::process::Command::from(throwaway.pg_ctl(arguments)).output().await;
        throwaway.succeeded(output);
    }
}

/// A client program of PostgreSQL, such as `pg_dump`, of the same version as throwaway servers.
pub fn client(name: &str) -> Command {
    let mut command = Command::new(programs().unwrap_or_else(|| panic!("{HELP}")).join(name));
    command.env("LC_ALL", "C");
    command
}

/// A database of one test.
pub struct Database {
    name: String,
    url: String,
    server_url: String,
}

impl Database {
    pub fn url(&self) -> &str {
        &self.url
    }

    pub async fn pool(&self) -> PgPool {
        let options = PgPoolOptions::new().max_connections(10);
        options.connect(&self.url).await.expect("a pool for the test's database")
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let (url, name) = (self.server_url.clone(), self.name.clone());
        // A runtime cannot be entered twice on one thread. Failing to drop the database is no
        // failure: its server may be stopped by now.
        let dropped = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let drop = execute(&url, format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"));
            let patience = Duration::from_secs(10);
            runtime.map(|runtime| {
                runtime.block_on(async { tokio::time::timeout(patience, drop).await })
            })
        });
        let _ = dropped.join();
    }
}

async fn execute(url: &str, sql: String) -> sqlx::Result<()> {
    let mut connection = PgConnection::connect(url).await?;
    raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await?;
    connection.close().await
}

/// A server in a temporary folder.
struct Throwaway {
    port: Port,
    folder: PathBuf,
    programs: PathBuf,
    user: Option<User>,
    watcher: Child,
}

/// The user for PostgreSQL and PgBouncer when the tests run as root: both refuse to run as root.
#[derive(Clone, Copy)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Throwaway {
    fn start() -> Self {
        let server = Self::empty();
        server.serve();
        server
    }

    fn start_with_tls() -> Self {
        let server = Self::empty();
        let certificate = program(Path::new(""), "openssl", &server.data(), server.user)
            .args(["req", "-x509", "-nodes", "-newkey", "rsa:2048", "-subj", "/CN=localhost"])
            .args(["-keyout", "server.key", "-out", "server.crt"])
            .output();
        server.succeeded(certificate);
        server.serve();
        server
    }

    fn start_with_certificate(certificate: &Certificate) -> Self {
        let server = Self::empty();
        for (name, text) in
            [("server.crt", &certificate.certificate), ("server.key", &certificate.key)]
        {
            let file = server.data().join(name);
            fs::write(&file, text).expect("a file for PostgreSQL");
            // PostgreSQL refuses a key that other users may read.
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("its rights");
            if let Some(User { uid, gid }) = server.user {
                chown(&file, Some(uid), Some(gid)).expect("giving the file to PostgreSQL's user");
            }
        }
        server.serve();
        server
    }

    fn empty() -> Self {
        let server = Self::prepare();
        let initdb = server
            .program("initdb")
            .args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C"])
            .args(["--no-sync", "--no-instructions", "--pgdata"])
            .arg(server.data())
            .output();
        server.succeeded(initdb);
        server
    }

    fn standby(primary: &Self) -> Self {
        let server = Self::prepare();
        let backup = server
            .program("pg_basebackup")
            .args(["--username=postgres", "--host=127.0.0.1", "--checkpoint=fast", "--no-sync"])
            .args(["--write-recovery-conf", &format!("--port={}", primary.port.addr.port())])
            .arg("--pgdata")
            .arg(server.data())
            .output();
        server.succeeded(backup);
        server.serve();
        server
    }

    fn prepare() -> Self {
        let programs = programs().unwrap_or_else(|| panic!("{HELP}"));
        let user = User::unless_unprivileged();
        let folder = tempfile::Builder::new().prefix("tower-api-key-").tempdir();
        let folder = folder.expect("a temporary folder").keep();
        if let Some(User { uid, gid }) = user {
            chown(&folder, Some(uid), Some(gid)).expect("giving the folder to PostgreSQL's user");
        }
        let watcher = watch(&folder, &programs, user).expect("the watcher of the server");
        Self { port: Port::reserve(), folder, programs, user, watcher }
    }

    fn serve(&self) {
        // The data need not survive a crash of the machine. It must survive a crash of the server,
        // so commits stay synchronous. The last of two settings wins: a base backup brings some.
        let settings = format!(
            "listen_addresses = '127.0.0.1'\n\
             port = {}\n\
             unix_socket_directories = '{}'\n\
             max_connections = 300\n\
             fsync = off\n\
             full_page_writes = off\n\
             max_wal_size = 64MB\n\
             ssl = {}\n",
            self.port.addr.port(),
            self.folder.display(),
            self.data().join("server.crt").is_file(),
        );
        let file = self.data().join("postgresql.auto.conf");
        let file = fs::OpenOptions::new().append(true).open(file);
        let written = file.and_then(|mut file| file.write_all(settings.as_bytes()));
        written.expect("the server's settings");
        self.succeeded(self.pg_ctl(&["start"]).output());
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    fn program(&self, name: &str) -> Command {
        program(&self.programs, name, &self.folder, self.user)
    }

    /// `pg_ctl` returns when the server responds, or has ended.
    fn pg_ctl(&self, arguments: &[&str]) -> Command {
        let mut command = self.program("pg_ctl");
        command.args(arguments).args(["--wait", "--timeout=30"]);
        command.arg("--pgdata").arg(self.data()).arg("--log").arg(self.log());
        command
    }

    fn succeeded(&self, output: io::Result<process::Output>) {
        let output = output.expect("running PostgreSQL's programs, and openssl");
        assert!(
            output.status.success(),
            "PostgreSQL: {}{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
            fs::read_to_string(self.log()).unwrap_or_default(),
        );
    }
}

impl Drop for Throwaway {
    fn drop(&mut self) {
        drop(self.watcher.stdin.take());
        let _ = self.watcher.wait();
    }
}

/// Stops the server and removes its folder as soon as this process has ended for any reason:
/// statics are not dropped, and nothing is dropped when a process is killed.
///
/// The watcher reads a pipe that only this process holds open. It has a process group of its own,
/// so that an interrupt from the keyboard does not reach it.
fn watch(folder: &Path, programs: &Path, user: Option<User>) -> io::Result<Child> {
    let script = r#"
        cat
        "$1" stop --silent --mode=immediate --pgdata "$2/data"
        # What an orphaned initdb still writes is in the way.
        for attempt in 1 2 3 4 5; do rm -rf "$2" && break; sleep 1; done
    "#;
    let mut watcher = program(Path::new("/bin"), "sh", folder, user);
    watcher.args(["-c", script, "sh"]).arg(programs.join("pg_ctl")).arg(folder);
    watcher.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    watcher.process_group(0).spawn()
}

fn program(programs: &Path, name: &str, folder: &Path, user: Option<User>) -> Command {
    let mut command = Command::new(programs.join(name));
    // PostgreSQL's user may not be able to read the folder of the tests.
    command.current_dir(folder).env_remove("PGDATA").env("LC_ALL", "C");
    if let Some(User { uid, gid }) = user {
        command.uid(uid).gid(gid);
    }
    command
}

impl User {
    pub(super) fn unless_unprivileged() -> Option<Self> {
        let id = |arguments: &[&str]| {
            let output = Command::new("id").args(arguments).output().ok()?;
            String::from_utf8(output.stdout).ok()?.trim().parse().ok()
        };
        if id(&["-u"]) != Some(0) {
            return None;
        }
        let user = |name| Some(Self { uid: id(&["-u", name])?, gid: id(&["-g", name])? });
        let user = user("postgres").or_else(|| user("nobody"));
        Some(
            user.expect("PostgreSQL does not run as root, and there is no user postgres or nobody"),
        )
    }
}

/// The folder of the newest PostgreSQL whose server programs are installed.
fn programs() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path).collect::<Vec<_>>();
    let configured = Command::new("pg_config").arg("--bindir").output().ok();
    let configured =
        configured.map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    let mut debian: Vec<_> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|version| {
            let folder = version.ok()?.path();
            let number: u32 = folder.file_name()?.to_str()?.parse().ok()?;
            Some((number, folder.join("bin")))
        })
        .collect();
    debian.sort();

    let newest_first = debian.into_iter().rev().map(|(_, folder)| folder);
    on_path.into_iter().chain(configured).chain(newest_first).find(|folder| {
        ["initdb", "pg_basebackup", "pg_ctl", "postgres"]
            .iter()
            .all(|name| folder.join(name).is_file())
    })
}
