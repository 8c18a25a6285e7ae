//! Keys that are looked up on a standby, and what becomes of revocations that it has not applied.

#![cfg(test)]

mod by_hand;
mod harness;

use std::{
    future::{Future, pending},
    time::{Duration, SystemTime},
};

use sqlx::{AssertSqlSafe, Connection, PgConnection, query_scalar, raw_sql};
use tokio::{
    task::yield_now,
    time::{Instant, timeout},
};
use tower_api_key::{
    Authenticator,
    auth::{CachePolicy, FeedHealth, RejectionKind},
    key::{KeyFormat, KeyHash},
    manage::{Expiry, KeyIssuer, NewKey},
    record::{KeyId, KeyRecord},
    store::{Change, ChangeFeed, PgKeyStore, PollingChangeFeed},
};

use crate::{
    by_hand::ByHand as _,
    harness::{
        postgres::{Database, Server},
        proxy::{Fault, FaultProxy},
        unique,
    },
};

const SOON: Duration = Duration::from_secs(30);
const OFTEN: Duration = Duration::from_millis(10);
const MAX_LAG: Duration = Duration::from_millis(500);
/// What a busy machine adds.
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

/// A primary with a key, and a standby of it.
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

    /// From now on, the standby hears of its primary through `proxy`.
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

/// How long it takes until what is polled is too old, or is not any more.
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

/// Nothing happens, for several times as long as a standby may be behind.
async fn stays_current(feed: &mut impl ChangeFeed) {
    let begun = Instant::now();
    while begun.elapsed() < 3 * MAX_LAG {
        let change = soon(feed.next()).await.unwrap();
        assert!(matches!(change, Change::Nothing { .. }), "{change:?}");
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
    // By a role that may read the log, and nothing else: no statistics either.
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
    // Also by who comes only now.
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
        // It takes the standby's time-out to notice a dead connection; the primary knows at once.
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
        // Changes are told nevertheless.
        touch(&mut pair.prompt().await).await;
        told(&mut feed, Change::Changed(KEY)).await;
        proxy.set(Fault::Pass).await;
        until(&mut feed, false).await;
    }
    // A standby is no primary.
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
    let admitted = async |key| auth.authenticate(text(key)).await.is_ok();
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
    // For good, as long as the standby stands still, and as during an outage.
    for _ in 0..20 {
        let rejection = auth.authenticate(text(0)).await.unwrap_err();
        assert_eq!(rejection.kind(), RejectionKind::StoreUnavailable);
    }

    pair.resume_replay().await;
    let live = async {
        while !is_live() {
            yield_now().await;
        }
    };
    soon(live).await;
    let rejection = auth.authenticate(text(0)).await.unwrap_err();
    assert_eq!(rejection.kind(), RejectionKind::Revoked);
    assert!(admitted(1).await);
    worker.abort();
}
