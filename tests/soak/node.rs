//! A node: the service in a process of its own.

use std::{
    env,
    io::{self, Write},
    process,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    thread,
    time::{Duration, SystemTime},
};

use axum::{
    Json, Router,
    extract::{Path, State},
    routing::{get, post},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::postgres::PgPoolOptions;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{oneshot, watch},
};
use tower_api_key::{
    ApiKeyLayer, Authenticator, Consumer, RequireScope, admin,
    auth::{CachePolicy, Event},
    clock::{Clock, SystemClock},
    key::KeyFormat,
    manage::KeyIssuer,
    rate_limit::RedisRateLimiter,
    store::{PgChangeFeed, PgKeyStore},
};

use crate::oracle::Policy;

pub(crate) const SETTINGS: &str = "SOAK_NODE";
pub(crate) const LISTENING: &str = "listening on ";
/// Before the duration of a flush, in microseconds.
pub(crate) const FLUSHED: &str = "flushed in ";
pub(crate) const FLUSH_FAILED: &str = "flush failed";
pub(crate) const PREFIX: &str = "sk_test_";

/// Shorter than the defaults, so that a minute covers many periods. The oracle gets the same
/// values.
pub(crate) const POLICY: Policy = Policy {
    fresh: Duration::from_secs(4),
    fresh_during_gap: Duration::from_secs(1),
    stale_if_error: Duration::from_secs(3),
    // One machine runs the whole fleet; its slowness must not look like an outage of the store.
    load_deadline: Duration::from_secs(2),
    heartbeat: Duration::from_millis(500),
};

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// The database URL of look-ups and management.
    pub(crate) database: String,
    /// The database URL of the change feed.
    pub(crate) feed: String,
    pub(crate) redis: String,
}

/// Runs the node if this process was started as one; returns whether it was, after its end.
pub(crate) async fn run_if_node() -> bool {
    let Ok(settings) = env::var(SETTINGS) else { return false };
    // A node ends with the test, for any reason.
    thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        process::exit(1);
    });
    run(&serde_json::from_str(&settings).expect("the node's settings")).await;
    true
}

pub(crate) fn format() -> KeyFormat {
    KeyFormat::new(PREFIX).expect("a prefix")
}

async fn run(settings: &Settings) {
    let wall = Wall::default();
    let pool = |url: &str| {
        let options = PgPoolOptions::new().max_connections(6).acquire_timeout(SECOND * 2);
        options.connect_lazy(url).expect("a URL")
    };
    let store = PgKeyStore::new(pool(&settings.database));
    let policy = CachePolicy::default()
        .fresh(POLICY.fresh)
        .and_then(|policy| policy.fresh_during_gap(POLICY.fresh_during_gap))
        .and_then(|policy| policy.stale_if_error(POLICY.stale_if_error))
        .and_then(|policy| policy.load_deadline(POLICY.load_deadline))
        .expect("a cache policy")
        // All clients have one address, and use ended keys all the time.
        .unknown_key_queries_per_second(u32::MAX);
    // The slowness of a machine that runs the whole fleet must not look like an outage of Redis.
    let limiter = RedisRateLimiter::builder(&settings.redis).deadline(SECOND);
    let limiter = limiter.build().expect("a URL of Redis");
    let (auth, worker) = Authenticator::builder(store.clone(), format())
        .cache(policy)
        .failure_limit(u32::MAX, Duration::from_micros(1))
        .clock(wall.clone())
        .rate_limiter(limiter)
        .usage_interval(SECOND)
        .observer(tell_flush)
        .change_feed(PgChangeFeed::new(pool(&settings.feed)).heartbeat(POLICY.heartbeat))
        .build();
    let (served, end) = oneshot::channel::<()>();
    let worker = tokio::spawn(worker.run(async {
        let _ = end.await;
    }));
    let app = app(KeyIssuer::new(store, format()), &auth, wall);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    writeln!(io::stdout(), "{LISTENING}{address}").expect("standard output");
    serve(listener, app).await;
    drop(served);
    worker.await.expect("the worker");
}

/// Tells the test what is in the ledger.
fn tell_flush(event: &Event<'_>) {
    let line = match event {
        Event::UsageFlushed { took, .. } => format!("{FLUSHED}{}", took.as_micros()),
        Event::UsageFlushFailed { .. } => FLUSH_FAILED.to_owned(),
        Event::UsageDropped => panic!("a use was dropped"),
        _ => return,
    };
    // The test may have ended.
    let _ = writeln!(io::stdout(), "{line}");
}

const SECOND: Duration = Duration::from_secs(1);

/// Serves HTTP/1.1 and HTTP/2 until SIGTERM.
async fn serve(listener: TcpListener, app: Router) {
    let mut terminate = signal(SignalKind::terminate()).expect("a signal");
    let (draining, drain) = watch::channel(false);
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(_) => continue,
            },
            _ = terminate.recv() => break,
            Some(_) = connections.join_next() => continue,
        };
        let _ = stream.set_nodelay(true);
        let (app, mut drain) = (TowerToHyperService::new(app.clone()), drain.clone());
        connections.spawn(async move {
            let builder = auto::Builder::new(TokioExecutor::new());
            let connection = builder.serve_connection(TokioIo::new(stream), app);
            let mut connection = std::pin::pin!(connection);
            tokio::select! {
                _ = connection.as_mut() => return,
                _ = drain.wait_for(|draining| *draining) => {}
            }
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        });
    }
    drop(listener);
    draining.send_replace(true);
    while connections.join_next().await.is_some() {}
}

fn app(issuer: KeyIssuer, auth: &Authenticator, wall: Wall) -> Router {
    let writes = RequireScope::one("orders:write").expect("a scope");
    Router::new()
        .route("/write", get(told).layer(writes))
        .route("/", get(told))
        .layer(ApiKeyLayer::new(auth.clone()))
        .nest_service("/admin", admin::router(issuer, auth.clone()))
        .route("/wall/{millis}", post(step).with_state(wall))
}

/// Everything the layer knows about the consumer.
async fn told(consumer: Consumer) -> Json<Value> {
    Json(json!({
        "consumer": consumer.id(),
        "key": consumer.key_id().to_string(),
        "scopes": consumer.scopes(),
        "plan": consumer.plan(),
        "metadata": consumer.metadata().parse::<Value>().unwrap_or_default(),
    }))
}

async fn step(State(wall): State<Wall>, Path(millis): Path<i64>) {
    wall.0.store(millis, Ordering::SeqCst);
}

/// The system's clocks, with a wall clock that can be set.
#[derive(Clone, Default)]
struct Wall(Arc<AtomicI64>, Arc<SystemClock>);

impl Clock for Wall {
    fn now(&self) -> SystemTime {
        let millis = self.0.load(Ordering::SeqCst);
        let offset = Duration::from_millis(millis.unsigned_abs());
        let now = self.1.now();
        if millis < 0 { now - offset } else { now + offset }
    }

    fn monotonic(&self) -> Duration {
        self.1.monotonic()
    }
}
