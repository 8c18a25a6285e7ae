//! A flood of unknown keys through a real server into a real database, and a legitimate client at
//! the same address.
//!
//! The flood drives the clock: it advances by a second with every ten thousand junk keys, however
//! fast the machine answers them.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, routing::get, serve::ListenerExt};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Mutex as AsyncMutex, watch},
    task::JoinSet,
    time::Instant,
};
use tower_api_key::{
    ApiKeyLayer, Authenticator, Consumer,
    clock::ManualClock,
    key::{Alphabet, ImportedFormat, KeyFormat, KeyHash},
    layer::ClientAddress,
    manage::{Expiry, KeyIssuer, NewKey},
    record::KeyRecord,
    store::{KeyStore, PgKeyStore, StoreError, port::UsageBatch},
};

use crate::servers::postgres::{Database, Server as Postgres};

const SECOND: Duration = Duration::from_secs(1);
/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);

const JUNK_A_SECOND: u32 = 10_000;
const CONNECTIONS: usize = 6;
/// Requests that an attacker sends before it reads a response.
const BATCH: u32 = 32;

/// Requests of the legitimate client with a key that the node knows, and the number of its keys
/// that it does not.
const WARM: usize = 200;
const COLD: usize = 8;
/// The maximum number of attempts of a client. With a chance of one in a million, all traces of a
/// key are overwritten.
const TRIES: usize = 6;

/// The tests run one at a time: each needs the whole machine.
static TURN: AsyncMutex<()> = AsyncMutex::const_new(());

/// The same as [`crate::wait::within`], with more patience.
#[track_caller]
fn within<T>(event: impl Future<Output = T>) -> impl Future<Output = T> {
    crate::wait::within_time(PATIENCE, event)
}

/// Counts the database queries for each key.
#[derive(Clone)]
struct Counting {
    keys: PgKeyStore,
    queries: Arc<Mutex<HashMap<KeyHash, usize>>>,
}

impl KeyStore for Counting {
    async fn find(&self, hash: &KeyHash) -> Result<Option<KeyRecord>, StoreError> {
        *self.queries.lock().unwrap().entry(*hash).or_default() += 1;
        self.keys.find(hash).await
    }

    async fn record_usage(&self, batch: &UsageBatch) -> Result<(), StoreError> {
        self.keys.record_usage(batch).await
    }
}

/// The node under attack.
struct Node {
    address: SocketAddr,
    store: Counting,
    clock: ManualClock,
    _database: Database,
}

impl Node {
    async fn start(address: ClientAddress) -> Self {
        let database = Postgres::shared().database().await;
        let keys = PgKeyStore::new(database.pool().await);
        keys.migrate().await.unwrap();
        let store = Counting { keys, queries: Arc::default() };
        let clock = ManualClock::default();
        // Junk of this format is free for the attacker to make.
        let junk = ImportedFormat::new("", Alphabet::Hex, 64).unwrap();
        let builder = Authenticator::builder(store.clone(), format()).clock(clock.clone());
        let (auth, _) = builder.accept(junk).build();
        let whoami = async |consumer: Consumer| consumer.id().to_owned();
        let app = Router::new().route("/", get(whoami));
        let app = app.layer(ApiKeyLayer::new(auth).throttle_failures(address));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        // Otherwise a small response waits for the next one.
        let listener = listener.tap_io(|connection| connection.set_nodelay(true).unwrap());
        let app = app.into_make_service_with_connect_info::<SocketAddr>();
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { address, store, clock, _database: database }
    }

    async fn issue(&self) -> String {
        let issuer = KeyIssuer::new(self.store.keys.clone(), format());
        let issued = issuer.issue(NewKey::new("acme", Expiry::Never)).await.unwrap();
        issued.key.expose_secret().to_owned()
    }

    /// The number of queries for this key.
    fn queries(&self, key: &str) -> usize {
        self.store.queries.lock().unwrap().get(&hash(key)).copied().unwrap_or_default()
    }

    fn all_queries(&self) -> usize {
        self.store.queries.lock().unwrap().values().sum()
    }
}

fn hash(key: &str) -> KeyHash {
    KeyHash::from_bytes(Sha256::digest(key).into())
}

fn format() -> KeyFormat {
    KeyFormat::new("sk_test_").unwrap()
}

/// The address that requests claim.
#[derive(Clone, Copy)]
enum From {
    /// All from this machine.
    Here,
    /// Each from a different address, as a node behind a proxy sees it.
    Everywhere,
}

/// Attackers with a connection each, as fast as the responses allow.
struct Flood {
    from: From,
    clock: ManualClock,
    next: AtomicUsize,
    elapsed: watch::Sender<Duration>,
    answers: Mutex<BTreeMap<String, usize>>,
    is_over: AtomicBool,
}

impl Flood {
    fn begin(node: &Node, from: From) -> (Arc<Self>, JoinSet<()>) {
        let flood = Arc::new(Self {
            from,
            clock: node.clock.clone(),
            next: AtomicUsize::new(0),
            elapsed: watch::Sender::new(Duration::ZERO),
            answers: Mutex::default(),
            is_over: AtomicBool::new(false),
        });
        let mut attackers = JoinSet::new();
        for _ in 0..CONNECTIONS {
            attackers.spawn(Arc::clone(&flood).attack(node.address));
        }
        (flood, attackers)
    }

    async fn attack(self: Arc<Self>, address: SocketAddr) {
        let mut connection = TcpStream::connect(address).await.unwrap();
        while !self.is_over.load(Ordering::SeqCst) {
            let requests: String = (0..BATCH).map(|_| self.request()).collect();
            connection.write_all(requests.as_bytes()).await.unwrap();
            let mut answers = Vec::new();
            while !is_complete(&answers) {
                assert_ne!(connection.read_buf(&mut answers).await.unwrap(), 0, "it hangs up");
            }
            self.has_answers(str::from_utf8(&answers).unwrap());
        }
    }

    /// No two requests with the same key.
    fn request(&self) -> String {
        let number = self.next.fetch_add(1, Ordering::SeqCst);
        let from = match self.from {
            From::Here => String::new(),
            From::Everywhere => {
                let address = IpAddr::from(u32::try_from(number).unwrap().to_be_bytes());
                format!("x-forwarded-for: {address}\r\n")
            }
        };
        format!("GET / HTTP/1.1\r\nhost: api\r\n{from}authorization: Bearer {number:064x}\r\n\r\n")
    }

    fn has_answers(&self, text: &str) {
        let mut answers = self.answers.lock().unwrap();
        for answer in text.split(STATUS_LINE).skip(1) {
            *answers.entry(answer[..3].to_owned()).or_default() += 1;
        }
        drop(answers);
        let time = SECOND * BATCH / JUNK_A_SECOND;
        self.clock.advance(time);
        self.elapsed.send_modify(|elapsed| *elapsed += time);
    }

    fn elapsed(&self) -> Duration {
        *self.elapsed.borrow()
    }

    async fn wait(&self, time: Duration) {
        let then = self.elapsed() + time;
        within(self.elapsed.subscribe().wait_for(|elapsed| *elapsed >= then)).await.unwrap();
    }
}

const STATUS_LINE: &str = "HTTP/1.1 ";

/// Checks that every response is a JSON problem.
fn is_complete(answers: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answers);
    text.ends_with('}') && text.matches(STATUS_LINE).count() == BATCH as usize
}

/// The legitimate client.
struct Customer(SendRequest<Empty<Bytes>>);

impl Customer {
    async fn connect(node: &Node) -> Self {
        let stream = TcpStream::connect(node.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    /// The status, and the time to wait.
    async fn get(&mut self, key: &str) -> (StatusCode, Option<Duration>) {
        let request = Request::get("/")
            .header(header::HOST, "api")
            .header("x-forwarded-for", "192.0.2.1")
            .header(header::AUTHORIZATION, format!("Bearer {key}"));
        within(self.0.ready()).await.unwrap();
        let answer = self.0.send_request(request.body(Empty::new()).unwrap());
        let (parts, body) = within(answer).await.unwrap().into_parts();
        body.collect().await.unwrap();
        let wait = parts.headers.get(header::RETRY_AFTER);
        let wait = wait.map(|wait| SECOND * wait.to_str().unwrap().parse().unwrap());
        (parts.status, wait)
    }

    /// Sends requests with a key that the node knows, each of which is let in.
    async fn warm(&mut self, key: &str) {
        for _ in 0..WARM {
            assert_eq!(self.get(key).await, (StatusCode::OK, None));
        }
    }

    /// The number of requests of a client that retries as told, until it is let in.
    async fn cold(mut self, key: String, flood: Arc<Flood>) -> usize {
        for tries in 1..=TRIES {
            match self.get(&key).await {
                (StatusCode::OK, _) => return tries,
                (StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE, Some(wait)) => {
                    flood.wait(wait).await;
                }
                other => panic!("{other:?}"),
            }
        }
        panic!("a good key is still not let in");
    }
}

/// The database queries for junk, by second of the flood, and the number of seconds.
async fn besieged(address: ClientAddress, from: From) -> (usize, Duration) {
    let _turn = TURN.lock().await;
    let node = Node::start(address).await;
    let (known, mut unknown) = (node.issue().await, Vec::new());
    for _ in 0..COLD {
        unknown.push(node.issue().await);
    }
    let mut customer = Customer::connect(&node).await;
    assert_eq!(customer.get(&known).await.0, StatusCode::OK);

    let begun = Instant::now();
    let (flood, mut attackers) = Flood::begin(&node, from);
    flood.wait(SECOND / 2).await;
    customer.warm(&known).await;

    let mut customers = JoinSet::new();
    for key in unknown.clone() {
        let customer = Customer::connect(&node).await;
        customers.spawn(customer.cold(key, Arc::clone(&flood)));
    }
    let mut tries = Vec::new();
    while let Some(of_one) = within(customers.join_next()).await {
        tries.push(of_one.unwrap());
    }
    assert!(tries.iter().sum::<usize>() > COLD, "nobody had to come again: {tries:?}");
    flood.is_over.store(true, Ordering::SeqCst);
    while let Some(attacker) = within(attackers.join_next()).await {
        attacker.unwrap();
    }

    let (took, elapsed) = (begun.elapsed(), flood.elapsed());
    let junk = flood.next.load(Ordering::SeqCst);
    assert_eq!(node.queries(&known), 1, "a key in the cache needs no query");
    assert!(unknown.iter().all(|key| node.queries(key) == 1), "one query lets a good key in");
    let queries = node.all_queries() - 1 - COLD;
    let answers = flood.answers.lock().unwrap();
    println!("{junk} junk keys in {took:.1?}, {elapsed:.1?} by the clock: {answers:?}");
    println!("{queries} queries for junk; keys let in after so many tries: {tries:?}");
    assert_eq!(answers.get("200"), None);
    assert_eq!(answers.values().sum::<usize>(), junk);
    (queries, elapsed)
}

/// The allowed number: this many at once, and this many a second, rounded up.
fn budget(at_once: usize, a_second: u32, elapsed: Duration) -> usize {
    let since = (elapsed * a_second).as_nanos().div_ceil(SECOND.as_nanos());
    at_once + usize::try_from(since).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_from_the_customers_own_address() {
    let (queries, elapsed) = besieged(ClientAddress::peer(), From::Here).await;
    // Plus those under way when the failures of the network reached the limit.
    assert!(queries <= budget(20, 1, elapsed) + CONNECTIONS, "{queries} queries");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_from_everywhere() {
    let (queries, elapsed) = besieged(ClientAddress::x_forwarded_for(1), From::Everywhere).await;
    assert!(queries <= budget(100, 100, elapsed), "{queries} queries");
    assert!(queries >= 100, "this is no flood: {queries} queries");
}
