//! The whole service while its database misbehaves: known keys keep working, unknown ones get 503,
//! and all get correct responses as soon as the database is back.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use sqlx::{
    PgPool, PgTransaction,
    postgres::{PgConnectOptions, PgPoolOptions},
    query, query_scalar,
};
use tokio::{
    sync::{Barrier, oneshot},
    task::JoinSet,
    time::Instant,
};
use tower_api_key::{
    auth::{Builder, CachePolicy, RejectionKind, Worker},
    clock::{Clock, ManualClock},
    key::KeyHash,
    manage::{Expiry, KeyIssuer, NewKey},
    record::KeyRecord,
    store::{
        KeyStore, ManageKeys, PgChangeFeed, PgKeyStore, StoreError, StoreErrorKind,
        port::UsageBatch,
    },
};

use crate::wait::eventually;
use crate::{
    doubles::{Key, Said, Service, format, unknown_key, within},
    raw_store::ByHand as _,
    servers::{
        postgres::{Database, Server},
        proxy::{Fault, FaultProxy},
    },
};

const SECOND: Duration = Duration::from_secs(1);
/// The slack of a deadline of half a second on a busy machine.
const PROMPTLY: Duration = Duration::from_secs(2);
/// The defaults.
const FRESH: Duration = Duration::from_secs(60);
const STALE_IF_ERROR: Duration = Duration::from_secs(600);
const COOL_DOWN: Duration = Duration::from_millis(250);

/// A service whose database is behind a proxy.
struct Node {
    service: Service<Counted<PgKeyStore>>,
    worker: Option<Worker>,
    proxy: FaultProxy,
    /// The store through the proxy, as the service uses it.
    pool: PgPool,
    /// The store past the proxy, as an administrator elsewhere uses it.
    direct: PgKeyStore,
    _database: Database,
}

impl Node {
    /// The library's default.
    async fn start() -> Self {
        Self::with(5, |builder| builder).await
    }

    /// Long enough for look-ups that must succeed on a busy machine.
    async fn patient() -> Self {
        Self::with(5, patient).await
    }

    async fn with(connections: u32, settings: impl FnOnce(Builder) -> Builder) -> Self {
        Self::of(Server::shared(), connections, settings).await
    }

    async fn of(
        server: &Server,
        connections: u32,
        settings: impl FnOnce(Builder) -> Builder,
    ) -> Self {
        let database = server.database().await;
        let direct = PgKeyStore::new(database.pool().await);
        direct.migrate().await.unwrap();
        let proxy = FaultProxy::start(server.addr()).await;
        // Otherwise sqlx's defaults, such as an acquire timeout of 30 seconds.
        let pool = PgPoolOptions::new().max_connections(connections);
        let address: PgConnectOptions = proxy.url(database.url()).parse().unwrap();
        let pool = pool.connect_lazy_with(address.application_name("the service"));
        // One pool for everything, so that a test sees what look-ups leave of it.
        let store = PgKeyStore::builder().lookup_pool(pool.clone()).build(pool.clone());
        let store = Counted::new(store.unwrap());
        let (service, worker) = Service::around(store, ManualClock::default(), settings);
        Self { service, worker: Some(worker), proxy, pool, direct, _database: database }
    }

    async fn issue(&self, consumer: &str) -> Key {
        let issuer = KeyIssuer::new(self.direct.clone(), format());
        Key::from(issuer.issue(NewKey::new(consumer, Expiry::Never)).await.unwrap())
    }

    /// A key that the service knows.
    async fn known(&self, consumer: &str) -> Key {
        let key = self.issue(consumer).await;
        self.service.get(&key.text).await.is_for(consumer);
        key
    }

    fn queries(&self) -> usize {
        self.service.store.queries()
    }

    /// Checks for a prompt 503.
    async fn is_unavailable(&self, key: &str) {
        let begun = Instant::now();
        let reply = self.service.get(key).await;
        let took = begun.elapsed();
        reply.is_unavailable(RejectionKind::StoreUnavailable);
        assert!(took < PROMPTLY, "{took:?}");
    }

    /// Blocks every look-up until the transaction ends.
    async fn lock(&self) -> PgTransaction<'static> {
        let mut transaction = self.direct.pool().begin().await.unwrap();
        let lock = query("lock table api_keys in access exclusive mode");
        lock.execute(&mut *transaction).await.unwrap();
        transaction
    }

    async fn look_ups_are_stuck(&self, count: i64) {
        let stuck = "select count(*) from pg_stat_activity \
                     where datname = current_database() and wait_event_type = 'Lock'";
        eventually("look-ups are stuck", async || {
            let stuck: i64 = query_scalar(stuck).fetch_one(self.direct.pool()).await.unwrap();
            stuck == count
        })
        .await;
    }

    async fn connections_at_the_server(&self) -> i64 {
        let count = "select count(*) from pg_stat_activity \
                     where datname = current_database() and application_name = 'the service'";
        query_scalar(count).fetch_one(self.direct.pool()).await.unwrap()
    }

    /// Checks that all connections of the pool can be acquired at once.
    async fn has_its_whole_pool(&self) {
        let mut connections = Vec::new();
        for _ in 0..self.pool.options().get_max_connections() {
            connections.push(within(self.pool.acquire()).await.unwrap());
        }
        drop(connections);
        self.is_quiet().await;
    }

    /// Waits until no connection is in use, not even for a check that it still works.
    async fn is_quiet(&self) {
        let pool = &self.pool;
        let idle = async || usize::try_from(pool.size()).unwrap() == pool.num_idle();
        eventually("all connections are idle", idle).await;
    }
}

/// Only a failed test waits this long. The clock stands still, so no query budget refills.
fn patient(builder: Builder) -> Builder {
    let policy = CachePolicy::default().unknown_key_queries_per_second(u32::MAX);
    builder.cache(policy.load_deadline(20 * SECOND).unwrap())
}

/// Counts look-ups.
#[derive(Clone)]
struct Counted<S> {
    inner: S,
    queries: Arc<AtomicUsize>,
}

impl<S> Counted<S> {
    fn new(inner: S) -> Self {
        Self { inner, queries: Arc::default() }
    }

    fn queries(&self) -> usize {
        self.queries.load(Ordering::SeqCst)
    }
}

impl<S: KeyStore> KeyStore for Counted<S> {
    async fn find(&self, hash: &KeyHash) -> Result<Option<KeyRecord>, StoreError> {
        self.queries.fetch_add(1, Ordering::SeqCst);
        self.inner.find(hash).await
    }

    async fn record_usage(&self, batch: &UsageBatch) -> Result<(), StoreError> {
        self.inner.record_usage(batch).await
    }
}

// All is well.

#[tokio::test]
async fn a_key_is_found_by_one_query_and_then_without_the_database() {
    let node = Node::patient().await;
    let key = node.known("acme").await;
    assert_eq!(node.queries(), 1);
    node.is_quiet().await;
    let bytes = node.proxy.bytes_from_server();
    for _ in 0..1_000 {
        node.service.get_at_once(&key.text).is_for("acme");
    }
    assert_eq!(node.queries(), 1);
    assert_eq!(node.proxy.bytes_from_server(), bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_first_requests_of_a_key_make_one_query() {
    let node = Node::patient().await;
    let key = node.issue("acme").await;
    let start = Arc::new(Barrier::new(1_000));
    let mut clients = JoinSet::new();
    for _ in 0..1_000 {
        let (start, request) = (Arc::clone(&start), node.service.request(&key.text));
        clients.spawn(async move {
            start.wait().await;
            request.await
        });
    }
    while let Some(reply) = within(clients.join_next()).await {
        reply.unwrap().is_for("acme");
    }
    assert_eq!(node.queries(), 1);
}

#[tokio::test]
async fn a_revoked_key_is_refused_by_the_next_request() {
    let node = Node::patient().await;
    let key = node.known("acme").await;
    node.direct.revoke(key.record.id, Some("leaked")).await.unwrap();
    node.service.auth.invalidate(&key.record.key_hash);
    node.service.get(&key.text).await.is_refused(RejectionKind::Revoked);
    node.service.get_at_once(&key.text).is_refused(RejectionKind::Revoked);
}

#[tokio::test]
async fn a_key_revoked_elsewhere_is_refused_within_a_minute() {
    let node = Node::patient().await;
    let key = node.known("acme").await;
    node.direct.revoke(key.record.id, None).await.unwrap();
    node.service.clock.advance(FRESH);
    node.service.get(&key.text).await.is_refused(RejectionKind::Revoked);
}

#[tokio::test]
async fn one_connection_is_enough_for_look_ups_usage_and_administration() {
    let mut node = Node::with(1, patient).await;
    let mut keys = Vec::new();
    for number in 0..50 {
        keys.push((node.issue(&format!("consumer {number}")).await, number));
    }
    let requests: Vec<_> = keys.iter().map(|(key, _)| node.service.begin(&key.text)).collect();
    for ((_, number), request) in keys.iter().zip(requests) {
        within(request).await.is_for(&format!("consumer {number}"));
    }
    within(node.worker.take().unwrap().run(async {})).await;
    assert_eq!(node.service.heard.take(), [Said::UsageFlushed(50)]);

    let admin = PgKeyStore::new(node.pool.clone());
    let (key, _) = &keys[0];
    assert!(within(admin.last_used_at(key.record.id)).await.unwrap().is_some());
    within(admin.revoke(key.record.id, None)).await.unwrap();
    node.service.auth.invalidate(&key.record.key_hash);
    node.service.get(&key.text).await.is_refused(RejectionKind::Revoked);
}

#[tokio::test]
async fn columns_added_under_a_running_service_are_no_outage() {
    let node = Node::patient().await;
    let key = node.known("acme").await;
    for statement in [
        "alter table api_keys add column added_later text default 'so what'",
        "alter table api_keys alter column name set default 'nameless'",
    ] {
        query(statement).execute(node.direct.pool()).await.unwrap();
        node.service.auth.invalidate_all();
        node.service.get(&key.text).await.is_for("acme");
    }
}

// No database.

#[tokio::test]
async fn a_fresh_key_does_not_notice_that_connections_are_refused() {
    let node = Node::patient().await;
    let key = node.known("acme").await;
    node.proxy.set(Fault::Refuse).await;
    for _ in 0..100 {
        node.service.get_at_once(&key.text).is_for("acme");
    }
    assert_eq!(node.queries(), 1);
    assert_eq!(node.service.heard.take(), []);
}

#[tokio::test]
async fn a_known_key_is_let_in_for_ten_minutes_more_and_then_hears_503() {
    let node = Node::start().await;
    let key = node.known("acme").await;
    node.proxy.set(Fault::Refuse).await;
    node.service.clock.advance(FRESH);
    node.service.get(&key.text).await.is_for("acme");
    assert_eq!(node.service.heard.count(Said::StaleServed(key.record.id)), 1);
    node.service.clock.advance(STALE_IF_ERROR - SECOND);
    node.service.get(&key.text).await.is_for("acme");
    node.service.clock.advance(SECOND);
    node.is_unavailable(&key.text).await;

    node.proxy.set(Fault::Pass).await;
    node.service.clock.advance(COOL_DOWN);
    node.service.get(&key.text).await.is_for("acme");
}

#[tokio::test]
async fn an_old_record_lets_nobody_in_past_its_expiry() {
    let node = Node::start().await;
    let issuer = KeyIssuer::new(node.direct.clone(), format());
    let issued = issuer.issue(NewKey::new("acme", Expiry::In(2 * FRESH))).await.unwrap();
    let key = Key::from(issued);
    node.service.get(&key.text).await.is_for("acme");
    node.proxy.set(Fault::Refuse).await;
    // The database's clock has advanced a little since the key was issued.
    node.service.clock.advance(2 * FRESH - 30 * SECOND);
    node.service.get(&key.text).await.is_for("acme");
    node.service.clock.advance(30 * SECOND);
    node.service.get(&key.text).await.is_refused(RejectionKind::Expired);
}

#[tokio::test]
async fn a_key_nobody_knows_yet_hears_503_until_the_database_is_back() {
    let node = Node::start().await;
    let (key, unknown) = (node.issue("acme").await, unknown_key());
    node.proxy.set(Fault::Refuse).await;
    for _ in 0..3 {
        node.is_unavailable(&key.text).await;
        node.is_unavailable(&unknown).await;
    }
    node.proxy.set(Fault::Pass).await;
    node.service.clock.advance(COOL_DOWN);
    node.service.get(&key.text).await.is_for("acme");
    node.service.get(&unknown).await.is_refused(RejectionKind::Unknown);
    node.has_its_whole_pool().await;
}

#[tokio::test]
async fn a_service_started_before_its_database_becomes_ready_by_itself() {
    let node = Node::start().await;
    let key = node.issue("acme").await;
    node.proxy.set(Fault::Refuse).await;
    assert_eq!(node.pool.size(), 0, "it has never been connected");
    node.is_unavailable(&key.text).await;
    node.proxy.set(Fault::Pass).await;
    node.service.get(&key.text).await.is_for("acme");
}

#[tokio::test]
async fn a_database_that_is_down_is_left_alone() {
    let node = Node::patient().await;
    let key = node.known("acme").await;
    node.proxy.set(Fault::Rst).await;
    for _ in 0..5 {
        node.is_unavailable(&unknown_key()).await;
    }
    let (connections, queries) = (node.proxy.connections(), node.queries());
    for _ in 0..1_000 {
        let reply = node.service.get(&unknown_key()).await;
        reply.is_unavailable(RejectionKind::StoreUnavailable);
    }
    assert_eq!((node.proxy.connections(), node.queries()), (connections, queries));
    node.service.get_at_once(&key.text).is_for("acme");

    node.service.clock.advance(COOL_DOWN);
    node.is_unavailable(&unknown_key()).await;
    assert_eq!(node.queries(), queries + 1, "one probe");

    node.proxy.set(Fault::Pass).await;
    node.service.clock.advance(COOL_DOWN);
    node.service.get(&unknown_key()).await.is_refused(RejectionKind::Unknown);
}

#[tokio::test]
async fn a_server_that_crashes_and_starts_again_costs_known_keys_nothing() {
    let server = Server::start();
    let node = Node::of(&server, 5, |builder| builder).await;
    let (known, other) = (node.known("acme").await, node.issue("other").await);
    let unknown = unknown_key();
    server.stop_immediate().await;
    node.service.get_at_once(&known.text).is_for("acme");
    for _ in 0..3 {
        node.is_unavailable(&other.text).await;
        node.is_unavailable(&unknown).await;
    }
    node.service.get_at_once(&known.text).is_for("acme");
    node.service.clock.advance(FRESH);
    node.service.get(&known.text).await.is_for("acme");

    server.start_again().await;
    node.service.clock.advance(COOL_DOWN);
    node.service.get(&other.text).await.is_for("other");
    node.service.get(&unknown).await.is_refused(RejectionKind::Unknown);
    node.service.get(&known.text).await.is_for("acme");
    node.has_its_whole_pool().await;
}

// A database that does not respond.

#[tokio::test]
async fn a_database_that_goes_silent_is_waited_for_no_longer_than_the_deadline() {
    let node = Node::with(3, |builder| builder).await;
    let known = node.known("acme").await;
    let others = [node.issue("a").await, node.issue("b").await, node.issue("c").await];
    node.proxy.set(Fault::BlackHole).await;
    // Through the existing connection, through new ones, and beyond the size of the pool.
    let begun = Instant::now();
    let mut requests: Vec<_> = others.iter().map(|key| node.service.begin(&key.text)).collect();
    requests.push(node.service.begin(&unknown_key()));
    node.service.get_at_once(&known.text).is_for("acme");
    for request in requests {
        within(request).await.is_unavailable(RejectionKind::StoreUnavailable);
    }
    assert!(begun.elapsed() < PROMPTLY, "{:?}", begun.elapsed());
    node.is_unavailable(&others[0].text).await;
    node.service.get_at_once(&known.text).is_for("acme");

    node.proxy.set(Fault::Pass).await;
    node.service.clock.advance(COOL_DOWN);
    for (key, consumer) in others.iter().zip(["a", "b", "c"]) {
        node.service.get(&key.text).await.is_for(consumer);
    }
    node.has_its_whole_pool().await;
}

#[tokio::test]
async fn connections_that_went_silent_in_the_pool_are_replaced() {
    let node = Node::with(3, |builder| builder).await;
    let key = node.issue("acme").await;
    node.has_its_whole_pool().await;
    assert_eq!(node.pool.num_idle(), 3);
    node.proxy.set(Fault::BlackHole).await;
    node.is_unavailable(&key.text).await;
    node.proxy.set(Fault::Pass).await;
    // Two connections are left, and each costs one look-up.
    let mut failures = 0;
    loop {
        node.service.clock.advance(COOL_DOWN);
        let reply = node.service.get(&key.text).await;
        if reply.status.is_success() {
            break;
        }
        reply.is_unavailable(RejectionKind::StoreUnavailable);
        failures += 1;
        assert!(failures <= 2, "the pool does not recover");
    }
    assert_eq!(failures, 2);
    node.service.auth.invalidate_all();
    node.service.get(&key.text).await.is_for("acme");
}

#[tokio::test]
async fn a_slow_database_slows_nobody_down_whose_key_is_known() {
    let slow = Duration::from_millis(200);
    for fault in [Fault::Delay(slow / 4), Fault::Delay(slow), Fault::Jitter(slow)] {
        let node = Node::patient().await;
        let known = node.known("acme").await;
        let others = ["a", "b", "c"];
        let keys = [node.issue("a").await, node.issue("b").await, node.issue("c").await];
        node.proxy.set(fault).await;
        let requests = keys.each_ref().map(|key| node.service.begin(&key.text));
        for _ in 0..1_000 {
            node.service.get_at_once(&known.text).is_for("acme");
        }
        for (request, consumer) in requests.into_iter().zip(others) {
            within(request).await.is_for(consumer);
        }
    }
}

#[tokio::test]
async fn a_database_slower_than_the_deadline_is_as_good_as_none() {
    let node = Node::start().await;
    let (known, other) = (node.known("acme").await, node.issue("other").await);
    node.proxy.set(Fault::Delay(SECOND)).await;
    node.is_unavailable(&other.text).await;
    node.service.get_at_once(&known.text).is_for("acme");
    node.proxy.set(Fault::Pass).await;
    node.service.get(&other.text).await.is_for("other");
}

#[tokio::test]
async fn look_ups_stuck_behind_a_lock_exhaust_the_pool_and_no_more() {
    let node = Node::with(2, |builder| builder).await;
    let known = node.known("acme").await;
    let others = [node.issue("a").await, node.issue("b").await, node.issue("c").await];
    let lock = node.lock().await;
    let begun = Instant::now();
    let requests: Vec<_> = others.iter().map(|key| node.service.begin(&key.text)).collect();
    node.look_ups_are_stuck(2).await;
    node.service.get_at_once(&known.text).is_for("acme");
    for request in requests {
        within(request).await.is_unavailable(RejectionKind::StoreUnavailable);
    }
    assert!(begun.elapsed() < PROMPTLY, "{:?}", begun.elapsed());

    lock.rollback().await.unwrap();
    for (key, consumer) in others.iter().zip(["a", "b", "c"]) {
        node.service.get(&key.text).await.is_for(consumer);
    }
    node.has_its_whole_pool().await;
}

#[tokio::test]
async fn clients_that_hang_up_leave_the_pool_as_it_was() {
    let node = Node::with(3, patient).await;
    let key = node.issue("acme").await;
    for _ in 0..2_000 {
        drop(node.service.begin(&unknown_key()));
    }
    drop(node.service.begin(&key.text));
    node.service.get(&key.text).await.is_for("acme");
    node.has_its_whole_pool().await;
    assert!(node.proxy.connections() <= 3, "{} connections", node.proxy.connections());
}

// Connections that end at the wrong time.

#[tokio::test]
async fn a_connection_that_ends_in_the_middle_of_a_look_up_is_503() {
    for fault in [Fault::Rst, Fault::Fin] {
        let node = Node::patient().await;
        let (known, other) = (node.known("acme").await, node.issue("other").await);
        let lock = node.lock().await;
        let request = node.service.begin(&other.text);
        node.look_ups_are_stuck(1).await;
        let begun = Instant::now();
        node.proxy.set(fault).await;
        within(request).await.is_unavailable(RejectionKind::StoreUnavailable);
        assert!(begun.elapsed() < PROMPTLY, "{fault:?}: it was the deadline that ended it");
        node.service.get_at_once(&known.text).is_for("acme");

        lock.rollback().await.unwrap();
        node.proxy.set(Fault::Pass).await;
        node.service.get(&other.text).await.is_for("other");
    }
}

#[tokio::test]
async fn connections_that_ended_in_the_pool_are_not_noticed() {
    let node = Node::with(3, patient).await;
    let key = node.issue("acme").await;
    for fault in [Fault::Rst, Fault::Fin, Fault::Refuse] {
        node.has_its_whole_pool().await;
        assert_eq!(node.connections_at_the_server().await, 3);
        node.proxy.set(fault).await;
        let ended = async || node.connections_at_the_server().await == 0;
        eventually("the connections have ended", ended).await;
        node.proxy.set(Fault::Pass).await;
        node.service.auth.invalidate_all();
        node.service.get(&key.text).await.is_for("acme");
    }
}

#[tokio::test]
async fn connections_that_an_administrator_ends_are_not_noticed() {
    let node = Node::with(3, patient).await;
    let key = node.known("acme").await;
    node.has_its_whole_pool().await;
    assert_eq!(node.connections_at_the_server().await, 3);
    let terminate = "select pg_terminate_backend(pid) from pg_stat_activity \
                     where datname = current_database() and application_name = 'the service'";
    query(terminate).execute(node.direct.pool()).await.unwrap();
    let ended = async || node.connections_at_the_server().await == 0;
    eventually("the connections have ended", ended).await;
    node.service.auth.invalidate_all();
    node.service.get(&key.text).await.is_for("acme");
}

#[tokio::test]
async fn answers_cut_off_anywhere_let_in_the_right_consumer_or_nobody() {
    let node = Node::with(3, patient).await;
    let keys = [node.issue("a").await, node.issue("b").await, node.issue("c").await];
    let consumers = ["a", "b", "c"];
    let ask = async || {
        node.service.auth.invalidate_all();
        let requests: Vec<_> = keys.iter().map(|key| node.service.begin(&key.text)).collect();
        let mut replies = Vec::new();
        for request in requests {
            replies.push(within(request).await);
        }
        replies
    };
    let (mut let_in, mut unavailable) = (0, 0);
    for bytes in (0..2_400).step_by(4) {
        node.proxy.set(Fault::CutAfter(bytes)).await;
        for (reply, consumer) in ask().await.into_iter().zip(consumers) {
            if reply.status.is_success() {
                reply.is_for(consumer);
                let_in += 1;
            } else {
                reply.is_unavailable(RejectionKind::StoreUnavailable);
                unavailable += 1;
            }
        }
        node.proxy.set(Fault::Pass).await;
        for (reply, consumer) in ask().await.into_iter().zip(consumers) {
            reply.is_for(consumer);
        }
    }
    assert!(let_in > 0 && unavailable > 0, "{let_in} let in, {unavailable} unavailable");
    node.has_its_whole_pool().await;
}

// The same, in a file.

mod sqlite {
    use sqlx::SqlitePool;
    use tempfile::TempDir;
    use tower_api_key::store::SqliteKeyStore;

    use super::*;

    /// A service whose keys are in a file.
    struct Node {
        service: Service<Counted<SqliteKeyStore>>,
        worker: Worker,
        keys: SqliteKeyStore,
        url: String,
        _folder: TempDir,
    }

    impl Node {
        async fn patient() -> Self {
            Self::with(patient).await
        }

        async fn with(settings: impl FnOnce(Builder) -> Builder) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let url = format!("sqlite:{}", folder.path().join("keys.db").display());
            let keys = SqliteKeyStore::connect(&url).await.unwrap();
            keys.migrate().await.unwrap();
            let store = Counted::new(keys.clone());
            let (service, worker) = Service::around(store, ManualClock::default(), settings);
            Self { service, worker, keys, url, _folder: folder }
        }

        fn pool(&self) -> &SqlitePool {
            self.keys.pool()
        }

        async fn issue(&self, consumer: &str) -> Key {
            let issuer = KeyIssuer::new(self.keys.clone(), format());
            Key::from(issuer.issue(NewKey::new(consumer, Expiry::Never)).await.unwrap())
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_thousand_first_requests_of_a_key_make_one_query() {
        let node = Node::patient().await;
        let key = node.issue("acme").await;
        let requests: Vec<_> = (0..1_000).map(|_| node.service.request(&key.text)).collect();
        let mut clients: JoinSet<_> = requests.into_iter().collect();
        while let Some(reply) = within(clients.join_next()).await {
            reply.unwrap().is_for("acme");
        }
        assert_eq!(node.service.store.queries(), 1);
    }

    #[tokio::test]
    async fn a_revoked_key_is_refused_by_the_next_request() {
        let node = Node::patient().await;
        let key = node.issue("acme").await;
        node.service.get(&key.text).await.is_for("acme");
        node.keys.revoke(key.record.id, None).await.unwrap();
        node.service.auth.invalidate(&key.record.key_hash);
        node.service.get(&key.text).await.is_refused(RejectionKind::Revoked);
    }

    #[tokio::test]
    async fn a_writer_holds_no_look_up_up() {
        let node = Node::patient().await;
        let key = node.issue("acme").await;
        let writer = SqlitePool::connect(&node.url).await.unwrap();
        let transaction = writer.begin_with("begin exclusive").await.unwrap();
        node.service.get(&key.text).await.is_for("acme");
        transaction.rollback().await.unwrap();
    }

    #[tokio::test]
    async fn a_pool_in_use_by_others_holds_no_look_up_up() {
        let node = Node::with(|builder| builder).await;
        let (known, other) = (node.issue("acme").await, node.issue("other").await);
        node.service.get(&known.text).await.is_for("acme");
        let mut others = Vec::new();
        for _ in 0..node.pool().options().get_max_connections() {
            others.push(within(node.pool().acquire()).await.unwrap());
        }
        node.service.get(&other.text).await.is_for("other");
        node.service.get_at_once(&known.text).is_for("acme");
        drop(others);
    }

    #[tokio::test]
    async fn a_closed_pool_is_503_and_known_keys_go_on() {
        let node = Node::patient().await;
        let (known, other) = (node.issue("acme").await, node.issue("other").await);
        node.service.get(&known.text).await.is_for("acme");
        within(node.pool().close()).await;
        let reply = node.service.get(&other.text).await;
        reply.is_unavailable(RejectionKind::StoreUnavailable);
        node.service.get_at_once(&known.text).is_for("acme");
        node.service.clock.advance(FRESH);
        node.service.get(&known.text).await.is_for("acme");
        assert_eq!(node.service.heard.count(Said::StaleServed(known.record.id)), 1);
    }

    #[tokio::test]
    async fn clients_that_hang_up_leave_the_pool_as_it_was() {
        let node = Node::patient().await;
        let key = node.issue("acme").await;
        for _ in 0..1_000 {
            drop(node.service.begin(&unknown_key()));
        }
        drop(node.service.begin(&key.text));
        node.service.get(&key.text).await.is_for("acme");
        let mut connections = Vec::new();
        for _ in 0..node.pool().options().get_max_connections() {
            connections.push(within(node.pool().acquire()).await.unwrap());
        }
    }

    #[tokio::test]
    async fn a_last_use_is_there_after_shutdown() {
        let node = Node::patient().await;
        let key = node.issue("acme").await;
        node.service.get(&key.text).await.is_for("acme");
        within(node.worker.run(async {})).await;
        let recorded = node.keys.last_used_at(key.record.id).await.unwrap();
        assert_eq!(recorded, Some(node.service.clock.now()));
    }
}

/// If the pool is closed before the worker has ended, changes and uses are lost.
#[tokio::test]
async fn a_pool_that_is_closed_early_is_a_gap_and_the_worker_ends_nevertheless() {
    let database = Server::shared().database().await;
    let store = PgKeyStore::new(database.pool().await);
    store.migrate().await.unwrap();
    let feed = PgChangeFeed::new(store.pool().clone());
    let (service, worker) = Service::around(store.clone(), ManualClock::default(), |builder| {
        patient(builder).change_feed(feed)
    });
    let (shutdown, asked) = oneshot::channel::<()>();
    let worker = tokio::spawn(worker.run(async { drop(asked.await) }));
    service.heard.until(|heard| heard.contains(&Said::FeedLive)).await;
    let key = service.issue("acme").await;
    service.get(&key.text).await.is_for("acme");

    within(store.pool().close()).await;
    let lost = Said::FeedLost(StoreErrorKind::Unavailable);
    service.heard.until(|heard| heard.contains(&lost)).await;
    service.get_at_once(&key.text).is_for("acme");
    drop(shutdown);
    within(worker).await.unwrap();
    assert_eq!(service.heard.count(Said::UsageFlushFailed(StoreErrorKind::Unavailable)), 1);
}
