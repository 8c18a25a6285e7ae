//! A million keys in PostgreSQL: a look-up costs one query and one index, and the service is
//! otherwise unaffected.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::future::join_all;
use sqlx::{AssertSqlSafe, PgPool, Row, postgres::PgPoolOptions, raw_sql};
use tokio::{
    sync::{Barrier, Mutex},
    task::{JoinSet, yield_now},
};
use tower_api_key::{
    auth::{Builder, CachePolicy, RejectionKind},
    clock::ManualClock,
    key::KeyHash,
    manage::{Expiry, KeyIssuer, NewKey},
    rate_limit::RateLimits,
    store::{KeyStore, PgKeyStore},
};

use crate::{
    doubles::{Key, Service, format, unknown_key, within},
    raw_store::ByHand as _,
    servers::{
        postgres::{Database, Server},
        proxy::{Fault, FaultProxy},
    },
};

/// Without announcements, which would take as long again.
const MILLION: &str = "
    alter table api_keys disable trigger user;
    insert into api_key_plans (name, rate_limits)
    select 'plan-' || plan, '[]' from generate_series(0, 9999) as plan;
    insert into api_keys (id, key_hash, key_prefix, key_last4, consumer_id, scopes, metadata,
                          is_active, created_at, root_id, version, plan)
    select lpad(to_hex(key), 32, '0')::uuid, decode(lpad(to_hex(key), 64, '0'), 'hex'), 'sk_',
           'abcd', 'consumer-' || key / 10, '{read}', '{}', true, now(), lpad(to_hex(key), 32, '0')::uuid, 1,
           'plan-' || key % 10000
    from generate_series(1, 1000000) as key;
    alter table api_keys enable trigger user;
    analyze api_keys, api_key_plans";

/// The database with a million keys, shared by the concurrent tests of this file: filling it takes
/// longer than they do.
async fn million() -> Arc<Database> {
    static SHARED: Mutex<Weak<Database>> = Mutex::const_new(Weak::new());
    let mut shared = SHARED.lock().await;
    if let Some(database) = shared.upgrade() {
        return database;
    }
    let database = Arc::new(Server::shared().database().await);
    let store = PgKeyStore::new(database.pool().await);
    store.migrate().await.unwrap();
    raw_sql(MILLION).execute(store.pool()).await.unwrap();
    *shared = Arc::downgrade(&database);
    database
}

/// With a pool of one connection, look-ups use the same connection as everything else.
fn on_one_pool(pool: &PgPool) -> PgKeyStore {
    PgKeyStore::builder().lookup_pool(pool.clone()).build(pool.clone()).unwrap()
}

/// The prepared statements of a connection, and how many times each was executed.
///
/// Read by simple queries, which prepare nothing.
async fn prepared(pool: &PgPool) -> Vec<(String, i64)> {
    let prepared = "select name, generic_plans + custom_plans as executed \
                    from pg_prepared_statements where not from_sql order by name";
    let rows = raw_sql(prepared).fetch_all(pool).await.unwrap();
    rows.iter().map(|row| (row.get("name"), row.get("executed"))).collect()
}

async fn explain(pool: &PgPool, statement: &str, hashes: &str) -> Vec<String> {
    let explain = "explain (analyze, costs off, timing off, summary off) execute";
    let explain = AssertSqlSafe(format!("{explain} {statement}({hashes})"));
    let lines = raw_sql(explain).fetch_all(pool).await.unwrap();
    lines.iter().map(|line| line.get(0)).collect()
}

fn hash(key: u32) -> KeyHash {
    let mut hash = [0; 32];
    hash[28..].copy_from_slice(&key.to_be_bytes());
    KeyHash::from_bytes(hash)
}

#[tokio::test]
async fn a_look_up_is_one_query_of_two_indexes_among_a_million_keys() {
    let database = million().await;
    // With a pool of one connection, look-ups use the same connection as everything else.
    let pool = PgPoolOptions::new().max_connections(1).connect(database.url()).await.unwrap();
    let store = on_one_pool(&pool);

    const LOOK_UPS: u32 = 20;
    for key in 1..=LOOK_UPS {
        let record = store.find(&hash(key * 50_000)).await.unwrap().unwrap();
        assert_eq!(record.plan_limits, Some(RateLimits::unlimited()));
    }
    let prepared = prepared(&pool).await;
    let [(statement, executed)] = &*prepared else {
        panic!("a look-up is one statement, not {prepared:?}");
    };
    assert_eq!(*executed, i64::from(LOOK_UPS));

    for plan in ["force_custom_plan", "force_generic_plan"] {
        let mode = AssertSqlSafe(format!("set plan_cache_mode = {plan}"));
        raw_sql(mode).execute(&pool).await.unwrap();
        let lines = explain(&pool, statement, &format!("'\\x{:064x}'", 123_456)).await;
        let expected = [
            // The part that says whether rows are hidden, with or without a key.
            "Nested Loop Left Join (actual rows=1",
            "->  Result (actual rows=1",
            "->  Index Scan using api_keys_key_hash_key on api_keys (actual rows=1",
            "Index Cond: (key_hash = ",
            "SubPlan 1",
            "->  Index Scan using api_key_plans_pkey on api_key_plans (actual rows=1",
            "Index Cond: (name = api_keys.plan)",
        ];
        assert_eq!(lines.len(), expected.len(), "{plan}: {lines:#?}");
        for (line, expected) in lines.iter().zip(expected) {
            assert!(line.trim().starts_with(expected), "{plan}: {lines:#?}");
        }
    }
}

#[tokio::test]
async fn look_ups_that_come_at_once_are_few_queries_of_two_indexes_that_are_planned_once() {
    let database = million().await;
    let pool = PgPoolOptions::new().max_connections(1).connect(database.url()).await.unwrap();
    let store = on_one_pool(&pool);

    let hashes: Vec<_> = (1..=640).map(|key| hash(key * 1_000)).collect();
    let found = within(join_all(hashes.iter().map(|hash| store.find(hash)))).await;
    assert!(found.iter().all(|found| found.as_ref().unwrap().is_some()));
    let planned = "select name, generic_plans, custom_plans from pg_prepared_statements \
                   where statement like '%any(%'";
    let row = raw_sql(planned).fetch_one(&pool).await.unwrap();
    let (statement, generic, custom): (String, i64, i64) =
        (row.get("name"), row.get("generic_plans"), row.get("custom_plans"));
    // The first five executions are planned individually for any statement.
    assert_eq!((generic, custom), (5, 5));

    let hashes = format!("array['\\x{:064x}', '\\x{:064x}']::bytea[]", 123_456, 654_321);
    for plan in ["force_custom_plan", "force_generic_plan"] {
        let mode = AssertSqlSafe(format!("set plan_cache_mode = {plan}"));
        raw_sql(mode).execute(&pool).await.unwrap();
        let lines = explain(&pool, &statement, &hashes).await.join("\n");
        assert!(lines.contains("Index Cond: (key_hash = ANY ($1))"), "{plan}: {lines}");
        assert!(lines.contains("Index Cond: (name = api_keys.plan)"), "{plan}: {lines}");
        assert!(!lines.contains("Seq Scan"), "{plan}: {lines}");
    }
}

/// A service whose database is behind a proxy, with one connection.
struct Node {
    service: Service<PgKeyStore>,
    proxy: FaultProxy,
    pool: PgPool,
    /// The pool past the proxy.
    direct: PgKeyStore,
}

impl Node {
    async fn on(database: &Database, patience: Duration) -> Self {
        let direct = PgKeyStore::new(database.pool().await);
        let proxy = FaultProxy::start(Server::shared().addr()).await;
        let pool = PgPoolOptions::new().max_connections(1);
        let pool = pool.connect_lazy(&proxy.url(database.url())).unwrap();
        let policy = CachePolicy::default().load_deadline(patience).unwrap();
        let patient = |builder: Builder| builder.cache(policy);
        let store = on_one_pool(&pool);
        let (service, _) = Service::around(store, ManualClock::default(), patient);
        Self { service, proxy, pool, direct }
    }

    /// One more key.
    async fn issue(&self) -> Key {
        let issuer = KeyIssuer::new(self.direct.clone(), format());
        Key::from(issuer.issue(NewKey::new("acme", Expiry::Never)).await.unwrap())
    }

    /// Issues one more key, and looks it up through the service.
    async fn known(&self) -> Key {
        let key = self.issue().await;
        self.service.get(&key.text).await.is_for("acme");
        key
    }

    /// The number of queries that PostgreSQL has executed for the service.
    async fn queries(&self) -> i64 {
        let prepared = prepared(&self.pool).await;
        prepared.iter().map(|(_, executed)| executed).sum()
    }

    /// Waits until the only connection is back in its pool, which pings it first.
    async fn is_quiet(&self) {
        let idle = async {
            while self.pool.num_idle() == 0 {
                yield_now().await;
            }
        };
        within(idle).await;
    }
}

/// Each fact uses a service of its own, all on one database.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_works_among_a_million_keys_as_it_does_among_a_few() {
    let database = million().await;
    let node = async |patience| Node::on(&database, Duration::from_secs(patience)).await;
    a_key_is_asked_for_once(&node(20).await).await;
    a_thousand_first_requests_of_a_key_make_one_query(&node(20).await).await;
    a_revoked_key_is_refused_by_the_next_request(&node(20).await).await;
    // This deadline is used up: sqlx keeps trying to connect.
    without_its_database_it_knows_the_keys_it_has_seen(&node(2).await).await;
}

async fn a_key_is_asked_for_once(node: &Node) {
    let key = node.known().await;
    assert_eq!(node.queries().await, 1);
    node.is_quiet().await;
    let bytes = node.proxy.bytes_from_server();
    for _ in 0..1_000 {
        node.service.get_at_once(&key.text).is_for("acme");
    }
    assert_eq!(node.proxy.bytes_from_server(), bytes);
    assert_eq!(node.queries().await, 1);
}

async fn a_thousand_first_requests_of_a_key_make_one_query(node: &Node) {
    let key = node.issue().await;
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
    assert_eq!(node.queries().await, 1);
}

async fn a_revoked_key_is_refused_by_the_next_request(node: &Node) {
    let key = node.known().await;
    node.direct.revoke(key.record.id, Some("leaked")).await.unwrap().unwrap();
    node.service.auth.invalidate(&key.record.key_hash);
    node.service.get(&key.text).await.is_refused(RejectionKind::Revoked);
}

async fn without_its_database_it_knows_the_keys_it_has_seen(node: &Node) {
    let key = node.known().await;
    node.proxy.set(Fault::Refuse).await;
    node.service.get_at_once(&key.text).is_for("acme");
    let stranger = node.service.get(&unknown_key()).await;
    stranger.is_unavailable(RejectionKind::StoreUnavailable);
    node.service.get_at_once(&key.text).is_for("acme");
}
