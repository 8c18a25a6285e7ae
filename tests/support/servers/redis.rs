//! A throwaway Redis, and a fake one with scripted answers.

use std::{
    env,
    net::SocketAddr,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use redis::{Cmd, Connection, FromRedisValue, cmd};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::Instant,
};

use super::Port;

const HELP: &str = "The tests need Redis. Install it (for instance `apt-get install \
    redis-server`), or run the tests through `tests/run`";
const PATIENCE: Duration = Duration::from_secs(20);

/// A server on a port of its own, which keeps its data across an orderly stop.
pub struct Redis {
    port: Port,
    /// For the cluster bus: its default, 10,000 above, may not exist.
    bus: Port,
    folder: TempDir,
    settings: Vec<String>,
    running: Mutex<Option<Child>>,
}

impl Redis {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// With more settings, such as `["--cluster-enabled", "yes"]`.
    pub fn start_with(settings: &[&str]) -> Self {
        let redis = Self {
            port: Port::reserve(),
            bus: Port::reserve(),
            folder: tempfile::tempdir().expect("a temporary folder"),
            settings: settings.iter().map(|&setting| setting.into()).collect(),
            running: Mutex::new(None),
        };
        redis.start_again();
        redis
    }

    pub fn addr(&self) -> SocketAddr {
        self.port.addr
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.addr())
    }

    pub fn socket_url(&self) -> String {
        format!("unix://{}", self.folder.path().join("socket").display())
    }

    /// Runs a command and returns the answer.
    pub fn ask<T: FromRedisValue>(&self, command: &Cmd) -> T {
        command.query(&mut self.connect().expect("the Redis of this test")).expect("an answer")
    }

    /// Runs a command that must succeed: `"CONFIG SET maxmemory 1"`.
    pub fn tell(&self, command: &str) {
        let mut words = command.split(' ');
        let mut command = cmd(words.next().unwrap());
        words.for_each(|word| {
            command.arg(word);
        });
        self.ask::<redis::Value>(&command);
    }

    pub fn keys(&self) -> Vec<String> {
        let mut keys: Vec<String> = self.ask(cmd("KEYS").arg("*"));
        keys.sort();
        keys
    }

    /// How many times a script was run.
    pub fn scripts_run(&self) -> u64 {
        let stats: String = self.ask(cmd("INFO").arg("commandstats"));
        let line = stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
        line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
    }

    /// Kills it, like `kill -9`.
    pub fn kill(&self) {
        if let Some(mut running) =
            self.running.lock().unwrap_or_else(PoisonError::into_inner).take()
        {
            drop(running.stdin.take());
            running.wait().unwrap();
        }
    }

    /// Saves its data and stops it.
    pub fn stop(&self) {
        self.tell("SAVE");
        self.kill();
    }

    pub fn start_again(&self) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let child = self.command().spawn().expect("running a shell");
        *running = Some(child);
        let begun = Instant::now();
        let is_up = || match self.connect().and_then(|mut redis| cmd("PING").exec(&mut redis)) {
            Ok(()) => true,
            // It requires a password.
            Err(error) => error.code() == Some("NOAUTH"),
        };
        while !is_up() {
            assert!(begun.elapsed() < PATIENCE, "Redis did not start. {HELP}");
            std::thread::yield_now();
        }
    }

    /// Freezes or resumes it: `STOP`, `CONT`.
    pub fn signal(&self, signal: &str) {
        let pid = std::fs::read_to_string(self.folder.path().join("pid")).expect("Redis' pid");
        let status = Command::new("kill").arg(format!("-{signal}")).arg(pid.trim()).status();
        assert!(status.expect("kill").success());
    }

    fn connect(&self) -> redis::RedisResult<Connection> {
        redis::Client::open(self.url())?.get_connection_with_timeout(PATIENCE)
    }

    /// Redis ends when this process ends for any reason: the shell reads a pipe that only this
    /// process holds open.
    fn command(&self) -> Command {
        let mut shell = Command::new("/bin/sh");
        let script = r#"program=$1; shift; "$program" "$@" & cat; kill -KILL $!; wait"#;
        shell.args(["-c", script, "sh"]).arg(program());
        shell.args(["--bind", "127.0.0.1", "--port", &self.addr().port().to_string()]);
        shell.args(["--cluster-port", &self.bus.addr.port().to_string()]);
        let file = |name| self.folder.path().join(name);
        shell.arg("--dir").arg(self.folder.path()).arg("--pidfile").arg(file("pid"));
        shell.arg("--unixsocket").arg(file("socket"));
        shell.args(["--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction"]);
        shell.args(&self.settings);
        shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        shell.process_group(0);
        shell
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

fn program() -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/sbin".into()]);
    let names = ["redis-server", "valkey-server"];
    let mut programs = folders.flat_map(|folder| names.map(|name| folder.join(name)));
    programs.find(|program| program.is_file()).unwrap_or_else(|| panic!("{HELP}"))
}

/// A text that selects commands, and the answer to them.
type Said = (&'static str, &'static str);

/// A proxy for Redis that forwards its answers, or replaces them.
pub struct Impostor {
    addr: SocketAddr,
    says: watch::Sender<Option<Said>>,
    _connections: JoinSet<()>,
}

impl Impostor {
    pub async fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().unwrap();
        let (says, answer) = watch::channel(None);
        let mut connections = JoinSet::new();
        connections.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let answer = answer.clone();
                open.spawn(async move {
                    let _ = front(client, upstream, &answer).await;
                });
            }
        });
        Self { addr, says, _connections: connections }
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.addr)
    }

    /// The answer to every command, such as `-LOADING ...`, without the end of the line; `None`
    /// forwards the answers of Redis.
    pub fn say(&self, answer: Option<&'static str>) {
        self.says.send_replace(answer.map(|answer| ("", answer)));
    }

    /// Answers this to commands that contain the text, and forwards the others.
    pub fn say_to(&self, text: &'static str, answer: &'static str) {
        self.says.send_replace(Some((text, answer)));
    }
}

async fn front(
    client: TcpStream,
    upstream: SocketAddr,
    answer: &watch::Receiver<Option<Said>>,
) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    let server = TcpStream::connect(upstream).await?;
    server.set_nodelay(true)?;
    let (from_client, mut to_client) = client.into_split();
    let (from_server, mut to_server) = server.into_split();
    let (mut from_client, mut from_server) =
        (BufReader::new(from_client), BufReader::new(from_server));
    loop {
        // A command has the format of an answer.
        let command = message(&mut from_client).await?;
        let said = *answer.borrow();
        let is_meant = |text: &str| String::from_utf8_lossy(&command).contains(text);
        match said.filter(|(text, _)| is_meant(text)) {
            Some((_, said)) => to_client.write_all(format!("{said}\r\n").as_bytes()).await?,
            None => {
                to_server.write_all(&command).await?;
                let answer = message(&mut from_server).await?;
                to_client.write_all(&answer).await?;
            }
        }
    }
}

/// One message of the protocol, unparsed.
async fn message(from: &mut (impl AsyncBufReadExt + Unpin)) -> std::io::Result<Vec<u8>> {
    let mut whole = Vec::new();
    let mut parts = 1_i64;
    while parts > 0 {
        parts -= 1;
        let begin = whole.len();
        if from.read_until(b'\n', &mut whole).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let line = String::from_utf8_lossy(&whole[begin..]).trim_end().to_owned();
        match line.split_at(1) {
            ("*", count) => parts += count.parse::<i64>().unwrap().max(0),
            ("$", len) => {
                if let Ok(len) = len.parse::<usize>() {
                    let begin = whole.len();
                    whole.resize(begin + len + 2, 0);
                    from.read_exact(&mut whole[begin..]).await?;
                }
            }
            _ => {}
        }
    }
    Ok(whole)
}
