//! An attacker in a process of its own: 64 connections that never pause, with a valid key or with
//! made-up keys.

use std::{
    env,
    io::{BufRead as _, Write as _, stdin, stdout},
    net::SocketAddr,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::body::Body;
use http::{Request, header};
use http_body_util::BodyExt as _;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    process::{Child, ChildStdout, Command},
};

use tower_api_key::key::KeyFormat;

use crate::{
    Result,
    setting::{PREFIX, Setting},
};

const CONNECTIONS: usize = 64;

#[derive(Clone, Copy)]
pub(crate) enum Attack {
    Listings,
    LockedRows,
    Denials,
    Rotations,
    SlowReads,
    UnknownKeys,
}

impl Attack {
    pub(crate) const ALL: [Self; 6] = [
        Self::Listings,
        Self::LockedRows,
        Self::Denials,
        Self::Rotations,
        Self::SlowReads,
        Self::UnknownKeys,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Listings => "listings",
            Self::LockedRows => "locked rows",
            Self::Denials => "denials",
            Self::Rotations => "rotations",
            Self::SlowReads => "slow reads",
            Self::UnknownKeys => "unknown keys",
        }
    }

    /// Whether the service already knows the keys of the others. Look-ups of unknown keys share one
    /// rate, which a flood of unknown keys uses up.
    pub(crate) fn is_on_known_keys(self) -> bool {
        matches!(self, Self::UnknownKeys)
    }

    fn pace(self) -> &'static str {
        match self {
            Self::SlowReads => "slow",
            Self::UnknownKeys => "unknown",
            _ => "fast",
        }
    }

    fn key(self, setting: &Setting) -> &str {
        match self {
            Self::LockedRows | Self::Rotations => &setting.writer,
            Self::Listings | Self::Denials | Self::SlowReads | Self::UnknownKeys => &setting.viewer,
        }
    }

    /// Method and paths, which the connections use in turn.
    fn requests(self, setting: &Setting) -> (&'static str, Vec<String>) {
        let of_targets = |mount: &str, verb: &str| {
            let path = |id| format!("/{mount}/api-keys/{id}/{verb}");
            setting.targets.iter().map(path).collect()
        };
        match self {
            Self::Listings | Self::SlowReads => {
                ("GET", vec!["/account/api-keys?limit=1000".to_owned()])
            }
            Self::LockedRows => ("POST", of_targets("admin", "revoke")),
            Self::Denials => ("POST", vec![format!("/admin/api-keys/{}/revoke", setting.foreign)]),
            Self::Rotations => ("POST", of_targets("admin", "rotate")),
            Self::UnknownKeys => ("GET", vec!["/orders".to_owned()]),
        }
    }
}

/// The number of responses of each class that the attacker got.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    succeeded: usize,
    refused: usize,
    limited: usize,
    failed: usize,
}

impl Report {
    pub(crate) fn add(&mut self, other: &Self) {
        self.succeeded += other.succeeded;
        self.refused += other.refused;
        self.limited += other.limited;
        self.failed += other.failed;
    }
}

/// The attacker's process, as the benchmark sees it.
pub(crate) struct Attacker {
    child: Child,
    says: BufReader<ChildStdout>,
    _locks: Option<PgConnection>,
}

impl Attacker {
    pub(crate) async fn start(setting: &Setting, attack: Attack) -> Result<Self> {
        let locks = match attack {
            Attack::LockedRows => Some(setting.lock_targets().await?),
            _ => None,
        };
        let (method, paths) = attack.requests(setting);
        // The attacker must not take CPU from the service: it would have machines of its own.
        let mut child = Command::new("chrt")
            .args(["--idle", "0"])
            .arg(env::current_exe()?)
            .arg("attack")
            .args([setting.address.to_string(), method.to_owned()])
            .arg(attack.pace())
            .args(paths)
            .env("ATTACKERS_KEY", attack.key(setting))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let says = BufReader::new(child.stdout.take().ok_or("no standard output")?);
        Ok(Self { child, says, _locks: locks })
    }

    /// Waits until every connection has sent a request.
    pub(crate) async fn is_at_work(&mut self) -> Result<()> {
        let line = self.line().await?;
        if line == "at work" { Ok(()) } else { Err(format!("the attacker said {line:?}").into()) }
    }

    pub(crate) async fn stop(mut self) -> Result<Report> {
        let mut stdin = self.child.stdin.take().ok_or("no standard input")?;
        stdin.write_all(b"stop\n").await?;
        Ok(serde_json::from_str(&self.line().await?)?)
    }

    async fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        tokio::time::timeout(Duration::from_secs(60), self.says.read_line(&mut line)).await??;
        Ok(line.trim().to_owned())
    }
}

#[derive(Default)]
struct Counts {
    succeeded: AtomicUsize,
    refused: AtomicUsize,
    limited: AtomicUsize,
    failed: AtomicUsize,
}

impl Counts {
    fn of(&self, status: u16) -> &AtomicUsize {
        match status {
            200..=299 => &self.succeeded,
            429 | 503 => &self.limited,
            400..=499 => &self.refused,
            _ => &self.failed,
        }
    }

    fn report(&self) -> Report {
        Report {
            succeeded: self.succeeded.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            limited: self.limited.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
        }
    }
}

/// The attacker's process itself.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let [address, method, pace, paths @ ..] = arguments else {
        return Err("attack ADDRESS METHOD PACE PATH…".into());
    };
    let (address, is_slow, is_unknown) = (address.parse()?, pace == "slow", pace == "unknown");
    let method: http::Method = method.parse()?;
    let (key, format) = (env::var("ATTACKERS_KEY")?, KeyFormat::new(PREFIX)?);
    let counts: Arc<Counts> = Arc::default();
    let begun = Arc::new(tokio::sync::Barrier::new(CONNECTIONS + 1));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        for connection in 0..CONNECTIONS {
            let (counts, begun) = (Arc::clone(&counts), Arc::clone(&begun));
            let (mut key, method, paths) = (key.clone(), method.clone(), paths.to_vec());
            let format = format.clone();
            tokio::spawn(async move {
                let mut client = Client::connect(address).await?;
                begun.wait().await;
                for path in paths.iter().cycle().skip(connection * 4) {
                    if is_unknown {
                        // Well-formed, checksum included.
                        key = format.generate()?.expose_secret().to_owned();
                    }
                    if is_slow {
                        client.hold(path, &key).await?;
                    }
                    let status = client.send(method.clone(), path, &key).await?;
                    counts.of(status).fetch_add(1, Ordering::Relaxed);
                }
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
            });
        }
        begun.wait().await;
        println!("at work");
        stdout().flush()?;
        let stopped = tokio::task::spawn_blocking(|| stdin().lock().read_line(&mut String::new()));
        stopped.await??;
        let report = counts.report();
        println!("{}", serde_json::to_string(&report)?);
        stdout().flush()?;
        Ok(())
    })
}

/// One connection, HTTP/1.1.
pub(crate) struct Client {
    address: SocketAddr,
    sender: SendRequest<Body>,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { address, sender })
    }

    pub(crate) async fn get(&mut self, path: &str, key: &str) -> Result<u16> {
        self.send(http::Method::GET, path, key).await
    }

    async fn send(&mut self, method: http::Method, path: &str, key: &str) -> Result<u16> {
        if self.sender.ready().await.is_err() {
            *self = Self::connect(self.address).await?;
            self.sender.ready().await?;
        }
        let answer = self.sender.send_request(request(&method, path, key)?).await?;
        let status = answer.status().as_u16();
        answer.into_body().collect().await?;
        Ok(status)
    }

    /// Sends a request, and does not read the response for two seconds.
    async fn hold(&mut self, path: &str, key: &str) -> Result<()> {
        let mut stream = TcpStream::connect(self.address).await?;
        let text = format!("GET {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n\r\n");
        stream.write_all(text.as_bytes()).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        Ok(())
    }
}

fn request(method: &http::Method, path: &str, key: &str) -> Result<Request<Body>> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "localhost")
        .header(header::AUTHORIZATION, format!("Bearer {key}"));
    Ok(if method == http::Method::POST {
        request.header(header::CONTENT_TYPE, "application/json").body(Body::from("{}"))?
    } else {
        request.body(Body::empty())?
    })
}
