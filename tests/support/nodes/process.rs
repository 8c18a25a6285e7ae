//! The process of a node.

use std::{
    convert::Infallible,
    env,
    error::Error,
    future::ready,
    io::{self, Write},
    process, str,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Path, State, WebSocketUpgrade},
    response::{IntoResponse, Sse, sse},
    routing::{any, get, post},
    serve::ListenerExt,
};
use futures_util::{StreamExt, stream};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::{PgPool, postgres::PgPoolOptions};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};
use tower_api_key::{
    ApiKeyLayer, Authenticator, Consumer,
    auth::{CachePolicy, Event},
    key::KeyHash,
    layer::{UntilKeyEnds, websocket::until_key_ends},
    leaks,
    manage::LeakPolicy,
    record::{KeyId, KeyRecord},
    store::{
        KeyStore, PgChangeFeed, PgKeyStore, StoreError,
        port::{Change, ChangeFeed, Staleness, UsageBatch},
    },
};

use crate::{github::GitHub, raw_store::ByHand as _};

/// The test that runs as a node if [`SETTINGS`] says so.
pub(super) const TEST: &str = "fleet::a_node_comes_up_and_ends";
pub(super) const SETTINGS: &str = "NODE_SETTINGS";
/// Printed before the address once a node listens.
pub(super) const LISTENING: &str = "listening on ";

/// The settings of a node. `None` means the library's default.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// The address to listen on.
    pub bind: String,
    pub database: String,
    /// The database URL of the change feed; `None` for no feed.
    pub feed: Option<String>,
    pub heartbeat: Option<Duration>,
    pub fresh: Option<Duration>,
    pub fresh_during_gap: Option<Duration>,
    pub usage_interval: Option<Duration>,
    /// Longer than any look-up unless the test has failed. `None` is the library's default.
    pub load_deadline: Option<Duration>,
}

impl Settings {
    pub fn new(database_url: &str) -> Self {
        Self {
            bind: "127.0.0.1:0".into(),
            database: database_url.into(),
            feed: Some(database_url.into()),
            heartbeat: None,
            fresh: None,
            fresh_during_gap: None,
            usage_interval: None,
            load_deadline: Some(Duration::from_secs(20)),
        }
    }

    fn policy(&self) -> CachePolicy {
        let mut policy = CachePolicy::default();
        if let Some(fresh) = self.fresh {
            policy = policy.fresh(fresh).unwrap();
        }
        if let Some(fresh) = self.fresh_during_gap {
            policy = policy.fresh_during_gap(fresh).unwrap();
        }
        if let Some(deadline) = self.load_deadline {
            policy = policy.load_deadline(deadline).unwrap();
        }
        policy
    }
}

/// Runs the node if this process was started as one; returns whether it was, after its end.
pub async fn run_if_node() -> bool {
    let Ok(settings) = env::var(SETTINGS) else { return false };
    // The node ends with the test, even if the test is killed.
    thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        process::exit(1);
    });
    run(&serde_json::from_str(&settings).unwrap()).await;
    true
}

async fn run(settings: &Settings) {
    let mut terminate = signal(SignalKind::terminate()).unwrap();
    let listener = TcpListener::bind(&settings.bind).await.unwrap();
    let address = listener.local_addr().unwrap();

    let counts = Arc::<Counts>::default();
    let heard = Arc::clone(&counts);
    let keys = PgKeyStore::new(pool(&settings.database));
    let store = Counted { keys: keys.clone(), counts: Arc::clone(&counts) };
    let mut builder = Authenticator::builder(store, super::format())
        .cache(settings.policy())
        .observer(move |event: &Event<'_>| heard.hear(event));
    if let Some(interval) = settings.usage_interval {
        builder = builder.usage_interval(interval);
    }
    if let Some(url) = &settings.feed {
        let mut feed = PgChangeFeed::new(pool(url));
        if let Some(heartbeat) = settings.heartbeat {
            feed = feed.heartbeat(heartbeat);
        }
        builder = builder.change_feed(CountedFeed { feed, counts: Arc::clone(&counts) });
    }
    let (auth, worker) = builder.build();

    // The worker outlives the server, so that it counts the last requests too.
    let (server_done, done) = oneshot::channel::<()>();
    let worker = tokio::spawn(worker.run(async {
        let _ = done.await;
    }));
    let app = app(Admin { keys, auth, counts });
    let end = async move {
        terminate.recv().await;
    };
    writeln!(io::stdout(), "{LISTENING}{address}").unwrap();
    let listener = listener.tap_io(|stream| stream.set_nodelay(true).unwrap());
    axum::serve(listener, app).with_graceful_shutdown(end).await.unwrap();
    drop(server_done);
    worker.await.unwrap();
}

/// The pool of [`PgKeyStore::connect`], for a database that may not be up yet.
fn pool(url: &str) -> PgPool {
    let options = PgPoolOptions::new().max_connections(5).acquire_timeout(Duration::from_secs(2));
    options.connect_lazy(url).unwrap()
}

fn app(admin: Admin) -> Router {
    let keyed = Router::new()
        .route("/", get(async |consumer: Consumer| consumer.id().to_owned()))
        .route("/events", get(events))
        .route("/socket", any(socket))
        .layer(ApiKeyLayer::new(admin.auth.clone()));
    let open = Router::new()
        .route("/issue/{count}", post(issue))
        .route("/revoke/{id}", post(revoke))
        .route("/health", get(health))
        .route("/counts", get(counts));
    let issuer = admin.auth.issuer(admin.keys.clone());
    let leaks = leaks::router(issuer, LeakPolicy::new(), GitHub::new().public_keys());
    keyed.nest("/admin", open.with_state(admin)).nest_service("/leaks", leaks)
}

/// Sends one event, and then nothing.
async fn events(consumer: Consumer) -> impl IntoResponse {
    let hello = stream::once(ready(Ok::<_, Infallible>(sse::Event::default().data("hello"))));
    let events = Sse::new(hello.chain(stream::pending()));
    UntilKeyEnds::response(events.into_response(), &consumer)
}

/// Reads from the client forever.
async fn socket(upgrade: WebSocketUpgrade, consumer: Consumer) -> impl IntoResponse {
    upgrade.on_upgrade(async move |socket| {
        until_key_ends(
            socket,
            &consumer,
            async |socket| while let Some(Ok(_)) = socket.recv().await {},
        )
        .await;
    })
}

#[derive(Clone)]
struct Admin {
    keys: PgKeyStore,
    auth: Authenticator,
    counts: Arc<Counts>,
}

type Answer = Result<Json<Value>, (StatusCode, String)>;

fn failed(error: impl Into<Box<dyn Error>>) -> (StatusCode, String) {
    (StatusCode::INTERNAL_SERVER_ERROR, error.into().to_string())
}

async fn issue(State(admin): State<Admin>, Path(count): Path<usize>) -> Answer {
    let keys = super::issue(&admin.keys, count).await.map_err(failed)?;
    Ok(Json(serde_json::to_value(keys).map_err(failed)?))
}

async fn revoke(State(admin): State<Admin>, Path(id): Path<String>) -> Answer {
    let id: KeyId = id.parse().map_err(failed)?;
    let revoked = admin.keys.revoke(id, None).await.map_err(failed)?;
    admin.auth.invalidate(&revoked.ok_or_else(|| failed("no such key"))?.key_hash);
    Ok(Json(Value::Null))
}

async fn health(State(admin): State<Admin>) -> Answer {
    let health = admin.auth.health();
    let (store, feed) = (format!("{:?}", health.store), format!("{:?}", health.feed));
    Ok(Json(json!({ "ready": health.is_ready(), "store": store, "feed": feed })))
}

async fn counts(State(admin): State<Admin>) -> Answer {
    let counts = serde_json::to_value(&*admin.counts).map_err(failed)?;
    Ok(Json(counts))
}

/// Event counters.
#[derive(Default, Serialize)]
struct Counts {
    queries: AtomicU64,
    stale_served: AtomicU64,
    loads_failed: AtomicU64,
    usage_flushes: AtomicU64,
    usage_flushes_failed: AtomicU64,
    feed_live: AtomicU64,
    feed_lost: AtomicU64,
    feed_junk: AtomicU64,
    feed_attempts: AtomicU64,
    changes: AtomicU64,
}

impl Counts {
    fn hear(&self, event: &Event<'_>) {
        let count = match event {
            Event::StaleServed { .. } => &self.stale_served,
            Event::LoadFailed { .. } => &self.loads_failed,
            Event::UsageFlushed { .. } => &self.usage_flushes,
            Event::UsageFlushFailed { .. } => &self.usage_flushes_failed,
            Event::FeedLive => &self.feed_live,
            Event::FeedLost { .. } => &self.feed_lost,
            Event::FeedMessageUnrecognized => &self.feed_junk,
            _ => return,
        };
        count.fetch_add(1, Ordering::SeqCst);
    }
}

/// Counts attempts to connect, and changes of keys.
struct CountedFeed {
    feed: PgChangeFeed,
    counts: Arc<Counts>,
}

impl ChangeFeed for CountedFeed {
    async fn connect(&mut self) -> Result<(), StoreError> {
        self.counts.feed_attempts.fetch_add(1, Ordering::SeqCst);
        self.feed.connect().await
    }

    async fn next(&mut self) -> Result<Change, StoreError> {
        let change = self.feed.next().await;
        self.counts
            .changes
            .fetch_add(u64::from(matches!(change, Ok(Change::Changed(_)))), Ordering::SeqCst);
        change
    }

    fn staleness(&self) -> Option<Staleness> {
        self.feed.staleness()
    }
}

/// Counts queries.
struct Counted {
    keys: PgKeyStore,
    counts: Arc<Counts>,
}

impl KeyStore for Counted {
    async fn find(&self, hash: &KeyHash) -> Result<Option<KeyRecord>, StoreError> {
        self.counts.queries.fetch_add(1, Ordering::SeqCst);
        self.keys.find(hash).await
    }

    async fn record_usage(&self, batch: &UsageBatch) -> Result<(), StoreError> {
        self.keys.record_usage(batch).await
    }
}
