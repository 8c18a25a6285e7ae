//! Keys that are looked up on a standby, and revocations that it has not applied.

use std::{
    future::{Future, pending},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use axum::{Router, body::Body, routing::get};
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection, query_scalar, raw_sql};
use tokio::{
    task::{JoinHandle, yield_now},
    time::{Instant, timeout},
};
use tower::ServiceExt as _;
use tower_api_key::{
    ApiKeyLayer, Authenticator, admin,
    auth::{CachePolicy, Event, FeedHealth, RejectionKind},
    key::{KeyFormat, KeyHash},
    manage::{Expiry, KeyIssuer, NewKey},
    record::{KeyId, KeyRecord, Scopes},
    store::{
        KeyStore as _, ManageKeys as _, PgChangeFeed, PgKeyStore, PollingChangeFeed,
        port::{Change, ChangeFeed},
    },
};
use tracing_subscriber::fmt::MakeWriter;

use crate::{
    raw_store::ByHand as _,
    servers::{
        postgres::{Database, Server},
        proxy::{Fault, FaultProxy},
        unique,
    },
    wait::eventually,
};

const SOON: Duration = Duration::from_secs(30);
const OFTEN: Duration = Duration::from_millis(10);
const MAX_LAG: Duration = Duration::from_millis(500);
/// The slack of a busy machine.
const SLACK: Duration = Duration::from_secs(3);
const KEY: KeyId = KeyId::from_bytes([9; 16]);

async fn soon<T>(event: impl Future<Output = T>) -> T {
    timeout(SOON, event).await.expect("it should have happened by now")
}

async fn execute(connection: &mut PgConnection, sql: impl Into<String>) {
    let sql = sql.into();
    let done = raw_sql(AssertSqlSafe(sql.clone())).execute(connection).await;
    done.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// A primary with a key, and its standby.
struct Pair {
    database: Database,
    primary: Server,
    standby: Server,
}

impl Pair {
    async fn new() -> Self {
        let primary = Server::start();
        let database = primary.database().await;
        let store = PgKeyStore::connect(database.url()).await.unwrap();
        store.migrate().await.unwrap();
        let hash = KeyHash::from_bytes([9; 32]);
        store.insert(&KeyRecord::new(KEY, hash, "acme", SystemTime::UNIX_EPOCH)).await.unwrap();
        let standby = primary.standby();
        Self { database, primary, standby }
    }

    fn replica_url(&self) -> String {
        self.standby.url(self.database.url().rsplit('/').next().unwrap())
    }

    async fn replica(&self) -> PgKeyStore {
        PgKeyStore::connect(&self.replica_url()).await.unwrap()
    }

    async fn feed(&self) -> PollingChangeFeed<PgKeyStore> {
        PollingChangeFeed::new(self.replica().await).interval(OFTEN).max_lag(MAX_LAG)
    }

    async fn prompt(&self) -> PgConnection {
        PgConnection::connect(self.database.url()).await.unwrap()
    }

    async fn pause_replay(&self) {
        let mut admin = PgConnection::connect(&self.replica_url()).await.unwrap();
        execute(&mut admin, "select pg_wal_replay_pause()").await;
        let paused = async {
            let state = "select pg_get_wal_replay_pause_state() = 'paused'";
            while !query_scalar::<_, bool>(state).fetch_one(&mut admin).await.unwrap() {}
        };
        soon(paused).await;
    }

    async fn resume_replay(&self) {
        let mut admin = PgConnection::connect(&self.replica_url()).await.unwrap();
        execute(&mut admin, "select pg_wal_replay_resume()").await;
    }

    /// From now on, the standby replicates through `proxy`.
    async fn follow_through(&self, proxy: &FaultProxy, settings: &str) {
        let mut admin = PgConnection::connect(&self.replica_url()).await.unwrap();
        let conninfo = format!(
            "alter system set primary_conninfo = 'host=127.0.0.1 port={} user=postgres'",
            proxy.addr().port()
        );
        execute(&mut admin, conninfo).await;
        if !settings.is_empty() {
            execute(&mut admin, format!("alter system set {settings}")).await;
        }
        execute(&mut admin, "select pg_reload_conf()").await;
        let port = i32::from(proxy.addr().port());
        let connected = async {
            let sql = "select exists (select from pg_stat_wal_receiver \
                       where sender_port = $1 and status = 'streaming')";
            while !query_scalar::<_, bool>(sql).bind(port).fetch_one(&mut admin).await.unwrap() {}
        };
        soon(connected).await;
    }
}

async fn touch(connection: &mut PgConnection) {
    execute(connection, format!("update api_keys set name = '{}'", unique())).await;
}

/// The time until the polled standby becomes, or is no longer, too far behind.
async fn until(feed: &mut impl ChangeFeed, is_too_old: bool) -> Duration {
    let begun = Instant::now();
    soon(async {
        while feed.staleness().is_some_and(|staleness| staleness.is_too_old) != is_too_old {
            feed.next().await.unwrap();
        }
    })
    .await;
    begun.elapsed()
}

/// Nothing happens for several times `max_lag`.
async fn stays_current(feed: &mut impl ChangeFeed) {
    let begun = Instant::now();
    while begun.elapsed() < 3 * MAX_LAG {
        let change = soon(feed.next()).await.unwrap();
        assert!(matches!(change, Change::Heartbeat { .. }), "{change:?}");
        let staleness = feed.staleness().expect("it is a standby");
        assert!(!staleness.is_too_old, "{staleness:?}");
    }
}

async fn told(feed: &mut impl ChangeFeed, change: Change) {
    soon(async { while feed.next().await.unwrap() != change {} }).await;
}

#[tokio::test]
async fn a_standby_is_behind_when_its_replay_is_paused_and_not_when_its_primary_is_idle() {
    let pair = Pair::new().await;
    let mut prompt = pair.prompt().await;
    // With a role that may read the log, and nothing else, not even statistics.
    execute(&mut prompt, "create role poller; grant select on api_key_changes to poller").await;
    let mut feed = pair.feed().await;
    let url = format!("{}?options=-crole=poller", pair.replica_url());
    soon(async { while PgConnection::connect(&url).await.is_err() {} }).await;
    let of_poller = PgKeyStore::connect(&url).await.unwrap();
    let mut of_poller = PollingChangeFeed::new(of_poller).interval(OFTEN).max_lag(MAX_LAG);
    soon(feed.connect()).await.unwrap();
    soon(of_poller.connect()).await.unwrap();
    until(&mut feed, false).await;
    until(&mut of_poller, false).await;
    tokio::join!(stays_current(&mut feed), stays_current(&mut of_poller));

    pair.pause_replay().await;
    touch(&mut prompt).await;
    let (took, took_poller) = tokio::join!(until(&mut feed, true), until(&mut of_poller, true));
    println!("replay paused: noticed after {took:.1?} and {took_poller:.1?}");
    assert!(took.max(took_poller) < MAX_LAG + SLACK, "{took:?} {took_poller:?}");
    assert!(feed.staleness().unwrap().age >= MAX_LAG);
    // Also with a new feed.
    let mut late = pair.feed().await;
    soon(late.connect()).await.unwrap();
    until(&mut late, true).await;

    pair.resume_replay().await;
    for feed in [&mut feed, &mut of_poller] {
        told(feed, Change::Changed(KEY)).await;
        until(feed, false).await;
    }
}

#[tokio::test]
async fn a_standby_is_behind_when_it_is_cut_off() {
    let pair = Pair::new().await;
    let mut prompt = pair.prompt().await;
    let proxy = FaultProxy::start(pair.primary.addr()).await;
    pair.follow_through(&proxy, "wal_receiver_timeout = '1s'").await;
    let mut feed = pair.feed().await;
    let primary = PgKeyStore::connect(pair.database.url()).await.unwrap();
    let mut sure = pair.feed().await.primary(primary);
    for fault in [Fault::Refuse, Fault::BlackHole] {
        soon(feed.connect()).await.unwrap();
        soon(sure.connect()).await.unwrap();
        until(&mut feed, false).await;
        until(&mut sure, false).await;
        stays_current(&mut feed).await;
        stays_current(&mut sure).await;

        proxy.set(fault).await;
        touch(&mut prompt).await;
        let (took, took_sure) = tokio::join!(until(&mut feed, true), until(&mut sure, true));
        println!("{fault:?}: noticed after {took:.1?}, and {took_sure:.1?} by asking the primary");
        // The standby needs its time-out to notice a dead connection; the primary notices at once.
        assert!(took < Duration::from_secs(1) + MAX_LAG + SLACK, "{fault:?}: {took:?}");
        assert!(took_sure < MAX_LAG + SLACK, "{fault:?}: {took_sure:?}");

        proxy.set(Fault::Pass).await;
        told(&mut feed, Change::Changed(KEY)).await;
        until(&mut feed, false).await;
        until(&mut sure, false).await;
    }
}

#[tokio::test]
async fn a_primary_that_does_not_say_how_far_it_is_vouches_for_nothing() {
    let pair = Pair::new().await;
    let proxy = FaultProxy::start(pair.primary.addr()).await;
    let primary = PgKeyStore::connect(&proxy.url(pair.database.url())).await.unwrap();
    let mut feed = pair.feed().await.primary(primary);
    soon(feed.connect()).await.unwrap();
    until(&mut feed, false).await;
    for fault in [Fault::Refuse, Fault::BlackHole] {
        proxy.set(fault).await;
        until(&mut feed, true).await;
        // Changes are announced nevertheless.
        touch(&mut pair.prompt().await).await;
        told(&mut feed, Change::Changed(KEY)).await;
        proxy.set(Fault::Pass).await;
        until(&mut feed, false).await;
    }
    // A standby is not a primary.
    let mut feed = pair.feed().await.primary(pair.replica().await);
    soon(feed.connect()).await.unwrap();
    until(&mut feed, true).await;
}

#[tokio::test]
async fn a_key_that_was_revoked_stops_although_its_standby_has_stopped() {
    const FRESH: Duration = Duration::from_millis(800);
    const STALE_IF_ERROR: Duration = Duration::from_millis(700);
    let pair = Pair::new().await;
    let format = || KeyFormat::new("sk_test_").unwrap();
    let store = PgKeyStore::connect(pair.database.url()).await.unwrap();
    let issuer = KeyIssuer::new(store.clone(), format());
    let mut keys = Vec::new();
    for _ in 0..2 {
        keys.push(issuer.issue(NewKey::new("acme", Expiry::Never)).await.unwrap());
    }
    let policy = CachePolicy::default().fresh(FRESH).unwrap();
    let policy = policy.fresh_during_gap(Duration::from_millis(100)).unwrap();
    let policy = policy.stale_if_error(STALE_IF_ERROR).unwrap();
    let (auth, worker) = Authenticator::builder(pair.replica().await, format())
        .cache(policy.load_deadline(SLACK).unwrap())
        .change_feed(pair.feed().await)
        .build();
    let worker = tokio::spawn(worker.run(pending()));
    let text = |key: usize| keys[key].key.expose_secret().as_bytes();
    let is_live = || matches!(auth.health().feed, FeedHealth::Live { .. });
    let admitted = async |key| auth.check(text(key)).await.is_ok();
    let ready = async {
        while !(admitted(0).await && admitted(1).await && is_live()) {
            yield_now().await;
        }
    };
    soon(ready).await;

    pair.pause_replay().await;
    let revoked = Instant::now();
    store.revoke(keys[0].record.id, None).await.unwrap();
    let behind = async {
        while !matches!(auth.health().feed, FeedHealth::Behind { .. }) {
            admitted(0).await;
            yield_now().await;
        }
    };
    soon(behind).await;
    assert!(revoked.elapsed() < MAX_LAG + SLACK, "{:?}", revoked.elapsed());
    let refused = async {
        while admitted(0).await {
            yield_now().await;
        }
    };
    soon(refused).await;
    let took = revoked.elapsed();
    println!("revoked where its standby does not hear of it: refused after {took:.1?}");
    assert!(took < MAX_LAG + FRESH + STALE_IF_ERROR + SLACK, "{took:?}");
    // As long as the standby is stopped, for the same time as in an outage.
    for _ in 0..20 {
        let rejection = auth.check(text(0)).await.unwrap_err();
        assert_eq!(rejection.kind(), RejectionKind::StoreUnavailable);
    }

    pair.resume_replay().await;
    let live = async {
        while !is_live() {
            yield_now().await;
        }
    };
    soon(live).await;
    let rejection = auth.check(text(0)).await.unwrap_err();
    assert_eq!(rejection.kind(), RejectionKind::Revoked);
    assert!(admitted(1).await);
    worker.abort();
}

const ADMIN: [&str; 2] = ["api-keys:read", "api-keys:write"];

/// A service with the management routes.
struct Service {
    app: Router,
    auth: Authenticator,
    heard: Arc<Mutex<Vec<&'static str>>>,
}

impl Service {
    /// Looks keys up in one store, and changes them in another, which may be the same.
    fn new(
        look_ups: PgKeyStore,
        changes: PgKeyStore,
        feed: impl ChangeFeed,
    ) -> (Self, JoinHandle<()>) {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let hear = Arc::clone(&heard);
        let format = KeyFormat::new("sk_test_").unwrap();
        let (auth, worker) = Authenticator::builder(look_ups, format.clone())
            .cache(CachePolicy::default().load_deadline(SLACK).unwrap())
            .change_feed(feed)
            .usage_interval(OFTEN)
            .observer(move |event: &Event<'_>| {
                hear.lock().unwrap().push(match event {
                    Event::UsageFlushFailed { .. } => "usage flush failed",
                    Event::FeedLost { .. } => "feed lost",
                    Event::FeedLive => "feed live",
                    _ => return,
                });
            })
            .build();
        let issuer = KeyIssuer::new(changes, format).invalidates(auth.clone());
        let app = Router::new()
            .route("/", get(async || "hello"))
            .layer(ApiKeyLayer::new(auth.clone()))
            .nest_service("/admin", admin::router(issuer, auth.clone()));
        (Self { app, auth, heard }, tokio::spawn(worker.run(pending())))
    }

    async fn send(&self, method: &str, path: &str, key: &str, body: Option<Value>) -> Answer {
        let request = Request::builder().method(method).uri(path);
        let request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        let request = match body {
            Some(body) => request
                .header(header::CONTENT_TYPE, "application/json")
                .body(Body::from(body.to_string())),
            None => request.body(Body::empty()),
        };
        let (parts, body) =
            soon(self.app.clone().oneshot(request.unwrap())).await.unwrap().into_parts();
        let body = String::from_utf8(body.collect().await.unwrap().to_bytes().into()).unwrap();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    async fn get(&self, key: &str) -> StatusCode {
        self.send("GET", "/", key, None).await.status
    }

    fn heard(&self, what: &str) -> usize {
        self.heard.lock().unwrap().iter().filter(|heard| **heard == what).count()
    }

    async fn hears(&self, what: &str, times: usize) {
        soon(async {
            while self.heard(what) < times {
                yield_now().await;
            }
        })
        .await;
    }
}

#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

/// A key of `consumer`, as issued on the primary.
async fn issue(pair: &Pair, consumer: &str, scopes: &[&str]) -> (String, KeyId) {
    let store = PgKeyStore::connect(pair.database.url()).await.unwrap();
    let issuer = KeyIssuer::new(store, KeyFormat::new("sk_test_").unwrap());
    let scopes = Scopes::parse(scopes.iter().copied()).unwrap();
    let issued = issuer.issue(NewKey::new(consumer, Expiry::Never).scopes(scopes)).await.unwrap();
    // Waits until the standby has it.
    let replica = pair.replica().await;
    let there = async || replica.find(&issued.record.key_hash).await.unwrap().is_some();
    eventually("the standby has the key", there).await;
    (issued.key.expose_secret().to_owned(), issued.record.id)
}

/// What was logged on this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn listen() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(log.clone());
        let subscriber = subscriber.with_env_filter("tower_api_key=warn").finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    fn lines(&self) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// A service that uses the URL of a standby for everything.
#[tokio::test]
async fn a_service_on_a_standby_lets_keys_in_refuses_changes_with_503_and_logs_each_reason_once() {
    let pair = Pair::new().await;
    let (admin, id) = issue(&pair, "acme", &ADMIN).await;
    let (log, _guard) = Log::listen();
    let store = pair.replica().await;
    let feed = PgChangeFeed::new(store.pool().clone());
    let (service, worker) = Service::new(store.clone(), store, feed);
    service.hears("feed lost", 1).await;
    let unknown = KeyFormat::new("sk_test_").unwrap().generate().unwrap();
    let new = json!({ "consumer_id": "acme", "expires": "never" });
    for round in 1..4 {
        assert_eq!(service.get(&admin).await, StatusCode::OK);
        assert_eq!(service.get(unknown.expose_secret()).await, StatusCode::UNAUTHORIZED);
        let list = service.send("GET", "/admin/api-keys", &admin, None).await;
        assert_eq!(list.status, StatusCode::OK, "{list:?}");
        for (path, body) in [
            ("/admin/api-keys".to_owned(), new.clone()),
            (format!("/admin/api-keys/{id}/revoke"), json!({ "reason": "leaked" })),
        ] {
            let refused = service.send("POST", &path, &admin, Some(body)).await;
            assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE, "{refused:?}");
            assert!(refused.headers.contains_key(header::RETRY_AFTER), "{refused:?}");
            let problem: Value = serde_json::from_str(&refused.body).unwrap();
            assert_eq!(problem["code"], "service_unavailable", "{refused:?}");
            assert!(!refused.body.contains("standby"), "that is for operators: {refused:?}");
        }
        // Uses cannot be written either.
        service.hears("usage flush failed", round).await;
    }
    worker.abort();
    let lines = log.lines();
    for (message, advice) in [
        ("key management failed", "a separate store that connects to the primary"),
        ("usage flush failed", "standby"),
        ("change feed lost", "LISTEN"),
    ] {
        let said: Vec<_> = lines.iter().filter(|line| line.contains(message)).collect();
        let [said] = &said[..] else { panic!("{message}: {said:#?}") };
        assert!(said.contains("WARN") && said.contains(advice), "{said}");
    }
    assert_eq!(lines.len(), 3, "{lines:#?}");
    assert_eq!(service.heard("feed live"), 0);
}

/// The same service, with the right feed for a standby and a store for changes on the primary.
#[tokio::test]
async fn a_service_on_a_standby_that_polls_it_and_manages_keys_on_the_primary_lacks_nothing() {
    let pair = Pair::new().await;
    let (admin, _) = issue(&pair, "acme", &ADMIN).await;
    let (log, _guard) = Log::listen();
    let primary = PgKeyStore::connect(pair.database.url()).await.unwrap();
    let (service, worker) = Service::new(pair.replica().await, primary, pair.feed().await);
    service.hears("feed live", 1).await;
    let new = json!({ "consumer_id": "acme", "expires": "never" });
    let issued = service.send("POST", "/admin/api-keys", &admin, Some(new)).await;
    assert_eq!(issued.status, StatusCode::CREATED, "{issued:?}");
    let issued: Value = serde_json::from_str(&issued.body).unwrap();
    let (key, id) = (issued["key"].as_str().unwrap(), issued["id"].as_str().unwrap());
    eventually("the key is let in", async || service.get(key).await == StatusCode::OK).await;
    // A revocation elsewhere is announced.
    let store = PgKeyStore::connect(pair.database.url()).await.unwrap();
    store.revoke(id.parse().unwrap(), None).await.unwrap();
    eventually("the key is refused", async || service.get(key).await != StatusCode::OK).await;
    assert_eq!(service.get(key).await, StatusCode::UNAUTHORIZED);
    worker.abort();
    let about_uses = |line: &String| line.contains("usage flush failed");
    let lines: Vec<_> = log.lines().into_iter().filter(|line| !about_uses(line)).collect();
    let [line] = &lines[..] else { panic!("{lines:#?}") };
    assert!(line.contains("revoked key used") && line.contains(id), "{line}");
}

#[tokio::test]
async fn a_standby_that_has_not_applied_a_revocation_revives_no_key_that_this_node_has_revoked() {
    let pair = Pair::new().await;
    let (admin, _) = issue(&pair, "acme", &ADMIN).await;
    let (known, known_id) = issue(&pair, "acme", &[]).await;
    let (cold, cold_id) = issue(&pair, "acme", &[]).await;
    let (bystander, _) = issue(&pair, "acme", &[]).await;
    let (primary, replica) =
        (PgKeyStore::connect(pair.database.url()).await.unwrap(), pair.replica().await);
    let (service, worker) = Service::new(replica.clone(), primary, pair.feed().await);
    service.hears("feed live", 1).await;
    assert_eq!(service.get(&known).await, StatusCode::OK);
    assert_eq!(service.get(&bystander).await, StatusCode::OK);

    pair.pause_replay().await;
    for id in [known_id, cold_id] {
        let path = format!("/admin/api-keys/{id}/revoke");
        let revoked = service.send("POST", &path, &admin, Some(json!({}))).await;
        assert!(revoked.status.is_success(), "{revoked:?}");
    }
    for round in 0..20 {
        for (key, id) in [(&known, known_id), (&cold, cold_id)] {
            assert_eq!(service.get(key).await, StatusCode::UNAUTHORIZED, "round {round}");
            let old = replica.get(id).await.unwrap().unwrap();
            assert_eq!(old.revoked_at, None, "the standby has old data");
        }
        if round % 5 == 4 {
            // Even if nothing is cached.
            service.auth.invalidate_all();
        }
    }
    assert_eq!(service.get(&bystander).await, StatusCode::OK);

    pair.resume_replay().await;
    let applied = async || replica.get(cold_id).await.unwrap().unwrap().revoked_at.is_some();
    eventually("the standby has applied the revocation", applied).await;
    for key in [&known, &cold] {
        assert_eq!(service.get(key).await, StatusCode::UNAUTHORIZED);
    }
    worker.abort();
}
