//! A fleet: nodes that are processes of their own, and their clients.

#![allow(dead_code, unreachable_pub, reason = "each test file uses the part it needs")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a harness that fails must fail its test"
)]

pub mod process;

use std::{
    env, fmt,
    future::Future,
    net::SocketAddr,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Full};
use hyper::{
    body::Incoming,
    client::conn::http1::{SendRequest, handshake},
};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpStream,
    process::{Child, ChildStdin, Command},
    time::Instant,
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, client::IntoClientRequest},
};
use tower_api_key::{
    key::KeyFormat,
    manage::{Expiry, KeyIssuer, ManageError, NewKey},
    record::KeyId,
    store::PgKeyStore,
};

pub use self::process::{Settings, run_if_node};
pub use crate::wait::{eventually, within};

pub fn format() -> KeyFormat {
    KeyFormat::new("sk_test_").unwrap()
}

/// A well-formed key that was never issued.
pub fn unknown_key() -> String {
    format().generate().unwrap().expose_secret().to_owned()
}

/// A key, and its id.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Key {
    pub text: String,
    id: String,
}

impl Key {
    pub fn id(&self) -> KeyId {
        self.id.parse().unwrap()
    }
}

pub async fn issue(keys: &PgKeyStore, count: usize) -> Result<Vec<Key>, ManageError> {
    issue_new(keys, count, || NewKey::new("acme", Expiry::Never)).await
}

pub async fn issue_new(
    keys: &PgKeyStore,
    count: usize,
    new: impl Fn() -> NewKey,
) -> Result<Vec<Key>, ManageError> {
    let issuer = KeyIssuer::new(keys.clone(), format());
    let mut issued = Vec::with_capacity(count);
    for _ in 0..count {
        let new = issuer.issue(new()).await?;
        issued
            .push(Key { text: new.key.expose_secret().to_owned(), id: new.record.id.to_string() });
    }
    Ok(issued)
}

/// A service in a process of its own. It ends when the value is dropped, or with the test's
/// process.
pub struct Node {
    pub address: SocketAddr,
    child: Child,
    /// Kept here, because waiting for the child would close the child's own handle.
    _stdin: ChildStdin,
}

impl Node {
    pub async fn start(settings: &Settings) -> Self {
        Self::start_by(Command::new(env::current_exe().unwrap()), settings).await
    }

    /// `command` runs the test's own program, perhaps in another network namespace.
    pub async fn start_by(mut command: Command, settings: &Settings) -> Self {
        command
            .args(["--exact", process::TEST, "--nocapture"])
            .env(process::SETTINGS, serde_json::to_string(settings).unwrap())
            // The node reads it to notice the end of this process.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = within(async {
            loop {
                let line = lines.next_line().await.unwrap().expect("the node's address");
                if let Some((_, address)) = line.split_once(process::LISTENING) {
                    return address.parse().unwrap();
                }
            }
        })
        .await;
        // The output of the test framework at the end of the node must be read.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let stdin = child.stdin.take().unwrap();
        Self { address, child, _stdin: stdin }
    }

    pub fn id(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// Opens a persistent connection.
    pub async fn client(&self) -> Client {
        Client::connect(self.address).await.unwrap()
    }

    pub async fn get(&self, key: &str) -> Reply {
        self.client().await.get(key).await
    }

    /// A request to the node's admin routes, which need no key.
    pub async fn admin(&self, method: Method, path: &str) -> Value {
        self.client().await.admin(method, path).await
    }

    /// New keys.
    pub async fn issue(&self, count: usize) -> Vec<Key> {
        let issued = self.admin(Method::POST, &format!("/issue/{count}")).await;
        serde_json::from_value(issued).unwrap()
    }

    /// A request of another form, on a connection of its own.
    pub async fn send(&self, mut request: Request<Full<Bytes>>) -> Reply {
        let host = self.address.to_string().parse().unwrap();
        request.headers_mut().insert(header::HOST, host);
        let stream = TcpStream::connect(self.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let (parts, body) = within(sender.send_request(request)).await.unwrap().into_parts();
        let body = within(body.collect()).await.unwrap().to_bytes();
        let body = String::from_utf8(body.into()).unwrap();
        Reply { status: parts.status, headers: parts.headers, body }
    }

    pub async fn health(&self) -> Value {
        self.admin(Method::GET, "/health").await
    }

    /// How many times something happened since the start.
    pub async fn count(&self, what: &str) -> u64 {
        self.admin(Method::GET, "/counts").await[what].as_u64().unwrap()
    }

    /// SIGTERM.
    pub async fn terminate(mut self) -> ExitStatus {
        let id = self.id().to_string();
        // The `kill` of the shell, as not every system has a program of that name.
        let kill = Command::new("sh").args(["-c", r#"kill -s TERM "$0""#, &id]).status().await;
        assert!(kill.unwrap().success());
        within(self.child.wait()).await.unwrap()
    }

    /// SIGKILL.
    pub async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }
}

/// A persistent connection.
pub struct Client {
    address: SocketAddr,
    sender: SendRequest<Empty<Bytes>>,
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Result<Self, std::io::Error> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        Ok(Self { address, sender })
    }

    /// `None` if the connection has ended, before the request or without a response.
    pub async fn try_get(&mut self, key: &str) -> Option<Reply> {
        self.send(Method::GET, "/", Some(key)).await.ok()
    }

    pub async fn get(&mut self, key: &str) -> Reply {
        self.send(Method::GET, "/", Some(key)).await.unwrap()
    }

    #[track_caller]
    pub fn admin(&mut self, method: Method, path: &str) -> impl Future<Output = Value> {
        let path = format!("/admin{path}");
        async move {
            let reply = self.send(method, &path, None).await.unwrap();
            assert_eq!(reply.status, StatusCode::OK, "{path}: {reply:?}");
            serde_json::from_str(&reply.body).unwrap()
        }
    }

    async fn send(
        &mut self,
        method: Method,
        path: &str,
        key: Option<&str>,
    ) -> hyper::Result<Reply> {
        within(async {
            let (parts, body) = self.begin(method, path, key).await?.into_parts();
            let body = body.collect().await?.to_bytes();
            let body = String::from_utf8(body.into()).unwrap();
            Ok(Reply { status: parts.status, headers: parts.headers, body })
        })
        .await
    }

    async fn begin(
        &mut self,
        method: Method,
        path: &str,
        key: Option<&str>,
    ) -> hyper::Result<Response<Incoming>> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.address.to_string());
        if let Some(key) = key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        self.sender.ready().await?;
        self.sender.send_request(request.body(Empty::new()).unwrap()).await
    }

    /// Sends requests with `key` until one is refused, and returns that time.
    pub async fn until_refused(&mut self, key: &str) -> Instant {
        within(async {
            loop {
                match self.get(key).await.status {
                    StatusCode::OK => {}
                    StatusCode::UNAUTHORIZED => return Instant::now(),
                    status => panic!("{status}"),
                }
            }
        })
        .await
    }
}

/// An open event stream.
pub struct Events(Incoming);

impl Events {
    pub async fn of(node: &Node, key: &Key) -> Self {
        let mut client = node.client().await;
        let response = client.begin(Method::GET, "/events", Some(&key.text)).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let mut events = response.into_body();
        within(events.frame()).await.expect("the first event").unwrap();
        Self(events)
    }

    /// The time when the stream was cut off.
    pub async fn cut_off(mut self) -> Instant {
        let next = within(self.0.frame()).await;
        assert!(matches!(next, Some(Err(_))), "{next:?}");
        Instant::now()
    }
}

/// An open WebSocket.
pub struct Socket(WebSocketStream<TcpStream>);

impl Socket {
    pub async fn of(node: &Node, key: &Key) -> Self {
        let url = format!("ws://{}/socket", node.address);
        let mut request = url.into_client_request().unwrap();
        let authorization = format!("Bearer {}", key.text).parse().unwrap();
        request.headers_mut().insert(header::AUTHORIZATION, authorization);
        let connection = TcpStream::connect(node.address).await.unwrap();
        Self(within(client_async(request, connection)).await.unwrap().0)
    }

    /// The time when the node closed it.
    pub async fn closed(mut self) -> Instant {
        let next = within(self.0.next()).await;
        assert!(matches!(next, Some(Ok(Message::Close(Some(_))))), "{next:?}");
        Instant::now()
    }
}

/// The response that a client gets.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
}

impl Reply {
    #[track_caller]
    pub fn is(&self, status: StatusCode) {
        assert_eq!(self.status, status, "{self:?}");
    }
}

/// A list of durations.
pub struct Distribution(Vec<Duration>);

impl Distribution {
    pub fn of(times: impl IntoIterator<Item = Duration>) -> Self {
        let mut times: Vec<_> = times.into_iter().collect();
        assert!(!times.is_empty(), "nothing was measured");
        times.sort();
        Self(times)
    }

    /// The duration that at most `percent` of them were below.
    pub fn percentile(&self, percent: usize) -> Duration {
        self.0[(self.0.len() * percent / 100).min(self.0.len() - 1)]
    }
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [min, p50, p90, p99, max] = [0, 50, 90, 99, 100].map(|it| self.percentile(it));
        let n = self.0.len();
        write!(
            f,
            "n {n}, min {min:.1?}, p50 {p50:.1?}, p90 {p90:.1?}, p99 {p99:.1?}, max {max:.1?}"
        )
    }
}
