//! One consumer, one database session, one database setting or one bad row does not affect the
//! others.

use std::{
    collections::BTreeSet,
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use axum::{Router, body::Body};
use http::{Request, StatusCode, header};
use http_body_util::BodyExt as _;
use sqlx::{
    AssertSqlSafe, Connection as _, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
    query_scalar, raw_sql,
};
use tokio::task::{JoinSet, yield_now};
use tower::ServiceExt as _;
use tower_api_key::{
    account,
    auth::{Builder, CachePolicy, RejectionKind},
    clock::ManualClock,
    key::KeyHash,
    manage::{Expiry, KeyIssuer, NewKey},
    rate_limit::Quota,
    record::{KeyId, Metadata, Scope, Scopes, Tags},
    store::{
        EventQuery, KeyQuery, KeyStore, ManageKeys, PgKeyStore, StoreError, StoreErrorKind,
        port::{
            ChangeLog as _, CountedUses, HourlyUse, IdempotencyRecord, KeyTransaction as _,
            LegacyHashes as _, LogPosition, ManagePlans as _, Usage, UsageBatch, UseCounts,
        },
    },
};

use crate::wait::eventually;
use crate::{
    doubles::{Key, Said, Service, format, unknown_key, within},
    servers::{
        as_root,
        pgbouncer::PgBouncer,
        postgres::{Database, Server},
        unique,
    },
};

const SECOND: Duration = Duration::from_secs(1);
/// The default.
const FRESH: Duration = Duration::from_secs(60);

async fn database() -> Database {
    let database = Server::shared().database().await;
    PgKeyStore::connect(database.url()).await.unwrap().migrate().await.unwrap();
    database
}

async fn prompt(database: &Database) -> PgConnection {
    PgConnection::connect(database.url()).await.unwrap()
}

async fn execute(connection: &mut PgConnection, sql: impl AsRef<str>) {
    raw_sql(AssertSqlSafe(sql.as_ref())).execute(connection).await.unwrap();
}

/// Waits until this many sessions of the database wait for a lock.
async fn stuck(prompt: &mut PgConnection, at_least: i64) {
    let stuck = "select count(*) from pg_stat_activity \
                 where datname = current_database() and wait_event_type = 'Lock'";
    eventually("sessions wait for a lock", async || {
        query_scalar::<_, i64>(stuck).fetch_one(&mut *prompt).await.unwrap() >= at_least
    })
    .await;
}

fn shown(error: &StoreError) -> String {
    format!("{error:?}")
}

/// Only a failed test waits this long. The clock stands still, so no query budget refills.
fn patient(builder: Builder) -> Builder {
    let policy = CachePolicy::default().unknown_key_queries_per_second(u32::MAX);
    builder.cache(policy.load_deadline(20 * SECOND).unwrap())
}

/// A service, and the routes with which its clients manage their keys.
struct Node {
    service: Service<PgKeyStore>,
    account: Router,
    issuer: KeyIssuer,
}

impl Node {
    fn on(store: PgKeyStore) -> Self {
        Self::with(store, patient)
    }

    fn with(store: PgKeyStore, settings: impl FnOnce(Builder) -> Builder) -> Self {
        let (service, _) = Service::around(store.clone(), ManualClock::default(), settings);
        let issuer = KeyIssuer::new(store, format());
        let account = Router::new()
            .nest_service("/account", account::router(issuer.clone(), service.auth.clone()));
        Self { service, account, issuer }
    }

    async fn issue(&self, consumer: &str) -> Key {
        Key::from(self.issuer.issue(NewKey::new(consumer, Expiry::Never)).await.unwrap())
    }

    async fn issue_many(&self, consumer: &str, count: usize) -> Vec<Key> {
        let mut keys = Vec::new();
        for _ in 0..count {
            keys.push(self.issue(consumer).await);
        }
        keys
    }

    fn ask(
        &self,
        key: &Key,
        method: &str,
        path: &str,
    ) -> impl Future<Output = (StatusCode, Option<String>, String)> + Send + 'static {
        let request = Request::builder()
            .method(method)
            .uri(format!("/account{path}"))
            .header(header::AUTHORIZATION, format!("Bearer {}", key.text))
            .header(header::CONTENT_TYPE, "application/json")
            .body(if method == "GET" { Body::empty() } else { Body::from("{}") })
            .unwrap();
        let response = self.account.clone().oneshot(request);
        async move {
            let (parts, body) = response.await.unwrap().into_parts();
            let retry_after = parts.headers.get("retry-after");
            let retry_after = retry_after.map(|value| value.to_str().unwrap().to_owned());
            let body = body.collect().await.unwrap().to_bytes();
            (parts.status, retry_after, String::from_utf8(body.into()).unwrap())
        }
    }
}

/// Stores as applications create them.
async fn stores(database: &Database) -> Vec<PgKeyStore> {
    let pool = PgPoolOptions::new().max_connections(2).acquire_timeout(2 * SECOND);
    vec![
        PgKeyStore::connect(database.url()).await.unwrap(),
        PgKeyStore::new(pool.connect(database.url()).await.unwrap()),
    ]
}

// One consumer.

#[tokio::test]
async fn a_consumer_that_lists_its_keys_64_at_once_keeps_no_key_of_another_out() {
    let database = database().await;
    for store in stores(&database).await {
        let node = Node::on(store);
        let noisy = node.issue("noisy").await;
        let others = node.issue_many("acme", 60).await;
        node.service.get(&noisy.text).await.is_for("noisy");

        // Lists read last uses, look-ups do not.
        let mut prompt = prompt(&database).await;
        execute(&mut prompt, "begin; lock table api_key_usage in access exclusive mode").await;
        let mut lists = JoinSet::new();
        for _ in 0..64 {
            lists.spawn(node.ask(&noisy, "GET", "/api-keys"));
        }
        stuck(&mut prompt, 1).await;
        for other in &others {
            node.service.get(&other.text).await.is_for("acme");
        }
        while let Some(answer) = within(lists.join_next()).await {
            let (status, retry_after, body) = answer.unwrap();
            let refusals = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE];
            assert!(refusals.contains(&status), "{status} {body}");
            assert_eq!(retry_after.as_deref(), Some("1"), "{body}");
        }
        execute(&mut prompt, "rollback").await;
        let (status, ..) = within(node.ask(&noisy, "GET", "/api-keys")).await;
        assert_eq!(status, StatusCode::OK);
    }
}

#[tokio::test]
async fn one_page_of_a_consumer_is_read_at_a_time_and_changes_go_on_beside_it() {
    let database = database().await;
    let store = PgKeyStore::builder().lock_timeout(20 * SECOND);
    let node = Node::on(store.connect(database.url()).await.unwrap());
    let (reader, other) = (node.issue("reader").await, node.issue("other").await);
    // Within a transaction a session sees activity as of its first query.
    let mut watcher = prompt(&database).await;
    let mut prompt = prompt(&database).await;
    execute(&mut prompt, "begin; lock table api_key_usage in access exclusive mode").await;
    let first = tokio::spawn(node.ask(&reader, "GET", "/api-keys"));
    stuck(&mut watcher, 1).await;
    for path in ["/api-keys", "/api-keys?limit=1"] {
        let (status, retry_after, body) = within(node.ask(&reader, "GET", path)).await;
        assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{body}");
        assert_eq!(retry_after.as_deref(), Some("1"));
    }
    let others = tokio::spawn(node.ask(&other, "GET", "/api-keys"));
    stuck(&mut watcher, 2).await;
    let path = format!("/api-keys/{}/rotate", reader.record.id);
    let (status, _, body) = within(node.ask(&reader, "POST", &path)).await;
    assert_eq!(status, StatusCode::CREATED, "{body}");
    execute(&mut prompt, "rollback").await;
    assert_eq!(within(first).await.unwrap().0, StatusCode::OK);
    assert_eq!(within(others).await.unwrap().0, StatusCode::OK);
    assert_eq!(within(node.ask(&reader, "GET", "/api-keys")).await.0, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_never_stops_listing_keeps_neither_look_ups_nor_changes_of_others_out() {
    let database = database().await;
    let node = Arc::new(Node::on(PgKeyStore::connect(database.url()).await.unwrap()));
    let noisy = node.issue("noisy").await;
    let fill = "insert into api_keys (id, key_hash, key_prefix, key_last4, consumer_id, scopes,
            metadata, is_active, created_at, root_id, version)
        select id, sha256(id::text::bytea), '', '', 'noisy', '{}', '{}', true, now(), id, 1
        from (select gen_random_uuid() as id from generate_series(1, 1000)) as ids";
    execute(&mut prompt(&database).await, fill).await;
    let others = node.issue_many("acme", 60).await;
    let is_over = Arc::new(AtomicBool::new(false));
    let mut lists = JoinSet::new();
    for _ in 0..48 {
        let (node, noisy, is_over) = (Arc::clone(&node), noisy.clone(), Arc::clone(&is_over));
        lists.spawn(async move {
            let mut served = 0;
            while !is_over.load(Ordering::SeqCst) {
                let (status, ..) = node.ask(&noisy, "GET", "/api-keys?limit=200").await;
                served += usize::from(status == StatusCode::OK);
                yield_now().await;
            }
            served
        });
    }
    for (number, other) in others.iter().enumerate() {
        node.service.get(&other.text).await.is_for("acme");
        if number % 10 == 0 {
            let path = format!("/api-keys/{}/revoke", other.record.id);
            let (status, _, body) = within(node.ask(other, "POST", &path)).await;
            assert_eq!(status, StatusCode::OK, "{body}");
        }
    }
    is_over.store(true, Ordering::SeqCst);
    let mut served = 0;
    while let Some(count) = within(lists.join_next()).await {
        served += count.unwrap();
    }
    assert!(served > 0, "the noisy consumer is served, too");
}

#[tokio::test]
async fn a_row_locked_at_the_prompt_keeps_only_those_waiting_who_want_it_and_not_for_long() {
    let database = database().await;
    let node = Node::on(PgKeyStore::connect(database.url()).await.unwrap());
    let wanted = node.issue("noisy").await;
    let others = node.issue_many("acme", 80).await;
    node.service.get(&wanted.text).await.is_for("noisy");
    let mut prompt = prompt(&database).await;
    let lock = format!("begin; select from api_keys where id = '{}' for update", wanted.record.id);
    execute(&mut prompt, lock).await;
    let path = format!("/api-keys/{}/rotate", wanted.record.id);
    let mut changes = JoinSet::new();
    for _ in 0..16 {
        changes.spawn(node.ask(&wanted, "POST", &path));
    }
    stuck(&mut prompt, 1).await;
    for other in &others {
        node.service.get(&other.text).await.is_for("acme");
    }
    // Changes of other consumers proceed in parallel.
    let path = format!("/api-keys/{}/revoke", others[0].record.id);
    let (status, _, body) = within(node.ask(&others[0], "POST", &path)).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    while let Some(answer) = within(changes.join_next()).await {
        let (status, retry_after, body) = answer.unwrap();
        let refusals = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE];
        assert!(refusals.contains(&status), "{status} {body}");
        assert_eq!(retry_after.as_deref(), Some("1"), "{body}");
    }
    execute(&mut prompt, "rollback").await;
    let path = format!("/api-keys/{}/revoke", wanted.record.id);
    let (status, _, body) = within(node.ask(&wanted, "POST", &path)).await;
    assert_eq!(status, StatusCode::OK, "{body}");
}

#[tokio::test]
async fn what_a_lock_is_waited_for_is_a_setting_and_the_error_says_who_may_hold_it() {
    let database = database().await;
    let store = PgKeyStore::builder().lock_timeout(Duration::from_millis(20));
    let store = store.connect(database.url()).await.unwrap();
    let node = Node::on(store.clone());
    let key = node.issue("acme").await;
    let mut prompt = prompt(&database).await;
    execute(&mut prompt, "begin; select from api_keys for update").await;
    let mut transaction = store.begin().await.unwrap();
    let error = transaction.lock(&[key.record.id]).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    assert!(shown(&error).contains("pg_blocking_pids"), "{error:?}");
}

#[tokio::test]
async fn management_beyond_its_share_of_the_pool_is_overloaded_and_leaves_a_connection() {
    let database = database().await;
    let pool = PgPoolOptions::new().max_connections(3).connect(database.url()).await.unwrap();
    let store = PgKeyStore::new(pool.clone());
    let first = (store.begin().await.unwrap(), store.begin().await.unwrap());
    let error = store.begin().await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Overloaded, "{error:?}");
    // The application itself, and the writing of last uses, still get one.
    drop(within(pool.acquire()).await.unwrap());
    let usage = [Usage::new(KeyId::from_bytes([9; 16]), SystemTime::UNIX_EPOCH)];
    within(store.record_usage(&usage.into())).await.unwrap();
    drop(first);
    within(store.begin()).await.unwrap();
}

#[tokio::test]
async fn answers_that_are_not_read_are_few_for_each_consumer() {
    let database = database().await;
    let node = Node::on(PgKeyStore::connect(database.url()).await.unwrap());
    let (slow, other) = (node.issue("slow").await, node.issue("other").await);
    let request = |key: &Key| {
        let request = Request::get("/account/api-keys");
        let request = request.header(header::AUTHORIZATION, format!("Bearer {}", key.text));
        node.account.clone().oneshot(request.body(Body::empty()).unwrap())
    };
    let mut unread = Vec::new();
    for _ in 0..4 {
        unread.push(within(request(&slow)).await.unwrap());
    }
    let refused = within(request(&slow)).await.unwrap();
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.headers().get("retry-after").unwrap(), "1");
    assert_eq!(within(request(&other)).await.unwrap().status(), StatusCode::OK);
    // A response that was read or dropped frees its slot.
    let body = unread.pop().unwrap().into_body().collect().await.unwrap().to_bytes();
    assert!(serde_json::from_slice::<serde_json::Value>(&body).unwrap()["keys"].is_array());
    assert_eq!(within(request(&slow)).await.unwrap().status(), StatusCode::OK);
    unread.clear();
    assert_eq!(within(request(&slow)).await.unwrap().status(), StatusCode::OK);
}

// Overload within the process is not an outage.

/// A store whose look-up pool can be exhausted by others.
async fn shared_pool(database: &Database) -> (PgKeyStore, PgPool) {
    let pool = PgPoolOptions::new().max_connections(2).connect(database.url()).await.unwrap();
    let store = PgKeyStore::builder().lookup_pool(pool.clone()).build(pool.clone()).unwrap();
    (store, pool)
}

async fn all_of(pool: &PgPool) -> Vec<sqlx::pool::PoolConnection<sqlx::Postgres>> {
    let mut connections = Vec::new();
    for _ in 0..pool.options().get_max_connections() {
        connections.push(within(pool.acquire()).await.unwrap());
    }
    connections
}

#[tokio::test]
async fn a_pool_that_is_busy_is_no_outage_and_serves_nothing_stale() {
    let database = database().await;
    let (store, pool) = shared_pool(&database).await;
    let node = Node::on(store.clone());
    let key = node.issue("acme").await;
    node.service.get(&key.text).await.is_for("acme");
    let busy = all_of(&pool).await;
    let error = within(store.find(&key.record.key_hash)).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Overloaded, "{error:?}");
    // More failures than the circuit breaker's threshold.
    for _ in 0..8 {
        let reply = node.service.get(&unknown_key()).await;
        reply.is_unavailable(RejectionKind::Overloaded);
    }
    node.service.get_at_once(&key.text).is_for("acme");
    node.service.clock.advance(FRESH + 20 * SECOND);
    node.service.get(&key.text).await.is_unavailable(RejectionKind::Overloaded);
    assert_eq!(node.service.heard.count(Said::StaleServed(key.record.id)), 0);

    drop(busy);
    // At once: there is no cool-down.
    node.service.get(&key.text).await.is_for("acme");
    node.service.get(&unknown_key()).await.is_refused(RejectionKind::Unknown);
}

#[tokio::test]
async fn without_a_feed_a_key_revoked_by_hand_is_refused_after_fresh_whatever_is_listed() {
    let database = database().await;
    let node = Node::on(PgKeyStore::connect(database.url()).await.unwrap());
    let (noisy, key) = (node.issue("noisy").await, node.issue("acme").await);
    node.service.get(&noisy.text).await.is_for("noisy");
    node.service.get(&key.text).await.is_for("acme");
    let mut prompt = prompt(&database).await;
    execute(&mut prompt, "begin; lock table api_key_usage in access exclusive mode").await;
    let mut lists = JoinSet::new();
    for _ in 0..48 {
        lists.spawn(node.ask(&noisy, "GET", "/api-keys"));
    }
    stuck(&mut prompt, 1).await;
    let revoke = format!("update api_keys set revoked_at = now() where id = '{}'", key.record.id);
    let mut by_hand = PgConnection::connect(database.url()).await.unwrap();
    execute(&mut by_hand, revoke).await;
    node.service.clock.advance(FRESH);
    node.service.get(&key.text).await.is_refused(RejectionKind::Revoked);
    execute(&mut prompt, "rollback").await;
    while within(lists.join_next()).await.is_some() {}
}

#[tokio::test]
async fn without_a_feed_a_key_revoked_by_hand_is_not_let_in_by_a_store_that_is_overloaded() {
    let database = database().await;
    let (store, pool) = shared_pool(&database).await;
    let node = Node::with(store, |builder| {
        builder.cache(CachePolicy::default().load_deadline(SECOND / 2).unwrap())
    });
    let key = node.issue("acme").await;
    node.service.get(&key.text).await.is_for("acme");
    let revoke = format!("update api_keys set revoked_at = now() where id = '{}'", key.record.id);
    execute(&mut prompt(&database).await, revoke).await;
    let busy = all_of(&pool).await;
    node.service.clock.advance(FRESH + SECOND / 2);
    for _ in 0..8 {
        node.service.get(&key.text).await.is_unavailable(RejectionKind::Overloaded);
    }
    drop(busy);
    node.service.get(&key.text).await.is_refused(RejectionKind::Revoked);
}

// The pools.

#[tokio::test]
async fn look_ups_take_the_options_and_hooks_of_the_pool_and_end_with_it() {
    let database = database().await;
    let nowhere: PgConnectOptions = "postgres://nobody@127.0.0.1:1/nothing".parse().unwrap();
    let hooked = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&hooked);
    let pool = PgPoolOptions::new()
        .acquire_timeout(SECOND)
        .after_connect(move |_, _| {
            seen.store(true, Ordering::SeqCst);
            Box::pin(async { Ok(()) })
        })
        .connect_lazy_with(nowhere);
    let store = PgKeyStore::new(pool.clone());
    let hash = KeyHash::from_bytes([7; 32]);
    let error = within(store.find(&hash)).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error:?}");
    // As for a password change.
    let options: PgConnectOptions = database.url().parse().unwrap();
    pool.set_connect_options(options.application_name("the service"));
    assert_eq!(within(store.find(&hash)).await.unwrap(), None);
    assert!(hooked.load(Ordering::SeqCst));
    assert_eq!(pool.size(), 0, "it takes none of the pool's connections");

    within(pool.close()).await;
    let error = within(store.find(&hash)).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error:?}");
    let mut prompt = prompt(&database).await;
    let left = "select count(*) from pg_stat_activity where application_name = 'the service' \
                and datname = current_database()";
    eventually("its connections are closed", async || {
        query_scalar::<_, i64>(left).fetch_one(&mut prompt).await.unwrap() == 0
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_the_application_left_in_a_transaction_is_not_used() {
    let database = database().await;
    let pool = PgPoolOptions::new().max_connections(3).connect(database.url()).await.unwrap();
    let store = PgKeyStore::new(pool.clone());
    let issuer = KeyIssuer::new(store.clone(), format());
    for left_open in ["begin; select 1", "begin; select 1 from pg_class limit 1"] {
        let mut connections = all_of(&pool).await;
        for connection in &mut connections[..2] {
            raw_sql(left_open).execute(&mut **connection).await.unwrap();
        }
        drop(connections);
        eventually("they are back", async || pool.num_idle() == 3).await;
        for _ in 0..5 {
            within(issuer.issue(NewKey::new("acme", Expiry::Never))).await.unwrap();
            within(issuer.list(&KeyQuery::new())).await.unwrap();
        }
    }
    let mut prompt = prompt(&database).await;
    let count: i64 =
        query_scalar("select count(*) from api_keys").fetch_one(&mut prompt).await.unwrap();
    assert_eq!(count, 10, "what was said to be committed is");
}

// Row-level security.

/// A database with a key on a plan, and a role that does not own the tables.
struct Guarded {
    database: Database,
    role: String,
    key: Key,
    plain: Key,
}

const TABLES: [&str; 12] = [
    "api_keys",
    "api_key_plans",
    "api_key_usage",
    "api_key_changes",
    "api_key_scopes",
    "api_key_tags",
    "api_key_legacy_hashes",
    "api_key_events",
    "api_key_requests",
    "api_key_usage_hourly",
    "api_key_usage_daily",
    "api_key_usage_writers",
];

const REQUEST: [u8; 32] = [5; 32];

impl Guarded {
    async fn new() -> Self {
        let database = database().await;
        let owner = PgKeyStore::connect(database.url()).await.unwrap();
        let issuer = KeyIssuer::new(owner.clone(), format());
        owner.set_plan("pro", &Quota::per_second(9).unwrap().into()).await.unwrap();
        let scopes = Scopes::parse(["orders:read"]).unwrap();
        let tags = Tags::parse(["mobile"]).unwrap();
        let new = NewKey::new("acme", Expiry::Never).plan("pro").scopes(scopes).tags(tags);
        let key = Key::from(issuer.issue(new).await.unwrap());
        let plain = issuer.issue(NewKey::new("acme", Expiry::Never)).await.unwrap();
        let used = [Usage::new(key.record.id, SystemTime::UNIX_EPOCH + SECOND)];
        owner.record_usage(&used.into()).await.unwrap();
        let mut transaction = owner.begin().await.unwrap();
        transaction
            .claim_idempotency_key(&IdempotencyRecord::new(REQUEST, [6; 32], key.record.id))
            .await
            .unwrap();
        transaction.commit().await.unwrap();
        let role = format!("service_{:016x}", unique());
        let mut prompt = prompt(&database).await;
        let grants = format!(
            "create role {role}; grant all on all tables in schema public to {role};
            grant usage on all sequences in schema public to {role}"
        );
        execute(&mut prompt, grants).await;
        Self { database, role, key, plain: Key::from(plain) }
    }

    /// A store that connects as the role, including its look-ups.
    fn store(&self) -> PgKeyStore {
        let set = format!("set role {}", self.role);
        let pool = PgPoolOptions::new().max_connections(3).after_connect(move |connection, _| {
            let set = set.clone();
            Box::pin(async move { raw_sql(AssertSqlSafe(set)).execute(connection).await.map(drop) })
        });
        PgKeyStore::new(pool.connect_lazy(self.database.url()).unwrap())
    }

    /// All operations of a store, and their results.
    async fn answers(&self, store: &PgKeyStore) -> Vec<(&'static str, Result<String, StoreError>)> {
        let (key, plain) = (&self.key.record, &self.plain.record);
        let limits = async |hash: &KeyHash| {
            let found = store.find(hash).await?;
            Ok(format!("{:?}", found.map(|found| (found.id, found.plan, found.plan_limits))))
        };
        let list = async |query: KeyQuery| {
            let page = store.list(&query).await?;
            Ok(format!("{:?}", page.keys.iter().map(|key| key.record.id).collect::<Vec<_>>()))
        };
        let mut scoped = KeyQuery::new();
        scoped.scope = Some(Scope::new("orders:read").unwrap());
        let mut unused = KeyQuery::new();
        unused.unused_since = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(10_000_000_000));
        let claim = async || {
            let mut transaction = store.begin().await?;
            let claim = IdempotencyRecord::new(REQUEST, [6; 32], plain.id);
            Ok(format!(
                "{:?}",
                transaction.claim_idempotency_key(&claim).await?.map(|claim| claim.key_id)
            ))
        };
        let lock = async || {
            let mut transaction = store.begin().await?;
            let locked = transaction.lock(&[key.id, plain.id]).await?;
            Ok(format!("{:?}", locked.iter().map(|key| key.id).collect::<Vec<_>>()))
        };
        // All changes so far.
        let poll = async || {
            let changes = store.changes_since(Some(LogPosition::new(1, 0))).await?;
            let ids = changes.keys.iter().map(|changed| changed.key_id);
            Ok(format!("{:?}", ids.collect::<BTreeSet<_>>()))
        };
        let usage = async || {
            let at = SystemTime::UNIX_EPOCH;
            let counts = UseCounts::new(1, 0, 0, 0, 1);
            let hour = HourlyUse::new(plain.id, "acme".into(), at, counts);
            let counted = CountedUses::new([7; 16], 1, vec![hour]);
            let used = UsageBatch::new(vec![Usage::new(plain.id, at + SECOND)]);
            store.record_usage(&used.counted(counted)).await?;
            Ok(format!("{:?}", store.last_used_at(plain.id).await?))
        };
        let legacy = async || {
            let found = store.legacy_keys(Some("hint"), 10).await?.len();
            Ok(format!("{found} of {}", store.count_legacy_keys().await?))
        };
        vec![
            ("a look-up", limits(&key.key_hash).await),
            ("a look-up of a key without a plan", limits(&plain.key_hash).await),
            ("a look-up of no key", limits(&KeyHash::from_bytes([7; 32])).await),
            ("a key", store.get(key.id).await.map(|key| format!("{:?}", key.map(|key| key.id)))),
            ("a list", list(KeyQuery::new()).await),
            ("a list by scope", list(scoped).await),
            ("a list by tag", list(KeyQuery::new().tag("mobile")).await),
            ("a list of the unused", list(unused).await),
            (
                "the audit",
                store.events(&EventQuery::new()).await.map(|page| page.events.len().to_string()),
            ),
            ("plans", store.plans().await.map(|plans| format!("{plans:?}"))),
            ("a last use", store.last_used_at(key.id).await.map(|at| format!("{at:?}"))),
            ("usage", usage().await),
            ("a repeated request", claim().await),
            ("keys to change", lock().await),
            ("a poll", poll().await),
            ("keys with legacy hashes", legacy().await),
        ]
    }

    async fn end(self) {
        let gone = format!("drop owned by {0}; drop role {0}", self.role);
        execute(&mut prompt(&self.database).await, gone).await;
    }
}

#[tokio::test]
async fn row_level_security_hides_nothing_silently() {
    let guarded = Guarded::new().await;
    let store = guarded.store();
    let before = guarded.answers(&store).await;
    for (question, answer) in &before {
        assert!(answer.is_ok(), "{question}: {answer:?}");
    }
    let mut prompt = prompt(&guarded.database).await;
    let policies = [
        "",
        "create policy partly on {table} using (false)",
        "create policy partly on {table} using (true) with check (true)",
    ];
    for table in TABLES {
        for policy in policies {
            execute(&mut prompt, format!("alter table {table} enable row level security")).await;
            execute(&mut prompt, policy.replace("{table}", table)).await;
            // A running service, and one that starts then.
            for store in [&store, &guarded.store()] {
                let mut refused = 0;
                for ((question, before), (_, after)) in
                    before.iter().zip(guarded.answers(store).await)
                {
                    match after {
                        Ok(after) => {
                            assert_eq!(&after, before.as_ref().unwrap(), "{table}: {question}");
                        }
                        Err(error) => {
                            assert_eq!(error.kind(), StoreErrorKind::Other, "{error:?}");
                            let shown = shown(&error);
                            assert!(
                                shown.contains("row-level security")
                                    && shown.contains("BYPASSRLS")
                                    && shown.contains(table),
                                "{table}: {question}: {shown}"
                            );
                            refused += 1;
                        }
                    }
                }
                assert!(refused > 0, "{table}: it is read by something");
            }
            execute(&mut prompt, format!("drop policy if exists partly on {table}")).await;
            execute(&mut prompt, format!("alter table {table} disable row level security")).await;
        }
    }
    for ((question, before), (_, after)) in before.iter().zip(guarded.answers(&store).await) {
        assert_eq!(before.as_ref().unwrap(), &after.unwrap(), "{question}: as before");
    }
    guarded.end().await;
}

#[tokio::test]
async fn a_valid_key_that_row_level_security_hides_is_503_and_not_remembered_as_unknown() {
    let guarded = Guarded::new().await;
    let node = Node::on(guarded.store());
    let mut prompt = prompt(&guarded.database).await;
    for table in ["api_keys", "api_key_plans"] {
        execute(&mut prompt, format!("alter table {table} enable row level security")).await;
        for _ in 0..3 {
            let reply = node.service.get(&guarded.key.text).await;
            reply.is_unavailable(RejectionKind::StoreUnavailable);
        }
        execute(&mut prompt, format!("alter table {table} disable row level security")).await;
        node.service.get(&guarded.key.text).await.is_for("acme");
        node.service.auth.invalidate_all();
    }
    // Many concurrent look-ups share one query.
    execute(&mut prompt, "alter table api_keys enable row level security").await;
    let keys = [guarded.key.clone(), guarded.plain.clone()];
    let mut requests = JoinSet::new();
    for number in 0..40 {
        requests.spawn(node.service.request(&keys[number % 2].text));
        requests.spawn(node.service.request(&unknown_key()));
    }
    while let Some(reply) = within(requests.join_next()).await {
        reply.unwrap().is_unavailable(RejectionKind::StoreUnavailable);
    }
    guarded.end().await;
}

#[tokio::test]
async fn the_owner_and_a_role_that_bypasses_row_level_security_notice_nothing() {
    let guarded = Guarded::new().await;
    let mut prompt = prompt(&guarded.database).await;
    for table in TABLES {
        execute(&mut prompt, format!("alter table {table} enable row level security")).await;
    }
    execute(&mut prompt, format!("alter role {} bypassrls", guarded.role)).await;
    let owner = PgKeyStore::connect(guarded.database.url()).await.unwrap();
    for store in [owner, guarded.store()] {
        for (question, answer) in guarded.answers(&store).await {
            assert!(answer.is_ok(), "{question}: {answer:?}");
        }
    }
    guarded.end().await;
}

// Schemas.

/// The tables of these names in each schema.
async fn tables(prompt: &mut PgConnection) -> Vec<String> {
    let tables = "select schemaname || '.' || tablename from pg_tables \
                  where tablename in ('api_keys', '_api_key_migrations') order by 1";
    query_scalar(tables).fetch_all(prompt).await.unwrap()
}

/// All operations of a store, in its schema.
async fn works(store: &PgKeyStore) {
    let node = Node::on(store.clone());
    let scopes = Scopes::parse(["orders:read"]).unwrap();
    store.set_plan("pro", &Quota::per_second(9).unwrap().into()).await.unwrap();
    let new = NewKey::new("acme", Expiry::Never).plan("pro").scopes(scopes);
    let key = Key::from(node.issuer.issue(new.idempotency_key("once")).await.unwrap());
    node.service.get(&key.text).await.is_for("acme");
    let found = store.find(&key.record.key_hash).await.unwrap().unwrap();
    assert!(found.plan_limits.is_some());
    let mut scoped = KeyQuery::new();
    scoped.scope = Some(Scope::new("orders:read").unwrap());
    assert_eq!(store.list(&scoped).await.unwrap().keys.len(), 1);
    let of_key = EventQuery::new().key_id(key.record.id);
    assert_eq!(store.events(&of_key).await.unwrap().events.len(), 1);
    let at = SystemTime::UNIX_EPOCH + SECOND;
    store.record_usage(&[Usage::new(key.record.id, at)].into()).await.unwrap();
    assert_eq!(store.last_used_at(key.record.id).await.unwrap(), Some(at));
    let horizon = store.changes_since(None).await.unwrap().horizon;
    node.issuer.revoke(key.record.id, None).await.unwrap();
    let changes = store.changes_since(Some(horizon)).await.unwrap();
    assert!(changes.keys.iter().any(|changed| changed.key_id == key.record.id));
    node.service.auth.invalidate_all();
    node.service.get(&key.text).await.is_refused(RejectionKind::Revoked);
}

#[tokio::test]
async fn a_schema_that_comes_to_stand_in_front_later_gets_no_second_set_of_tables() {
    let database = database().await;
    let mut prompt = prompt(&database).await;
    execute(&mut prompt, "create schema service").await;
    let url = format!("{}?options=-csearch_path=service,public", database.url());
    let store = PgKeyStore::connect(&url).await.unwrap();
    store.migrate().await.unwrap();
    works(&store).await;
    let both = ["public._api_key_migrations", "public.api_keys"];
    assert_eq!(tables(&mut prompt).await, both);
    // An upgrade creates missing tables in the schema of the history, where it finds one that
    // exists.
    execute(&mut prompt, "delete from _api_key_migrations where version = 4").await;
    let upgraded = PgKeyStore::connect(&url).await.unwrap();
    let error = upgraded.migrate().await.unwrap_err();
    assert!(shown(&error).contains("\"api_key_plans\" already exists"), "{error:?}");
    assert_eq!(tables(&mut prompt).await, both);
}

#[tokio::test]
async fn tables_beside_the_search_path_are_an_error_that_names_both_schemas_and_the_setting() {
    let database = database().await;
    let mut prompt = prompt(&database).await;
    execute(&mut prompt, "create schema service").await;
    let url = format!("{}?options=-csearch_path=service", database.url());
    let store = PgKeyStore::connect(&url).await.unwrap();
    let error = store.migrate().await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Migration);
    for text in ["\"public\"", "\"service\"", ".schema(\"public\")", "API_KEY_SCHEMA=public"] {
        assert!(shown(&error).contains(text), "{error:?}");
    }
    let hash = KeyHash::from_bytes([7; 32]);
    for error in [
        store.find(&hash).await.unwrap_err(),
        store.list(&KeyQuery::new()).await.unwrap_err(),
        store.changes_since(None).await.unwrap_err(),
    ] {
        let kinds = [StoreErrorKind::Other, StoreErrorKind::Migration];
        assert!(kinds.contains(&error.kind()), "{error:?}");
        assert!(shown(&error).contains(".schema(\"public\")"), "{error:?}");
    }
    let named = PgKeyStore::builder().schema("public").connect(&url).await.unwrap();
    named.migrate().await.unwrap();
    works(&named).await;
    assert_eq!(tables(&mut prompt).await, ["public._api_key_migrations", "public.api_keys"]);
}

#[tokio::test]
async fn tables_of_the_application_are_left_alone_and_a_schema_of_its_own_is_advised() {
    let database = Server::shared().database().await;
    let mut prompt = prompt(&database).await;
    execute(&mut prompt, "create table api_keys (id serial, secret text)").await;
    let store = PgKeyStore::connect(database.url()).await.unwrap();
    let error = store.migrate().await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Migration);
    for text in ["table \"api_keys\"", "schema of its own", ".schema(\"keys\")", "--schema keys"] {
        assert!(shown(&error).contains(text), "{error:?}");
    }
    let error = store.find(&KeyHash::from_bytes([7; 32])).await.unwrap_err();
    assert!(shown(&error).contains("a separate schema"), "{error:?}");

    let own = PgKeyStore::builder().schema("keys").connect(database.url()).await.unwrap();
    own.migrate().await.unwrap();
    own.migrate().await.unwrap();
    works(&own).await;
    assert_eq!(
        tables(&mut prompt).await,
        ["keys._api_key_migrations", "keys.api_keys", "public.api_keys"]
    );
}

#[tokio::test]
async fn a_schema_may_have_any_name_and_is_not_on_the_path_behind_pgbouncer() {
    let database = Server::shared().database().await;
    for name in [r#"the "other""#, "Keys", "select", "o'clock\\", "{schema}"] {
        let direct = PgKeyStore::builder().schema(name).connect(database.url()).await.unwrap();
        direct.migrate().await.unwrap();
        works(&direct).await;
        let pgbouncer = PgBouncer::start(Server::shared(), "transaction", 1);
        let through = pgbouncer.url(database.url());
        // Without startup options, and with one client: an old PgBouncer mixes up the statements of
        // several.
        let pool = PgPoolOptions::new().max_connections(1).connect(&through).await.unwrap();
        let pooled = PgKeyStore::builder().schema(name).lookup_pool(pool.clone());
        let pooled = pooled.build(pool.clone()).unwrap();
        pooled.migrate().await.unwrap();
        assert!(pooled.find(&KeyHash::from_bytes([7; 32])).await.unwrap().is_none());
        assert_eq!(pooled.list(&KeyQuery::new()).await.unwrap().keys.len(), 1);
        // No state is left on a connection that others use.
        let path: String = query_scalar("show search_path").fetch_one(&pool).await.unwrap();
        assert_eq!(path, r#""$user", public"#);
        pool.close().await;
    }
    for name in ["", "pg_temp", "information_schema", &"x".repeat(64)] {
        let pool = PgPoolOptions::new().connect_lazy(database.url()).unwrap();
        assert!(PgKeyStore::builder().schema(name).build(pool).is_err(), "{name:?}");
    }
}

#[tokio::test]
async fn a_service_that_started_before_its_tables_finds_them_and_keeps_to_them() {
    let database = Server::shared().database().await;
    let mut prompt = prompt(&database).await;
    execute(&mut prompt, "create schema late").await;
    let url = format!("{}?options=-csearch_path=late,public", database.url());
    let store = PgKeyStore::connect(&url).await.unwrap();
    let hash = KeyHash::from_bytes([7; 32]);
    let error = store.find(&hash).await.unwrap_err();
    assert!(shown(&error).contains("run `migrate`"), "{error:?}");
    PgKeyStore::connect(database.url()).await.unwrap().migrate().await.unwrap();
    assert_eq!(store.find(&hash).await.unwrap(), None);
    // Another set of tables earlier on the path does not affect a running service.
    let late = PgKeyStore::builder().schema("late").connect(database.url()).await.unwrap();
    late.migrate().await.unwrap();
    works(&store).await;
    assert!(late.list(&KeyQuery::new()).await.unwrap().keys.is_empty());
}

// Errors in the log.

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn lines_with(&self, text: &str) -> Vec<String> {
        let log = self.0.lock().unwrap();
        let log = String::from_utf8_lossy(&log);
        log.lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn logged() -> (Log, tracing::subscriber::DefaultGuard) {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_max_level(tracing::Level::WARN)
        .with_writer(move || writer.clone())
        .finish();
    (log, tracing::subscriber::set_default(subscriber))
}

#[tokio::test]
async fn the_reason_why_keys_cannot_be_looked_up_is_logged_once_and_again_every_minute() {
    let guarded = Guarded::new().await;
    let (log, _guard) = logged();
    let node = Node::on(guarded.store());
    let revoke = format!("revoke select on api_keys from {}", guarded.role);
    execute(&mut prompt(&guarded.database).await, revoke).await;
    let key = guarded.key.text.clone();
    for minute in 1..=3 {
        for _ in 0..5 {
            node.service.get(&key).await.is_unavailable(RejectionKind::StoreUnavailable);
        }
        let lines = log.lines_with("key look-up failed");
        assert_eq!(lines.len(), minute, "{lines:?}");
        let last = lines.last().unwrap();
        assert!(last.contains("WARN") && last.contains("permission denied"), "{last}");
        assert!(last.contains("grant the role"), "{last}");
        let repeated = if minute == 1 { "repeated=0" } else { "repeated=4" };
        assert!(last.contains(repeated), "{last}");
        node.service.clock.advance(60 * SECOND);
    }
    guarded.end().await;
}

#[tokio::test]
async fn the_reason_why_keys_cannot_be_managed_is_logged_and_trying_again_is_not_advised() {
    let guarded = Guarded::new().await;
    let (log, _guard) = logged();
    let node = Node::on(guarded.store());
    let caller = guarded.plain.clone();
    let id = caller.record.id;
    let revoke = format!("revoke all on api_key_events, api_key_usage from {}", guarded.role);
    execute(&mut prompt(&guarded.database).await, revoke).await;
    for (method, path, table, lines) in [
        ("GET", format!("/api-keys/{id}"), "api_key_usage", 1),
        ("GET", "/api-keys".to_owned(), "api_key_usage", 1),
        ("POST", format!("/api-keys/{id}/revoke"), "api_key_events", 1),
    ] {
        for _ in 0..3 {
            let (status, retry_after, body) = within(node.ask(&caller, method, &path)).await;
            assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR, "{method} {path}: {body}");
            assert_eq!(retry_after, None);
            assert!(!body.to_lowercase().contains("try again"), "{body}");
            assert!(body.contains("internal_error") && !body.contains(table), "{body}");
        }
        let logged = log.lines_with(&format!("permission denied for table {table}"));
        assert_eq!(logged.len(), lines, "{method} {path}: {logged:?}");
        assert!(logged[0].contains("WARN") && logged[0].contains("key management failed"));
    }
    guarded.end().await;
}

// Last uses.

#[tokio::test]
async fn a_time_of_last_use_that_cannot_be_written_holds_up_no_other() {
    let database = database().await;
    let store = PgKeyStore::connect(database.url()).await.unwrap();
    let node = Node::on(store.clone());
    let keys = node.issue_many("acme", 9).await;
    let mut prompt = prompt(&database).await;
    let refused = [keys[2].record.id, keys[5].record.id];
    let constraint = format!(
        "alter table api_key_usage add constraint picky check (key_id not in ('{}', '{}'))",
        refused[0], refused[1]
    );
    execute(&mut prompt, constraint).await;
    execute(&mut prompt, format!("delete from api_keys where id = '{}'", keys[3].record.id)).await;

    let at = SystemTime::UNIX_EPOCH + SECOND;
    let far = SystemTime::UNIX_EPOCH + Duration::from_secs(10_000_000_000_000);
    let long_ago = SystemTime::UNIX_EPOCH - Duration::from_secs(300_000_000_000);
    let mut batch: Vec<_> = keys.iter().map(|key| Usage::new(key.record.id, at)).collect();
    batch[4].last_used_at = far;
    batch[7].last_used_at = long_ago;
    let (log, _guard) = logged();
    store.record_usage(&batch.into()).await.unwrap();
    let lines = log.lines_with("last-use times skipped");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("keys=4"), "{lines:?}");
    for (number, key) in keys.iter().enumerate() {
        let is_written = ![2, 3, 4, 5, 7].contains(&number);
        let found = store.last_used_at(key.record.id).await.unwrap();
        assert_eq!(found, is_written.then_some(at), "{number}");
    }
}

#[tokio::test]
async fn a_time_of_last_use_that_is_locked_is_offered_again_and_holds_up_no_other() {
    let database = database().await;
    let store = PgKeyStore::connect(database.url()).await.unwrap();
    let node = Node::on(store.clone());
    let keys = node.issue_many("acme", 9).await;
    let at = |seconds| SystemTime::UNIX_EPOCH + seconds * SECOND;
    let batch = |seconds| keys.iter().map(|key| Usage::new(key.record.id, at(seconds))).collect();
    let first: Vec<_> = batch(1);
    store.record_usage(&first.into()).await.unwrap();
    let mut prompt = prompt(&database).await;
    let locked = keys[4].record.id;
    execute(
        &mut prompt,
        format!("begin; select from api_key_usage where key_id = '{locked}' for update"),
    )
    .await;
    let second: Vec<_> = batch(2);
    let error = within(store.record_usage(&second.clone().into())).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error:?}");
    for key in keys.iter().filter(|key| key.record.id != locked) {
        assert_eq!(store.last_used_at(key.record.id).await.unwrap(), Some(at(2)));
    }
    execute(&mut prompt, "rollback").await;
    within(store.record_usage(&second.into())).await.unwrap();
    assert_eq!(store.last_used_at(locked).await.unwrap(), Some(at(2)));
}

// SQLite.

mod sqlite {
    use std::{
        fs::{self, File},
        io::{self, Write as _},
        path::PathBuf,
        process::Command,
    };

    use sqlx::{
        ConnectOptions as _, SqlitePool,
        sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions},
    };
    use tempfile::TempDir;
    use tower_api_key::store::SqliteKeyStore;

    use super::*;

    /// A file system of 16 megabytes.
    struct SmallDisk(TempDir);

    impl SmallDisk {
        fn mount() -> io::Result<Self> {
            let folder = tempfile::tempdir()?;
            let mount = Command::new("mount")
                .args(["-t", "tmpfs", "-o", "size=16m", "tmpfs"])
                .arg(folder.path())
                .output()?;
            if mount.status.success() {
                return Ok(Self(folder));
            }
            Err(io::Error::other(String::from_utf8_lossy(&mount.stderr).trim()))
        }

        fn url(&self) -> String {
            format!("sqlite:{}", self.0.path().join("keys.db").display())
        }

        fn ballast(&self) -> PathBuf {
            self.0.path().join("ballast")
        }

        fn fill(&self) {
            let mut file = File::create(self.ballast()).unwrap();
            while file.write_all(&[0; 65_536]).is_ok() {}
            while file.write_all(&[0]).is_ok() {}
        }

        fn make_room(&self) {
            fs::remove_file(self.ballast()).unwrap();
        }
    }

    impl Drop for SmallDisk {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg("-l").arg(self.0.path()).output();
        }
    }

    async fn stores(disk: &SmallDisk) -> Vec<SqliteKeyStore> {
        let own = SqliteKeyStore::connect(&disk.url()).await.unwrap();
        let pool = SqlitePoolOptions::new().max_connections(4).connect(&disk.url()).await.unwrap();
        vec![own, SqliteKeyStore::new(pool)]
    }

    #[tokio::test]
    async fn a_full_disk_is_forgiven_once_there_is_room() {
        let disk = as_root(
            "isolation::sqlite::a_full_disk_is_forgiven_once_there_is_room",
            SmallDisk::mount(),
        );
        let Some(disk) = disk else { return };
        for store in stores(&disk).await {
            store.migrate().await.unwrap();
            let issuer = KeyIssuer::new(store.clone(), format());
            let new = || NewKey::new("acme", Expiry::Never);
            let key = issuer.issue(new()).await.unwrap().record;
            disk.fill();
            let mut failures = 0;
            let metadata =
                Metadata::new(&serde_json::json!({ "note": "x".repeat(10_000) })).unwrap();
            // The write-ahead log may have free space from before.
            for _ in 0..2_000 {
                if failures == 30 {
                    break;
                }
                if let Err(error) = issuer.issue(new().metadata(metadata.clone())).await {
                    let source = std::error::Error::source(&error).unwrap();
                    let source = source.downcast_ref::<StoreError>().unwrap();
                    assert_eq!(source.kind(), StoreErrorKind::Unavailable, "{source:?}");
                    failures += 1;
                }
                let used = [Usage::new(key.id, SystemTime::UNIX_EPOCH + SECOND)];
                let _ = store.record_usage(&used.into()).await;
                let _ = store.set_plan("pro", &Quota::per_second(9).unwrap().into()).await;
                assert!(store.find(&key.key_hash).await.unwrap().is_some(), "look-ups go on");
            }
            assert_eq!(failures, 30, "the disk was not full");
            disk.make_room();
            for number in 0..100 {
                let issued = issuer.issue(new()).await;
                let issued = issued.unwrap_or_else(|error| panic!("{number}: {error:?}"));
                issuer.revoke(issued.record.id, None).await.unwrap();
            }
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(4_000_000_000);
            store.record_usage(&[Usage::new(key.id, at)].into()).await.unwrap();
            assert_eq!(store.last_used_at(key.id).await.unwrap(), Some(at));
            store.set_plan("pro", &Quota::per_second(8).unwrap().into()).await.unwrap();
            store.changes_since(None).await.unwrap();
            store.pool().close().await;
        }
    }

    #[tokio::test]
    async fn a_migration_that_found_no_room_is_made_when_there_is_some() {
        let disk = as_root(
            "isolation::sqlite::a_migration_that_found_no_room_is_made_when_there_is_some",
            SmallDisk::mount(),
        );
        let Some(disk) = disk else { return };
        let store = SqliteKeyStore::connect(&disk.url()).await.unwrap();
        disk.fill();
        for _ in 0..5 {
            assert!(store.migrate().await.is_err());
        }
        disk.make_room();
        for _ in 0..5 {
            store.migrate().await.unwrap();
        }
    }

    async fn file() -> (TempDir, SqlitePool) {
        let folder = tempfile::tempdir().unwrap();
        let options = SqliteConnectOptions::new()
            .filename(folder.path().join("keys.db"))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal);
        // Permanently: no connection of the pool has to change it.
        options.connect().await.unwrap().close().await.unwrap();
        let options = SqliteConnectOptions::new().filename(folder.path().join("keys.db"));
        let pool = SqlitePoolOptions::new().max_connections(3).acquire_timeout(SECOND);
        (folder, pool.connect_with(options).await.unwrap())
    }

    #[tokio::test]
    async fn a_connection_that_the_application_left_in_a_transaction_is_not_used() {
        let (_folder, pool) = file().await;
        let store = SqliteKeyStore::new(pool.clone());
        store.migrate().await.unwrap();
        let issuer = KeyIssuer::new(store.clone(), format());
        let first = issuer.issue(NewKey::new("acme", Expiry::Never)).await.unwrap().record;
        let mut connections = Vec::new();
        for _ in 0..2 {
            let mut connection = pool.acquire().await.unwrap();
            // A snapshot that would be kept forever.
            raw_sql("begin; select * from api_keys").execute(&mut *connection).await.unwrap();
            connections.push(connection);
        }
        drop(connections);
        eventually("they are back", async || pool.num_idle() >= 2).await;
        issuer.revoke(first.id, None).await.unwrap();
        for _ in 0..6 {
            let found = store.find(&first.key_hash).await.unwrap().unwrap();
            assert!(found.revoked_at.is_some(), "an old snapshot");
            assert!(store.get(first.id).await.unwrap().unwrap().revoked_at.is_some());
        }
    }

    #[tokio::test]
    async fn management_takes_no_connection_of_look_ups_and_polls() {
        let (_folder, pool) = file().await;
        let store = SqliteKeyStore::new(pool.clone());
        store.migrate().await.unwrap();
        let issuer = KeyIssuer::new(store.clone(), format());
        let key = issuer.issue(NewKey::new("acme", Expiry::Never)).await.unwrap().record;
        let mut taken = Vec::new();
        for _ in 0..3 {
            taken.push(within(pool.acquire()).await.unwrap());
        }
        assert!(within(store.find(&key.key_hash)).await.unwrap().is_some());
        within(store.changes_since(None)).await.unwrap();
        let error = within(store.list(&KeyQuery::new())).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Overloaded, "{error:?}");
    }

    #[tokio::test]
    async fn a_time_of_last_use_that_cannot_be_written_holds_up_no_other() {
        let (_folder, pool) = file().await;
        let store = SqliteKeyStore::new(pool.clone());
        store.migrate().await.unwrap();
        let issuer = KeyIssuer::new(store.clone(), format());
        let mut keys = Vec::new();
        for _ in 0..5 {
            keys.push(issuer.issue(NewKey::new("acme", Expiry::Never)).await.unwrap().record.id);
        }
        let picky = format!(
            "create trigger picky before insert on api_key_usage
            when new.key_id = unhex('{}', '-') begin select raise(abort, 'not this one'); end",
            keys[1]
        );
        raw_sql(AssertSqlSafe(picky)).execute(&pool).await.unwrap();
        let at = SystemTime::UNIX_EPOCH + SECOND;
        let mut batch: Vec<_> = keys.iter().map(|id| Usage::new(*id, at)).collect();
        batch[3].last_used_at = SystemTime::UNIX_EPOCH + Duration::from_secs(10_000_000_000_000);
        batch.push(Usage::new(KeyId::from_bytes([9; 16]), at));
        store.record_usage(&batch.into()).await.unwrap();
        for (number, id) in keys.iter().enumerate() {
            let found = store.last_used_at(*id).await.unwrap();
            assert_eq!(found, (![1, 3].contains(&number)).then_some(at), "{number}");
        }
    }
}
