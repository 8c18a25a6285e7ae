//! What is lost when a node is terminated or killed.
//!
//! The node is a process of its own: the same test, with commands in its environment.

#[path = "../../examples/shared/mod.rs"]
#[expect(dead_code, reason = "it is the examples', too")]
mod shared;

use std::{
    collections::HashSet,
    env,
    io::Write as _,
    net::SocketAddr,
    process::{ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::Path,
    response::Response,
    routing::get,
};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    net::{TcpListener, TcpStream},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::{mpsc, watch},
    task::{JoinSet, spawn_blocking, yield_now},
    time::{advance, pause, timeout},
};
use tower::ServiceExt as _;
use tower_api_key::{
    ApiKeyLayer, Authenticator,
    auth::Event,
    key::KeyFormat,
    manage::{Expiry, KeyIssuer, NewKey},
    record::{KeyAction, KeyId},
    store::{EventQuery, ManageKeys as _, PgKeyStore},
};

use crate::servers::postgres::{Database, Server};

/// The database of a node, and the kind of server it uses.
const DATABASE: &str = "SIGNALS_DATABASE_URL";
const SERVER: &str = "SIGNALS_SERVER";
/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
const INTERVAL: Duration = Duration::from_secs(10);

async fn within<T>(event: impl Future<Output = T>) -> T {
    timeout(PATIENCE, event).await.expect("it should have happened by now")
}

fn format() -> KeyFormat {
    KeyFormat::new("sk_test_").unwrap()
}

async fn store(url: &str) -> PgKeyStore {
    let store = PgKeyStore::connect(url).await.unwrap();
    store.migrate().await.unwrap();
    store
}

/// A key, and its id.
#[derive(Clone)]
struct Key {
    text: String,
    id: KeyId,
}

async fn issue(store: &PgKeyStore, count: usize) -> Vec<Key> {
    let issuer = KeyIssuer::new(store.clone(), format());
    let mut keys = Vec::with_capacity(count);
    for _ in 0..count {
        let issued = issuer.issue(NewKey::new("acme", Expiry::Never)).await.unwrap();
        keys.push(Key { text: issued.key.expose_secret().to_owned(), id: issued.record.id });
    }
    keys
}

/// Which of `keys` have a time of last use in the database.
async fn written(store: &PgKeyStore, keys: &[Key]) -> Vec<bool> {
    let mut written = Vec::with_capacity(keys.len());
    for key in keys {
        written.push(store.last_used_at(key.id).await.unwrap().is_some());
    }
    written
}

/// How many requests with `keys` are in the ledger as admitted.
async fn counted(store: &PgKeyStore, keys: &[Key]) -> usize {
    let ids: Vec<_> = keys.iter().map(|key| key.id.to_string()).collect();
    let count = sqlx::query_scalar::<_, i64>(
        "select coalesce(sum(admitted), 0)::bigint from api_key_usage_hourly
        where key_id::text = any($1)",
    );
    let count = count.bind(ids).fetch_one(store.pool()).await.unwrap();
    usize::try_from(count).unwrap()
}

// -- The process of a node ---------------------------------------------------------------------------

/// Prints a line for the test. Output of the test framework may precede it.
fn say(line: &str) {
    let mut stdout = std::io::stdout();
    stdout.write_all(format!("\n:{line}\n").as_bytes()).unwrap();
    stdout.flush().unwrap();
}

/// Lines of standard input, read by a thread.
fn orders() -> mpsc::UnboundedReceiver<String> {
    let (order, orders) = mpsc::unbounded_channel();
    spawn_blocking(move || {
        for line in std::io::stdin().lines() {
            let line = line.unwrap();
            let is_last = line == "end";
            if order.send(line).is_err() || is_last {
                break;
            }
        }
    });
    orders
}

struct Node {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Node {
    fn start(test: &str, database: &Database, server: &str) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", &format!("signals::{test}"), "--nocapture"])
            .env(DATABASE, database.url())
            .env(SERVER, server)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let stdin = child.stdin.take().unwrap();
        Self { child, stdin, lines }
    }

    async fn order(&mut self, line: &str) {
        self.stdin.write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }

    /// The next line that the node prints.
    async fn line(&mut self) -> String {
        within(async {
            loop {
                let line = self.lines.next_line().await.unwrap().expect("the node goes on");
                if let Some(said) = line.strip_prefix(':') {
                    return said.to_owned();
                }
            }
        })
        .await
    }

    async fn says(&mut self, line: &str) {
        assert_eq!(self.line().await, line);
    }

    fn terminate(&self) {
        let id = self.child.id().expect("it runs").to_string();
        // The shell's `kill`, because not every system has the program.
        let mut kill = std::process::Command::new("sh");
        assert!(kill.args(["-c", r#"kill -s TERM "$0""#, &id]).status().unwrap().success());
    }

    /// The last line that it prints, and its exit status.
    async fn ends(mut self) -> (String, ExitStatus) {
        within(async {
            let mut last = String::new();
            while let Some(line) = self.lines.next_line().await.unwrap() {
                if let Some(said) = line.strip_prefix(':') {
                    last = said.to_owned();
                }
            }
            (last, self.child.wait().await.unwrap())
        })
        .await
    }

    async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }
}

// -- SIGTERM -----------------------------------------------------------------------------------------

/// Half of a body.
const HALF: usize = 200_000;

/// Serves until SIGTERM. The responses of `/late` and `/half` end once the test says so.
async fn serve(url: &str, server: &str) {
    let (auth, worker) = Authenticator::builder(store(url).await, format())
        // The only flush is the last one.
        .usage_interval(Duration::from_secs(3_600))
        .build();
    let quick = Arc::new(AtomicUsize::new(0));
    let (open, gate) = watch::channel(false);
    let mut orders = orders();
    tokio::spawn(async move {
        while let Some(order) = orders.recv().await {
            if order == "open" {
                open.send_replace(true);
            }
        }
        pending(open).await;
    });

    let begun = Arc::clone(&quick);
    let gated = async move |Path(kind): Path<String>| {
        let mut gate = gate.clone();
        say(&format!("begun {kind}"));
        let half = || Ok::<_, std::io::Error>(Bytes::from(vec![b'x'; HALF]));
        if kind == "late" {
            gate.wait_for(|is_open| *is_open).await.unwrap();
            return Response::new(Body::from(vec![b'x'; 2 * HALF]));
        }
        let halves = futures_util::stream::unfold((0, gate), move |(at, mut gate)| async move {
            if at == 1 {
                gate.wait_for(|is_open| *is_open).await.unwrap();
            }
            (at < 2).then(|| (half(), (at + 1, gate)))
        });
        Response::new(Body::from_stream(halves))
    };
    let app = Router::new()
        .route("/gated/{kind}", get(gated))
        .route(
            "/quick",
            get(async move || {
                begun.fetch_add(1, Ordering::SeqCst);
                "quick"
            }),
        )
        .layer(ApiKeyLayer::new(auth));

    let end = shared::terminated().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    say(&format!("listening on {}", listener.local_addr().unwrap()));
    if server == "timed" {
        shared::serve(listener, app, worker, end).await.unwrap();
    } else {
        // As in the manual.
        let (shutdown, ended) = tokio::sync::oneshot::channel::<()>();
        let worker = tokio::spawn(worker.run(async {
            let _ = ended.await;
        }));
        axum::serve(listener, app).with_graceful_shutdown(end).await.unwrap();
        drop(shutdown);
        worker.await.unwrap();
    }
    say(&format!("quick {}", quick.load(Ordering::SeqCst)));
}

/// Keeps `open` until the process ends.
async fn pending<T>(open: T) {
    std::future::pending::<()>().await;
    drop(open);
}

fn request(address: SocketAddr, path: &str, key: &Key) -> Request<Empty<Bytes>> {
    Request::get(format!("http://{address}{path}"))
        .header(header::HOST, address.to_string())
        .header(header::AUTHORIZATION, format!("Bearer {}", key.text))
        .body(Empty::new())
        .unwrap()
}

type Http1 = hyper::client::conn::http1::SendRequest<Empty<Bytes>>;
type Http2 = hyper::client::conn::http2::SendRequest<Empty<Bytes>>;

async fn http1(address: SocketAddr) -> std::io::Result<Http1> {
    let stream = TokioIo::new(TcpStream::connect(address).await?);
    let (sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    Ok(sender)
}

async fn http2(address: SocketAddr) -> Http2 {
    let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream);
    let (sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    sender
}

/// The length of a body that arrived completely.
async fn whole(answer: hyper::Result<Response<Incoming>>) -> Result<usize, String> {
    let answer = answer.map_err(|error| format!("no answer: {error:?}"))?;
    assert_eq!(answer.status(), StatusCode::OK);
    let body = answer.into_body().collect().await;
    Ok(body.map_err(|error| format!("cut off: {error:?}"))?.to_bytes().len())
}

/// A client that uses each of `keys` in turn until the node is gone. It returns the keys of
/// answered requests, and how many there were.
async fn ask_on(
    address: SocketAddr,
    keys: Vec<Key>,
    answered: Arc<AtomicUsize>,
) -> (HashSet<KeyId>, usize) {
    let (mut used, mut count) = (HashSet::new(), 0);
    // A connection in the accept queue is reset, and a request not yet begun is not answered.
    while let Ok(mut sender) = http1(address).await {
        for key in keys.iter().cycle() {
            if sender.ready().await.is_err() {
                break;
            }
            let Ok(answer) = sender.send_request(request(address, "/quick", key)).await else {
                break;
            };
            // A response that has begun is completed.
            assert_eq!(whole(Ok(answer)).await, Ok("quick".len()));
            used.insert(key.id);
            count += 1;
            answered.fetch_add(1, Ordering::SeqCst);
        }
    }
    (used, count)
}

const TERMINATED: &str = "a_node_that_is_terminated_under_load_answers_each_request_it_has_begun";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_terminated_under_load_answers_each_request_it_has_begun() {
    if let Ok(url) = env::var(DATABASE) {
        return serve(&url, &env::var(SERVER).unwrap()).await;
    }
    for server in ["axum", "timed"] {
        terminated_under_load(server).await;
    }
}

async fn terminated_under_load(server: &str) {
    let database = Server::shared().database().await;
    let store = store(database.url()).await;
    let keys = issue(&store, 120).await;
    let (gated, rest) = keys.split_at(36);
    let (quick, unused) = rest.split_at(rest.len() - 10);

    let mut node = Node::start(TERMINATED, &database, server);
    let line = node.line().await;
    let address: SocketAddr = line.strip_prefix("listening on ").unwrap().parse().unwrap();

    // Running requests: on separate connections, and on one HTTP/2 connection. `axum::serve` resets
    // that one if the client still sends frames after the last response.
    let mut under_way = JoinSet::new();
    let shared = http2(address).await;
    for (at, key) in gated.iter().cloned().enumerate() {
        let path = ["/gated/late", "/gated/half"][at % 2];
        let mut shared = (server == "timed" && at % 3 == 0).then(|| shared.clone());
        under_way.spawn(async move {
            let request = request(address, path, &key);
            let (version, answer) = match &mut shared {
                Some(sender) => (2, whole(sender.send_request(request).await).await),
                None => {
                    let mut sender = http1(address).await.unwrap();
                    (1, whole(sender.send_request(request).await).await)
                }
            };
            (format!("{path} by HTTP/{version}"), answer)
        });
    }
    for _ in gated {
        let line = node.line().await;
        assert!(line.starts_with("begun "), "{line}");
    }
    // And load.
    let (mut load, answered) = (JoinSet::new(), Arc::new(AtomicUsize::new(0)));
    for part in quick.chunks(quick.len() / 4) {
        load.spawn(ask_on(address, part.to_vec(), Arc::clone(&answered)));
    }
    within(async {
        while answered.load(Ordering::SeqCst) < 1_000 {
            yield_now().await;
        }
    })
    .await;

    node.terminate();
    // New connections are refused, and every client is notified.
    let (mut used, mut count) = (HashSet::new(), 0);
    while let Some(client) = within(load.join_next()).await {
        let (keys, answers) = client.unwrap();
        used.extend(keys);
        count += answers;
    }
    let refused = TcpStream::connect(address).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    assert!(node.child.try_wait().unwrap().is_none(), "{server}: requests are under way");
    assert!(under_way.try_join_next().is_none(), "{server}: the gate is closed");

    node.order("open").await;
    while let Some(answer) = within(under_way.join_next()).await {
        let (request, answer) = answer.unwrap();
        assert_eq!(answer, Ok(2 * HALF), "{server}: {request}");
    }
    node.order("end").await;
    let (last, status) = node.ends().await;
    assert_eq!(status.code(), Some(0), "{server}");
    assert_eq!(last, format!("quick {count}"), "{server}: begun, and answered");

    used.extend(gated.iter().map(|key| key.id));
    assert!(used.len() > gated.len() + 50, "{server}: {} keys were used", used.len());
    for (key, written) in keys.iter().zip(written(&store, &keys).await) {
        assert_eq!(written, used.contains(&key.id), "{server}: {}", key.id);
    }
    assert!(unused.iter().all(|key| !used.contains(&key.id)));
    // Each request that had begun is counted.
    assert_eq!(counted(&store, &keys).await, count + gated.len(), "{server}");
}

// -- SIGKILL -----------------------------------------------------------------------------------------

/// Follows commands, with a clock that advances only on command.
async fn obey(url: &str) {
    let store = store(url).await;
    let (auth, worker) = Authenticator::builder(store.clone(), format())
        .usage_interval(INTERVAL)
        .observer(|event: &Event<'_>| match event {
            Event::UsageFlushed { keys, .. } => say(&format!("flushed {keys}")),
            Event::UsageFlushFailed { error, .. } => say(&format!("failed: {error}")),
            _ => {}
        })
        .build();
    let app: Router = Router::new().route("/", get(async || "used")).layer(ApiKeyLayer::new(auth));
    let issuer = KeyIssuer::new(store, format());
    // From here on no timer fires by itself: one thread is always busy.
    let mut orders = orders();
    pause();
    tokio::spawn(worker.run(std::future::pending()));
    say("ready");
    while let Some(order) = orders.recv().await {
        match order.split_once(' ').unwrap_or((&order, "")) {
            ("use", key) => {
                let request = Request::get("/")
                    .header(header::AUTHORIZATION, format!("Bearer {key}"))
                    .body(Body::empty())
                    .unwrap();
                let answer = app.clone().oneshot(request).await.unwrap();
                say(answer.status().as_str());
            }
            ("wait", millis) => {
                // Waits until the worker has received the reported uses.
                for _ in 0..100 {
                    yield_now().await;
                }
                advance(Duration::from_millis(millis.parse().unwrap())).await;
                say("waited");
            }
            ("issue", _) => loop {
                let issued = issuer.issue(NewKey::new("acme", Expiry::Never)).await.unwrap();
                say(&issued.record.id.to_string());
            },
            order => panic!("{order:?}"),
        }
    }
}

const KILLED: &str = "a_node_that_is_killed_loses_the_uses_of_one_interval_and_not_of_two";

impl Node {
    async fn uses(&mut self, keys: &[Key]) {
        for key in keys {
            self.order(&format!("use {}", key.text)).await;
            self.says("200").await;
        }
    }

    /// Time advances, and nothing is written.
    async fn waits(&mut self, time: Duration) {
        self.order(&format!("wait {}", time.as_millis())).await;
        self.says("waited").await;
    }

    /// Time advances to the end of an interval, when the uses of this many keys are written.
    async fn flushes(&mut self, time: Duration, keys: usize) {
        self.order(&format!("wait {}", time.as_millis())).await;
        let mut said = [self.line().await, self.line().await];
        said.sort();
        assert_eq!(said, [format!("flushed {keys}"), "waited".to_owned()]);
    }
}

#[tokio::test]
async fn a_node_that_is_killed_loses_the_uses_of_one_interval_and_not_of_two() {
    if let Ok(url) = env::var(DATABASE) {
        return obey(&url).await;
    }
    const EACH: usize = 20;
    // A tokio timer is late by less than this.
    let moment = Duration::from_millis(10);
    let database = Server::shared().database().await;
    let store = store(database.url()).await;
    for intervals in 0..4 {
        let keys = issue(&store, (intervals + 1) * EACH).await;
        let mut node = Node::start(KILLED, &database, "");
        node.says("ready").await;
        let (whole, last) = keys.split_at(intervals * EACH);
        for part in whole.chunks(EACH) {
            // Of an interval, the first use and the last one.
            let (early, late) = part.split_at(EACH / 2);
            node.uses(early).await;
            node.waits(INTERVAL - moment).await;
            node.uses(late).await;
            node.flushes(2 * moment, EACH).await;
        }
        // The lost interval is as long as possible.
        node.uses(last).await;
        node.waits(INTERVAL - moment).await;
        node.kill().await;

        assert_eq!(written(&store, whole).await, vec![true; whole.len()], "{intervals}");
        // The control: the uses of the last interval are stored nowhere else.
        assert_eq!(written(&store, last).await, vec![false; EACH], "{intervals}");
        assert_eq!(counted(&store, whole).await, whole.len(), "{intervals}");
        assert_eq!(counted(&store, last).await, 0, "{intervals}");
    }
}

#[tokio::test]
async fn a_node_that_is_killed_loses_the_counts_of_one_interval_and_none_of_another_node() {
    if let Ok(url) = env::var(DATABASE) {
        return obey(&url).await;
    }
    const TEST: &str =
        "a_node_that_is_killed_loses_the_counts_of_one_interval_and_none_of_another_node";
    const KEYS: usize = 20;
    // A tokio timer is late by less than this.
    let moment = Duration::from_millis(10);
    let database = Server::shared().database().await;
    let store = store(database.url()).await;
    let keys = issue(&store, KEYS).await;
    let mut nodes = [TEST; 2].map(|test| Node::start(test, &database, ""));
    for node in &mut nodes {
        node.says("ready").await;
        for _ in 0..3 {
            node.uses(&keys).await;
        }
    }
    // Both add to the same rows.
    for node in &mut nodes {
        node.flushes(INTERVAL + moment, KEYS).await;
        node.uses(&keys).await;
    }
    let [killed, mut other] = nodes;
    killed.kill().await;
    other.flushes(INTERVAL + moment, KEYS).await;
    assert_eq!(counted(&store, &keys).await, (3 + 3 + 1) * KEYS);
}

#[tokio::test]
async fn what_a_node_said_it_changed_is_in_the_audit_after_it_is_killed() {
    if let Ok(url) = env::var(DATABASE) {
        return obey(&url).await;
    }
    const TEST: &str = "what_a_node_said_it_changed_is_in_the_audit_after_it_is_killed";
    let database = Server::shared().database().await;
    let store = store(database.url()).await;
    let mut said = HashSet::new();
    for count in 1..=20 {
        let mut node = Node::start(TEST, &database, "");
        node.says("ready").await;
        node.order("issue").await;
        for _ in 0..count {
            said.insert(node.line().await.parse::<KeyId>().unwrap());
        }
        // Killed right after its message.
        node.kill().await;
    }
    assert_eq!(said.len(), 20 * 21 / 2);
    let issuer = KeyIssuer::new(store.clone(), format());
    let (mut issued, mut query) = (HashSet::new(), EventQuery::new().limit(1_000));
    loop {
        let page = issuer.events(&query).await.unwrap();
        for event in page.events {
            assert_eq!(event.entry.action, KeyAction::Issued);
            assert!(issued.insert(event.entry.key_id.unwrap()), "{event:?}");
        }
        match page.next {
            Some(next) => query = query.after(next),
            None => break,
        }
    }
    assert!(said.is_subset(&issued), "{:?}", said.difference(&issued));
    // And no line without a key, or key without a line.
    for id in &issued {
        assert!(store.get(*id).await.unwrap().is_some(), "{id}");
    }
}
