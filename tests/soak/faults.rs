//! Faults, one after another, in the order that the seed decides.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::json;
use sqlx::{Executor as _, query, query_scalar};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use tower_api_key::{
    manage::{Expiry, KeyIssuer, NewKey},
    record::Scopes,
    store::PgKeyStore,
};

use crate::{
    client::{self, Connection},
    clock::{Clock, Micros, micros},
    fleet::Fleet,
    node::format,
    oracle::{DisturbanceId, Oracle, Situation},
    random::Random,
    servers::proxy::Fault,
};

pub(crate) struct Faults {
    fleet: Arc<Fleet>,
    oracle: Oracle,
    clock: Clock,
    random: Random,
    operators: Operators,
    made: Made,
}

/// Operators that fill the pool of a node. No client uses their keys.
struct Operators {
    keys: Vec<String>,
    /// The id of the key that they change.
    locked: String,
}

impl Operators {
    /// More than the connections of a node.
    const COUNT: usize = 10;

    async fn issue(fleet: &Fleet) -> Self {
        let store = PgKeyStore::connect(&fleet.url()).await.expect("the database");
        let issuer = KeyIssuer::new(store, format());
        let scopes = ["api-keys:write", "api-keys:all-consumers"];
        let scopes = Scopes::parse(scopes).expect("scopes");
        let mut keys = Vec::new();
        for number in 0..Self::COUNT {
            let new = NewKey::new(format!("operator-{number}"), Expiry::Never);
            let issued = issuer.issue(new.scopes(scopes.clone())).await.expect("a key");
            keys.push(issued.key.expose_secret().to_owned());
        }
        let locked = issuer.issue(NewKey::new("locked", Expiry::Never)).await.expect("a key");
        Self { keys, locked: locked.record.id.to_string() }
    }
}

/// How many times each fault was made.
pub(crate) type Made = BTreeMap<String, u64>;

#[derive(Clone, Copy, Debug)]
enum Kind {
    PostgresCrash,
    PostgresFreeze,
    ListenersEnded,
    SessionsEnded,
    StoreLink,
    FeedLink,
    BothLinks,
    RedisCrash,
    RedisFreeze,
    RedisFlushed,
    NodeTerminated,
    NodeKilled,
    NodeFrozen,
    NodeReplaced,
    PostgresPromoted,
    PoolFilled,
    RowsLocked,
    UsageLocked,
    WallStepped,
}

const KINDS: [Kind; 19] = [
    Kind::PostgresCrash,
    Kind::PostgresFreeze,
    Kind::ListenersEnded,
    Kind::SessionsEnded,
    Kind::StoreLink,
    Kind::FeedLink,
    Kind::BothLinks,
    Kind::RedisCrash,
    Kind::RedisFreeze,
    Kind::RedisFlushed,
    Kind::NodeTerminated,
    Kind::NodeKilled,
    Kind::NodeFrozen,
    Kind::NodeReplaced,
    Kind::PostgresPromoted,
    Kind::PoolFilled,
    Kind::RowsLocked,
    Kind::UsageLocked,
    Kind::WallStepped,
];

impl Faults {
    pub(crate) async fn new(
        fleet: &Arc<Fleet>,
        oracle: &Oracle,
        clock: Clock,
        random: Random,
    ) -> Self {
        let operators = Operators::issue(fleet).await;
        let (fleet, oracle) = (Arc::clone(fleet), oracle.clone());
        Self { fleet, oracle, clock, random, operators, made: Made::new() }
    }

    pub(crate) async fn run(mut self, length: Duration) -> Made {
        let end = self.clock.now() + micros(length);
        // Each kind occurs once before any occurs again.
        let mut left: Vec<Kind> = Vec::new();
        while self.clock.now() < end {
            self.rest(500, 4_000).await;
            if left.is_empty() {
                left = KINDS.to_vec();
            }
            let at = usize::try_from(self.random.below(left.len() as u64)).expect("an index");
            let kind = left.swap_remove(at);
            *self.made.entry(format!("{kind:?}")).or_default() += 1;
            self.make(kind).await;
        }
        self.made
    }

    async fn rest(&mut self, from: Micros, to: Micros) {
        sleep(Duration::from_millis(self.random.between(from, to))).await;
    }

    fn disturb(
        &self,
        node: Option<usize>,
        situations: &[Situation],
        what: &str,
    ) -> Vec<DisturbanceId> {
        let disturb = |&situation| self.oracle.disturb(node, situation, what);
        situations.iter().map(disturb).collect()
    }

    fn end(&self, disturbances: Vec<DisturbanceId>) {
        disturbances.into_iter().for_each(|disturbance| self.oracle.end(disturbance));
    }

    async fn make(&mut self, kind: Kind) {
        use Situation::{Down, FeedBroken, FeedSilent, Frozen, RedisAway, StoreAway, WallStepped};
        let node = usize::try_from(self.random.below(self.fleet.len() as u64)).expect("a node");
        match kind {
            Kind::PostgresCrash => {
                let wrong = self.disturb(None, &[FeedBroken, StoreAway], "PostgreSQL restarts");
                self.fleet.server().stop_immediate().await;
                self.rest(100, 2_500).await;
                self.fleet.server().start_again().await;
                self.end(wrong);
            }
            Kind::PostgresFreeze => {
                let postmaster = self.postmaster().await;
                let wrong = self.disturb(None, &[FeedSilent, StoreAway], "PostgreSQL stands still");
                self.fleet.signal_postgres(&postmaster, "STOP").await;
                self.rest(200, 3_000).await;
                self.fleet.signal_postgres(&postmaster, "CONT").await;
                self.end(wrong);
            }
            Kind::ListenersEnded => {
                let wrong = self.disturb(None, &[FeedBroken], "listeners are ended");
                self.sql(
                    "select count(pg_terminate_backend(pid)) from pg_stat_activity \
                     where pid <> pg_backend_pid() and query ilike '%listen%'",
                )
                .await;
                self.end(wrong);
            }
            Kind::SessionsEnded => {
                let wrong = self.disturb(None, &[FeedBroken, StoreAway], "sessions are ended");
                self.sql(
                    "select count(pg_terminate_backend(pid)) from pg_stat_activity \
                     where pid <> pg_backend_pid() and datname = current_database()",
                )
                .await;
                self.end(wrong);
            }
            Kind::StoreLink => {
                let fault = self.store_fault();
                let what = format!("link of the store: {fault:?}");
                let wrong = self.disturb(Some(node), &[StoreAway], &what);
                self.fleet.store_link(node).set(fault).await;
                self.rest(200, 5_000).await;
                self.fleet.store_link(node).set(Fault::Pass).await;
                self.end(wrong);
            }
            Kind::FeedLink => {
                let (fault, situation) = self.feed_fault();
                let what = format!("link of the feed: {fault:?}");
                let wrong = self.disturb(Some(node), &[situation], &what);
                self.fleet.feed_link(node).set(fault).await;
                self.rest(200, 5_000).await;
                self.fleet.feed_link(node).set(Fault::Pass).await;
                self.end(wrong);
            }
            Kind::BothLinks => {
                let fault = *self.random.pick(&[Fault::BlackHole, Fault::Refuse, Fault::Rst]);
                let what = format!("both links: {fault:?}");
                let wrong = self.disturb(Some(node), &[FeedSilent, StoreAway], &what);
                self.fleet.store_link(node).set(fault).await;
                self.fleet.feed_link(node).set(fault).await;
                self.rest(500, 12_000).await;
                self.fleet.store_link(node).set(Fault::Pass).await;
                self.fleet.feed_link(node).set(Fault::Pass).await;
                self.end(wrong);
            }
            Kind::RedisCrash => {
                let wrong = self.disturb(None, &[RedisAway], "Redis restarts with nothing");
                let fleet = Arc::clone(&self.fleet);
                tokio::task::spawn_blocking(move || fleet.redis.kill()).await.expect("Redis");
                self.rest(100, 3_000).await;
                let fleet = Arc::clone(&self.fleet);
                let started = tokio::task::spawn_blocking(move || fleet.redis.start_again());
                started.await.expect("Redis");
                self.end(wrong);
            }
            Kind::RedisFreeze => {
                let wrong = self.disturb(None, &[RedisAway], "Redis stands still");
                self.fleet.redis.signal("STOP");
                self.rest(100, 3_000).await;
                self.fleet.redis.signal("CONT");
                self.end(wrong);
            }
            Kind::RedisFlushed => {
                let wrong = self.disturb(None, &[RedisAway], "Redis is flushed");
                let fleet = Arc::clone(&self.fleet);
                let flushed = tokio::task::spawn_blocking(move || fleet.redis.tell("FLUSHALL"));
                flushed.await.expect("Redis");
                self.end(wrong);
            }
            Kind::NodeTerminated | Kind::NodeKilled => {
                let wrong = self.disturb(Some(node), &[Down], &format!("{kind:?}"));
                let is_killed = matches!(kind, Kind::NodeKilled);
                self.fleet.signal(node, if is_killed { "KILL" } else { "TERM" }).await;
                let written_until = self.fleet.ended(node).await;
                self.oracle.node_ended(node, is_killed, written_until);
                self.rest(50, 1_000).await;
                self.fleet.start_node(node).await;
                self.end(wrong);
            }
            Kind::NodeFrozen => {
                let wrong = self.disturb(Some(node), &[Frozen], "the node stands still");
                self.fleet.signal(node, "STOP").await;
                self.rest(200, 4_000).await;
                self.fleet.signal(node, "CONT").await;
                self.end(wrong);
            }
            Kind::NodeReplaced => {
                // Only connections are lost.
                let wrong = self.disturb(Some(node), &[Down], "the node is replaced");
                self.fleet.replace_node(node).await;
                self.end(wrong);
            }
            Kind::PostgresPromoted => {
                let standby = self.fleet.standby().await;
                self.rest(100, 1_000).await;
                let wrong = self.disturb(None, &[FeedBroken, StoreAway], "a standby is promoted");
                self.fleet.fail_over(standby).await;
                self.end(wrong);
            }
            Kind::PoolFilled => {
                // Not a disturbance: look-ups have connections of their own.
                self.fill_pool(node).await;
            }
            Kind::RowsLocked => {
                // Not a disturbance: only changes of these rows wait, and fail.
                self.lock("select from api_keys order by id desc limit 20 for update").await;
            }
            Kind::UsageLocked => {
                self.lock("lock table api_key_usage in access exclusive mode").await;
            }
            Kind::WallStepped => {
                let wrong = self.disturb(Some(node), &[WallStepped], "the wall clock is stepped");
                let millis = *self.random.pick(&[3_600_000_i64, -3_600_000, 5_000, -5_000, 700]);
                self.set_wall(node, millis).await;
                self.rest(500, 4_000).await;
                self.set_wall(node, 0).await;
                self.end(wrong);
            }
        }
    }

    fn store_fault(&mut self) -> Fault {
        let bytes = self.random.between(0, 3_000);
        *self.random.pick(&[
            Fault::Refuse,
            Fault::Rst,
            Fault::Fin,
            Fault::BlackHole,
            Fault::Mute,
            Fault::Delay(Duration::from_millis(200)),
            Fault::Delay(Duration::from_secs(2)),
            Fault::CutAfter(bytes),
            Fault::Corrupt(bytes),
        ])
    }

    fn feed_fault(&mut self) -> (Fault, Situation) {
        *self.random.pick(&[
            (Fault::Refuse, Situation::FeedBroken),
            (Fault::Rst, Situation::FeedBroken),
            (Fault::Fin, Situation::FeedBroken),
            (Fault::BlackHole, Situation::FeedSilent),
            (Fault::Mute, Situation::FeedSilent),
            (Fault::Delay(Duration::from_millis(300)), Situation::FeedSilent),
            (Fault::Corrupt(500), Situation::FeedSilent),
        ])
    }

    async fn postmaster(&self) -> String {
        let mut session = self.fleet.session().await;
        let file = "select split_part(pg_read_file('postmaster.pid'), chr(10), 1)";
        query_scalar(file).fetch_one(&mut session).await.expect("the postmaster's id")
    }

    async fn sql(&self, sql: &'static str) {
        let mut session = self.fleet.session().await;
        session.execute(sql).await.expect("a statement of the test");
    }

    /// Holds a lock for a while.
    async fn lock(&mut self, sql: &'static str) {
        let mut session = self.fleet.session().await;
        session.execute("begin").await.expect("a transaction");
        session.execute(sql).await.expect("a lock");
        self.rest(200, 2_000).await;
        session.execute("rollback").await.expect("the end of the lock");
    }

    /// Operators change a locked key concurrently, more of them than there are connections.
    async fn fill_pool(&mut self, node: usize) {
        let mut session = self.fleet.session().await;
        session.execute("begin").await.expect("a transaction");
        let lock = "select from api_keys where id = $1::uuid for update";
        query(lock).bind(&self.operators.locked).execute(&mut session).await.expect("a lock");
        let Some(address) = self.fleet.address(node) else { return };
        let mut waiting = JoinSet::new();
        let is_over = Arc::new(AtomicBool::new(false));
        for operator in self.operators.keys.clone() {
            let path = self.operators.locked.clone();
            let is_over = Arc::clone(&is_over);
            // A node gives up on a lock after half a second, so operators retry until all wait at
            // once.
            waiting.spawn(async move {
                let mut connection = Connection::open(address, false).await?;
                let patch = json!({ "name": "changed by an operator" });
                while !is_over.load(Ordering::Relaxed) {
                    connection.manage(&operator, "PATCH", &path, &patch).await?;
                }
                Some(())
            });
        }
        let filled = "select count(*) >= 5 from pg_stat_activity where wait_event_type = 'Lock'";
        let mut other = self.fleet.session().await;
        let wait = async {
            while !query_scalar(filled).fetch_one(&mut other).await.unwrap_or(false) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(Duration::from_secs(30), wait).await.expect("sessions that wait for the lock");
        self.rest(500, 2_000).await;
        is_over.store(true, Ordering::Relaxed);
        session.execute("rollback").await.expect("the end of the lock");
        waiting.join_all().await;
    }

    async fn set_wall(&self, node: usize, millis: i64) {
        let address = self.fleet.address(node).expect("a running node");
        let status = client::post(address, &format!("/wall/{millis}")).await;
        assert_eq!(status, Some(200), "the node's clock is set");
    }
}
