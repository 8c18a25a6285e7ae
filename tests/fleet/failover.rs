//! Whole services while their servers fail over, are down together, or are upgraded.

use std::{
    collections::BTreeMap,
    fs,
    future::pending,
    ops::Range,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, response::Response, routing::get};
use http::{Request, StatusCode, header};
use sqlx::{
    AssertSqlSafe, PgPool, Row as _, postgres::PgPoolOptions, query, query_as, query_scalar,
    raw_sql, types::Uuid,
};
use tokio::{
    task::{JoinSet, yield_now},
    time::Instant,
};
use tower::ServiceExt;
use tower_api_key::{
    ApiKeyLayer, Authenticator,
    manage::{Expiry, KeyIssuer, NewKey},
    rate_limit::{Quota, RedisRateLimiter},
    store::{KeyStore as _, PgChangeFeed, PgKeyStore},
};

use crate::{
    nodes::{Key, Node, Settings, eventually, format, issue, run_if_node, within},
    raw_store::ByHand as _,
    servers::{
        postgres::{Database, Server},
        proxy::{Fault, FaultProxy},
        redis::Redis,
    },
};

const DAY: Duration = Duration::from_secs(86_400);
const HEARTBEAT: Duration = Duration::from_millis(500);
const FRESH_DURING_GAP: Duration = Duration::from_millis(500);
/// How long a revocation may go unnoticed on a dead connection.
const UNNOTICED: Duration = HEARTBEAT.saturating_mul(2);
const LOAD_DEADLINE: Duration = Duration::from_secs(2);
/// The slack of a deadline on a busy machine.
const SLACK: Duration = Duration::from_millis(500);

/// Runs a node of this file: this test in a process of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_comes_up_and_ends() {
    if run_if_node().await {
        return;
    }
    let scene = Scene::new().await;
    assert!(scene.node.terminate().await.success());
}

// A standby takes over.

/// A primary, its standby, and a node that reaches either through proxies.
struct Scene {
    database: Database,
    primary: Server,
    standby: Server,
    /// The store on the primary.
    store: PgKeyStore,
    feed: FaultProxy,
    look_ups: FaultProxy,
    keys: Vec<Key>,
    node: Node,
}

impl Scene {
    async fn new() -> Self {
        let primary = Server::start();
        let database = primary.database().await;
        let store = PgKeyStore::new(database.pool().await);
        store.migrate().await.unwrap();
        let keys = issue(&store, 60).await.unwrap();
        let standby = primary.standby();
        let (feed, look_ups) =
            tokio::join!(FaultProxy::start(primary.addr()), FaultProxy::start(primary.addr()));
        let settings = Settings {
            feed: Some(feed.url(database.url())),
            heartbeat: Some(HEARTBEAT),
            fresh_during_gap: Some(FRESH_DURING_GAP),
            load_deadline: Some(LOAD_DEADLINE),
            ..Settings::new(&look_ups.url(database.url()))
        };
        let node = Node::start(&settings).await;
        heard(&node, 1).await;
        let mut client = node.client().await;
        for key in &keys {
            client.get(&key.text).await.is(StatusCode::OK);
        }
        Self { database, primary, standby, store, feed, look_ups, keys, node }
    }

    /// Promotes the standby, which has all changes of the primary, and returns its store.
    async fn promote(&self) -> PgKeyStore {
        let url = self.standby.url(self.database.url().rsplit('/').next().unwrap());
        let pool = PgPoolOptions::new().max_connections(5).connect(&url).await.unwrap();
        let written = "select pg_current_wal_insert_lsn()::text";
        let written: String = query_scalar(written).fetch_one(self.store.pool()).await.unwrap();
        let has_all = "select pg_last_wal_replay_lsn() >= $1::pg_lsn";
        eventually("the standby has all", async || {
            query_scalar(has_all).bind(&written).fetch_one(&pool).await.unwrap()
        })
        .await;
        PgKeyStore::new(pool)
    }

    /// Closes all connections through `proxy` to the old primary, and redirects to the new one.
    async fn moves(&self, proxy: &FaultProxy) {
        proxy.redirect(self.standby.addr());
        proxy.set(Fault::Rst).await;
        eventually("connections have ended", async || proxy.open_connections() == 0).await;
        proxy.set(Fault::Pass).await;
    }

    /// The time until the node refuses a key that `store` has revoked.
    async fn revoke(&self, store: &PgKeyStore, key: usize) -> Duration {
        let key = &self.keys[key];
        let mut client = self.node.client().await;
        let text = key.text.clone();
        let refused = tokio::spawn(async move { client.until_refused(&text).await });
        store.revoke(key.id(), None).await.unwrap();
        let revoked = Instant::now();
        within(refused).await.unwrap().saturating_duration_since(revoked)
    }

    /// Continuous requests with some of the keys.
    fn load(&self, keys: Range<usize>) -> Load {
        let load = Load { is_over: Arc::default(), tasks: JoinSet::new() };
        let mut tasks = JoinSet::new();
        for task in 0..3 {
            let (address, is_over) = (self.node.address, Arc::clone(&load.is_over));
            let keys = self.keys[keys.clone()].to_vec();
            tasks.spawn(async move {
                let mut client = crate::nodes::Client::connect(address).await.unwrap();
                let mut seen = BTreeMap::new();
                for key in keys.iter().cycle().skip(task * 7) {
                    if is_over.load(Ordering::Acquire) {
                        break;
                    }
                    let status = client.get(&key.text).await.status;
                    *seen.entry(status.as_u16()).or_insert(0) += 1;
                }
                seen
            });
        }
        Load { tasks, ..load }
    }
}

struct Load {
    is_over: Arc<AtomicBool>,
    tasks: JoinSet<BTreeMap<u16, u64>>,
}

impl Load {
    /// The number of responses by status.
    async fn end(self) -> BTreeMap<u16, u64> {
        self.is_over.store(true, Ordering::Release);
        let mut all = BTreeMap::new();
        for seen in within(self.tasks.join_all()).await {
            for (status, count) in seen {
                *all.entry(status).or_insert(0) += count;
            }
        }
        all
    }
}

/// Waits until the feed of `node` is connected, for the `times`th time.
async fn heard(node: &Node, times: u64) {
    eventually("the feed is connected", async || node.count("feed_live").await == times).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_is_promoted_under_load_and_no_request_of_a_known_key_fails() {
    let scene = Scene::new().await;
    let node = &scene.node;
    assert!(scene.revoke(&scene.store, 0).await < SLACK, "before the failover");
    let unknown = issue(&scene.store, 3).await.unwrap();
    let load = scene.load(3..30);
    let new = scene.promote().await;
    scene.primary.stop_immediate().await;
    eventually("the feed is lost", async || node.count("feed_lost").await == 1).await;
    node.get(&unknown[0].text).await.is(StatusCode::SERVICE_UNAVAILABLE);

    scene.standby.promote().await;
    // While the node's feed is down.
    new.revoke(scene.keys[1].id(), None).await.unwrap();
    scene.look_ups.redirect(scene.standby.addr());
    scene.feed.redirect(scene.standby.addr());
    let promoted = Instant::now();
    let answers = async || node.get(&unknown[1].text).await.status == StatusCode::OK;
    eventually("a key is looked up on the new primary", answers).await;
    let took = promoted.elapsed();
    println!("looked up on the new primary after {took:.1?}");
    assert!(took < LOAD_DEADLINE + SLACK, "{took:?}");

    heard(node, 2).await;
    node.get(&scene.keys[1].text).await.is(StatusCode::UNAUTHORIZED);
    node.get(&scene.keys[0].text).await.is(StatusCode::UNAUTHORIZED);
    let took = scene.revoke(&new, 2).await;
    println!("revoked on the new primary: refused after {took:.1?}");
    assert!(took < SLACK, "it is heard of: {took:?}");
    let answers = load.end().await;
    println!("answers to known keys during the failover: {answers:?}");
    assert_eq!(answers.keys().collect::<Vec<_>>(), [&200], "{answers:?}");

    // Every key without a request in the meantime is confirmed once.
    let before = node.count("queries").await;
    for _ in 0..3 {
        for key in &scene.keys[30..] {
            node.get(&key.text).await.is(StatusCode::OK);
        }
    }
    assert_eq!(node.count("queries").await - before, 30);
    assert_eq!((node.count("feed_live").await, node.count("feed_lost").await), (2, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_revoked_on_a_new_primary_is_refused_soon_after_the_link_to_the_old_one_has_ended() {
    let scene = Scene::new().await;
    let new = scene.promote().await;
    scene.standby.promote().await;
    // The old primary keeps running, and the node has no reason to doubt it.
    new.revoke(scene.keys[1].id(), None).await.unwrap();
    scene.node.get(&scene.keys[1].text).await.is(StatusCode::OK);

    let mut client = scene.node.client().await;
    let text = scene.keys[1].text.clone();
    let refused = tokio::spawn(async move { client.until_refused(&text).await });
    // Both at the same time: until then, either may still confirm the key.
    tokio::join!(scene.moves(&scene.look_ups), scene.moves(&scene.feed));
    let ended = Instant::now();
    let took = within(refused).await.unwrap().saturating_duration_since(ended);
    println!("revoked on the new primary: refused {took:.1?} after the link to the old one ended");
    assert!(took < FRESH_DURING_GAP + SLACK, "{took:?}");
    heard(&scene.node, 2).await;
    assert!(scene.revoke(&new, 2).await < SLACK, "the feed listens to the new primary");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_revoked_on_a_new_primary_is_refused_although_the_link_to_the_old_one_is_half_open() {
    let scene = Scene::new().await;
    let new = scene.promote().await;
    scene.standby.promote().await;
    scene.moves(&scene.look_ups).await;
    scene.feed.redirect(scene.standby.addr());
    // Neither end notices, and new connections lead to the new primary.
    scene.feed.set(Fault::BlackHole).await;
    let took = scene.revoke(&new, 1).await;
    println!("revoked on the new primary, with a dead link to the old one: after {took:.1?}");
    assert!(took < UNNOTICED + SLACK, "{took:?}");
    scene.feed.set(Fault::Pass).await;
    heard(&scene.node, 2).await;
    assert!(scene.revoke(&new, 2).await < SLACK, "the feed listens to the new primary");
}

// Redis and PostgreSQL are down together.

/// A service whose limits are in Redis.
struct Service {
    app: Router,
    limiter: Arc<RedisRateLimiter>,
    issuer: KeyIssuer,
}

impl Service {
    fn new(pool: PgPool, redis: &Redis) -> Self {
        let store = PgKeyStore::new(pool.clone());
        let limiter = Arc::new(RedisRateLimiter::builder(&redis.url()).build().unwrap());
        let (auth, worker) = Authenticator::builder(store.clone(), format())
            // Less than one request refills during the test.
            .default_rate_limits(Quota::per(10, DAY).unwrap())
            .rate_limiter(Arc::clone(&limiter))
            .change_feed(PgChangeFeed::new(pool))
            .build();
        tokio::spawn(worker.run(pending()));
        let app = Router::new().route("/", get(async || "hello")).layer(ApiKeyLayer::new(auth));
        Self { app, limiter, issuer: KeyIssuer::new(store, format()) }
    }

    async fn issue(&self) -> String {
        let issued = self.issuer.issue(NewKey::new("acme", Expiry::Never)).await.unwrap();
        issued.key.expose_secret().to_owned()
    }

    async fn get(&self, key: &str) -> Response {
        let request = Request::get("/").header(header::AUTHORIZATION, format!("Bearer {key}"));
        let request = request.body(Body::empty()).unwrap();
        within(self.app.clone().oneshot(request)).await.unwrap()
    }

    /// How many of these requests are let in. The others get 429 and `Retry-After`.
    async fn admitted(&self, key: &str, requests: usize) -> usize {
        let mut admitted = 0;
        for _ in 0..requests {
            let response = self.get(key).await;
            match response.status() {
                StatusCode::OK => admitted += 1,
                StatusCode::TOO_MANY_REQUESTS => {
                    assert!(response.headers().contains_key(header::RETRY_AFTER));
                }
                status => panic!("{status}"),
            }
        }
        admitted
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn known_keys_keep_their_limits_while_redis_and_postgres_are_away_together() {
    let (server, redis) = (Server::start(), Redis::start());
    let database = server.database().await;
    let pool = PgPoolOptions::new().max_connections(5).connect_lazy(database.url()).unwrap();
    PgKeyStore::new(pool.clone()).migrate().await.unwrap();
    let service = Service::new(pool, &redis);
    let (known, idle, unknown) =
        (service.issue().await, service.issue().await, service.issue().await);
    // It connects on its first request.
    let often = NewKey::new("acme", Expiry::Never).rate_limits(Quota::per_second(1_000).unwrap());
    let often = service.issuer.issue(often).await.unwrap().key.expose_secret().to_owned();
    let is_shared = async || {
        service.get(&often).await;
        service.limiter.is_shared()
    };
    eventually("limits are shared", is_shared).await;
    assert_eq!(service.admitted(&known, 3).await, 3);
    assert_eq!(service.admitted(&idle, 1).await, 1);

    for round in 0..2 {
        server.stop_immediate().await;
        redis.kill();
        let admitted = service.admitted(&known, 20).await;
        assert_eq!(admitted, if round == 0 { 7 } else { 0 }, "of 10 in all: round {round}");
        assert_eq!(service.admitted(&idle, 2).await, 2, "another key has its own limit");
        assert!(!service.limiter.is_shared());
        let unavailable = if round == 0 { &unknown } else { &crate::nodes::unknown_key() };
        for _ in 0..3 {
            let response = service.get(unavailable).await;
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
            assert!(response.headers().contains_key(header::RETRY_AFTER));
        }

        server.start_again().await;
        redis.start_again();
        eventually("limits are shared again", is_shared).await;
        let answers = async || service.get(&unknown).await.status() == StatusCode::OK;
        eventually("a key is looked up again", answers).await;
        assert_eq!(service.admitted(&known, 2).await, 0, "what was spent stays spent");
    }
}

// A rolling upgrade.

/// A program of the release whose last migration is `version`, with its prepared statements.
#[derive(Clone)]
struct OldProgram {
    pool: PgPool,
    find: &'static str,
    revoke: &'static str,
    keys: Arc<Vec<(String, Uuid, Vec<u8>)>>,
    rounds: Arc<[AtomicUsize; 5]>,
    is_over: Arc<AtomicBool>,
}

macro_rules! base {
    ($more:literal) => {
        concat!(
            "id, key_hash, key_prefix, key_last4, consumer_id, name, scopes, \
             rate_limits::text as rate_limits, metadata::text as metadata, is_active, created_at, \
             created_by, not_before, expires_at, revoked_at, revoked_reason, rotated_from, ",
            $more,
            "root_id, version, clock_timestamp() as read_at"
        )
    };
}

macro_rules! statements {
    ($more:literal) => {
        (
            concat!("select ", base!($more), " from api_keys where key_hash = $1"),
            concat!(
                "update api_keys set revoked_at = clock_timestamp(), revoked_reason = $2, \
                 version = version + 1 where id = $1 and revoked_at is null returning ",
                base!($more)
            ),
        )
    };
}

const INSERT: &str = "
insert into api_keys (
    id, key_hash, key_prefix, key_last4, consumer_id, name, scopes, rate_limits, metadata,
    is_active, created_at, created_by, not_before, expires_at, revoked_at, revoked_reason,
    rotated_from, root_id, version
) values (
    $1, $2, 'sk_test_', 'last', 'acme', null, '{orders:read}', null, '{}', true, clock_timestamp(),
    null, null, null, null, null, null, $1, 1
)";

const UPDATE: &str =
    "update api_keys set name = $2, version = version + 1 where id = $1 returning version";

const RECORD_USAGE: &str = "
insert into api_key_usage as stored (key_id, last_used_at)
select used.id, clock_timestamp() from unnest($1) as used (id)
where exists (select from api_keys where api_keys.id = used.id)
order by used.id
on conflict (key_id) do update set last_used_at = excluded.last_used_at
where stored.last_used_at < excluded.last_used_at";

impl OldProgram {
    async fn start(database: &Database, version: usize) -> Self {
        let (find, revoke) = match version {
            1 | 2 => statements!(""),
            3 => statements!("rotated_at, "),
            _ => statements!(
                "rotated_at, plan, (select api_key_plans.rate_limits::text from api_key_plans \
                 where api_key_plans.name = plan) as plan_limits, "
            ),
        };
        let pool = PgPoolOptions::new().max_connections(5).connect(database.url()).await.unwrap();
        let mut keys = Vec::new();
        for _ in 0..40 {
            let key = format().generate().unwrap().expose_secret().to_owned();
            let hash = format().parse(key.as_bytes()).unwrap().hash().as_bytes().to_vec();
            let id = Uuid::from_u128(crate::servers::unique().into());
            query(INSERT).bind(id).bind(&hash).execute(&pool).await.unwrap();
            keys.push((key, id, hash));
        }
        let (rounds, is_over) = (Arc::default(), Arc::default());
        Self { pool, find, revoke, keys: Arc::new(keys), rounds, is_over }
    }

    /// Runs five continuous clients. Returns the longest look-up, or the error.
    fn traffic(&self) -> JoinSet<Result<Duration, String>> {
        let mut tasks = JoinSet::new();
        for task in 0..5 {
            let program = self.clone();
            tasks.spawn(async move {
                let mut longest = Duration::ZERO;
                while !program.is_over.load(Ordering::Acquire) {
                    let begun = Instant::now();
                    let done = match task {
                        0..3 => program.look_up(task).await,
                        3 => program.record_usage().await,
                        _ => program.manage().await,
                    };
                    done.map_err(|error| format!("client {task}: {error}"))?;
                    longest = longest.max(begun.elapsed());
                    program.rounds[task].fetch_add(1, Ordering::SeqCst);
                }
                Ok(longest)
            });
        }
        tasks
    }

    async fn look_up(&self, task: usize) -> sqlx::Result<()> {
        let round = self.rounds[task].load(Ordering::SeqCst);
        let (_, id, hash) = &self.keys[round % self.keys.len()];
        let row = query(self.find).bind(hash).fetch_one(&self.pool).await?;
        assert_eq!(row.try_get::<Uuid, _>("id")?, *id);
        Ok(())
    }

    async fn record_usage(&self) -> sqlx::Result<()> {
        let ids: Vec<_> = self.keys.iter().map(|(_, id, _)| *id).collect();
        query(RECORD_USAGE).bind(ids).execute(&self.pool).await?;
        Ok(())
    }

    /// Issues a key, changes it and revokes it.
    async fn manage(&self) -> sqlx::Result<()> {
        let (id, hash) =
            (Uuid::from_u128(crate::servers::unique().into()), hash_of(crate::servers::unique()));
        query(INSERT).bind(id).bind(&hash).execute(&self.pool).await?;
        let version: i64 = query_scalar(UPDATE).bind(id).bind("x").fetch_one(&self.pool).await?;
        assert_eq!(version, 2);
        let revoked = query(self.revoke).bind(id).bind("done with").fetch_one(&self.pool).await?;
        assert_eq!(revoked.try_get::<i64, _>("version")?, 3);
        Ok(())
    }

    /// Waits until each of its clients has made this many more rounds.
    async fn goes_on(&self, rounds: usize, tasks: &mut JoinSet<Result<Duration, String>>) {
        let now = || self.rounds.each_ref().map(|rounds| rounds.load(Ordering::SeqCst));
        let before = now();
        within(async {
            while now().iter().zip(before).any(|(now, before)| *now < before + rounds) {
                // A client that ends has failed.
                if let Some(ended) = tasks.try_join_next() {
                    panic!("{:?}", ended.unwrap());
                }
                yield_now().await;
            }
        })
        .await;
    }
}

/// Thirty-two unique bytes.
fn hash_of(number: u64) -> Vec<u8> {
    number.to_be_bytes().repeat(4)
}

/// The migrations, in order: their numbers and texts.
fn migrations() -> Vec<(i64, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations/postgres");
    let mut all: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let number = entry.file_name().to_str().unwrap()[..4].parse().unwrap();
            (number, fs::read_to_string(entry.path()).unwrap())
        })
        .collect();
    all.sort();
    all
}

/// A database in the state of the release whose last migration is the `count`th, with keys.
async fn of_a_release(count: usize) -> Database {
    let database = Server::shared().database().await;
    let (old, new) = (database.pool().await, Server::shared().database().await);
    PgKeyStore::new(new.pool().await).migrate().await.unwrap();
    let history = "select version, description, checksum from _api_key_migrations order by version";
    let history: Vec<(i64, String, i64)> =
        query_as(history).fetch_all(&new.pool().await).await.unwrap();
    let migrations = migrations();
    let numbers = |all: &[(i64, String)]| all.iter().map(|(number, _)| *number).collect::<Vec<_>>();
    let applied: Vec<_> = history.iter().map(|(version, ..)| *version).collect();
    assert_eq!(numbers(&migrations), applied, "migrations that are not applied");
    let history_table = "create table _api_key_migrations (
        version bigint primary key, description text not null, checksum bigint not null,
        applied_at timestamptz not null default clock_timestamp())";
    query(history_table).execute(&old).await.unwrap();
    for ((_, sql), (version, description, checksum)) in migrations.iter().zip(history).take(count) {
        raw_sql(AssertSqlSafe(sql.clone())).execute(&old).await.unwrap();
        let record = "insert into _api_key_migrations values ($1, $2, $3)";
        let record = query(record).bind(version).bind(description).bind(checksum);
        record.execute(&old).await.unwrap();
    }
    let fill = INSERT
        .replace("values (", "select ")
        .replace("$1, 1\n)", "gen_random_uuid(), 1 from generate_series(1, 10000) as number");
    let fill = fill
        .replace("$1, $2", "gen_random_uuid(), sha256(number::text::bytea)")
        .replace("'acme'", "'consumer ' || number % 100");
    raw_sql(AssertSqlSafe(fill)).execute(&old).await.unwrap();
    query("analyze").execute(&old).await.unwrap();
    database
}

/// How long `migrate` waits for a lock, and look-ups behind it.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

async fn an_upgrade_from(count: usize) {
    let database = of_a_release(count).await;
    let program = OldProgram::start(&database, count).await;
    let mut traffic = program.traffic();
    program.goes_on(10, &mut traffic).await;

    let new = PgKeyStore::new(database.pool().await);
    let begun = Instant::now();
    new.migrate().await.unwrap();
    let migrated = begun.elapsed();
    // The old program keeps running on tables that are newer than it is.
    program.goes_on(20, &mut traffic).await;
    program.is_over.store(true, Ordering::Release);
    let mut longest = Duration::ZERO;
    for ended in within(traffic.join_all()).await {
        longest = longest.max(ended.unwrap());
    }
    println!("from migration {count}: {migrated:.1?}; the longest statement {longest:.1?}");
    assert!(longest < LOCK_TIMEOUT, "{longest:?}");

    // The new program accepts the keys of the old one, and vice versa.
    for (key, id, _) in program.keys.iter() {
        let hash = format().parse(key.as_bytes()).unwrap().hash();
        let found = new.find(&hash).await.unwrap().expect("a key of the old program");
        assert_eq!(*found.id.as_bytes(), *id.as_bytes());
        assert_eq!(found.revoked_at, None);
    }
    let issuer = KeyIssuer::new(new.clone(), format());
    let issued = issuer.issue(NewKey::new("acme", Expiry::Never)).await.unwrap().record;
    let hash = issued.key_hash.as_bytes().to_vec();
    let found = query(program.find).bind(&hash).fetch_one(&program.pool).await.unwrap();
    assert!(found.try_get::<Option<String>, _>("revoked_reason").unwrap().is_none());
    issuer.revoke(issued.id, Some("done with")).await.unwrap();
    let found = query(program.find).bind(&hash).fetch_one(&program.pool).await.unwrap();
    let reason: String = found.try_get("revoked_reason").unwrap();
    assert_eq!(reason, "done with");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_program_has_no_error_while_its_tables_are_migrated_and_afterwards() {
    for count in 1..migrations().len() {
        an_upgrade_from(count).await;
    }
}
