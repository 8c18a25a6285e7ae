//! The suite that the crate offers to authors of change feeds: the crate's own keep it, and it finds
//! what is wrong with others.

#![allow(clippy::unwrap_used, reason = "a test that fails panics")]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tower_api_key::{
    change_feed_contract,
    record::KeyId,
    store::{
        KeyQuery, ManageKeys as _, MemoryKeyStore, PgChangeFeed, PgKeyStore, PollingChangeFeed,
        SqliteKeyStore, StoreError,
        port::{Change, ChangeFeed, ManagePlans as _},
    },
    test_util::contract::change_feed,
};

use crate::servers::postgres::{Database, Server};

const OFTEN: Duration = Duration::from_millis(10);

async fn postgres() -> (PgKeyStore, Database) {
    let database = Server::shared().database().await;
    let store = PgKeyStore::connect(database.url()).await.unwrap();
    store.migrate().await.unwrap();
    (store, database)
}

async fn sqlite() -> (SqliteKeyStore, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/keys.db", folder.path().display());
    let store = SqliteKeyStore::connect(&url).await.unwrap();
    store.migrate().await.unwrap();
    (store, folder)
}

change_feed_contract!(listening_to_postgres, async || {
    let (store, database) = postgres().await;
    let feed = PgChangeFeed::new(store.pool().clone());
    ((store, feed), database)
});

change_feed_contract!(polling_postgres, async || {
    let (store, database) = postgres().await;
    let feed = PollingChangeFeed::new(store.clone()).interval(OFTEN);
    ((store, feed), database)
});

change_feed_contract!(polling_sqlite, async || {
    let (store, folder) = sqlite().await;
    let feed = PollingChangeFeed::new(store.clone()).interval(OFTEN);
    ((store, feed), folder)
});

/// Compares what a store in memory has with what it had, every second of a paused clock.
struct Comparing {
    store: MemoryKeyStore,
    seen: Option<Seen>,
    told: Vec<Change>,
    /// Loses every second change.
    is_lossy: bool,
    /// Announces nothing but keys.
    is_deaf_to_plans: bool,
}

#[derive(Clone, PartialEq)]
struct Seen {
    versions: BTreeMap<KeyId, u64>,
    plans: Vec<String>,
}

impl Comparing {
    fn new(store: MemoryKeyStore) -> Self {
        Self { store, seen: None, told: Vec::new(), is_lossy: false, is_deaf_to_plans: false }
    }

    async fn look(&self) -> Result<Seen, StoreError> {
        let keys = self.store.list(&KeyQuery::new().limit(1_000)).await?.keys;
        let versions = keys.iter().map(|key| (key.record.id, key.record.version)).collect();
        let plans = self.store.plans().await?.into_iter().map(|(name, _)| name).collect();
        Ok(Seen { versions, plans })
    }
}

impl ChangeFeed for Comparing {
    async fn connect(&mut self) -> Result<(), StoreError> {
        self.told.clear();
        self.seen = Some(self.look().await?);
        Ok(())
    }

    async fn next(&mut self) -> Result<Change, StoreError> {
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        loop {
            if let Some(change) = self.told.pop() {
                return Ok(change);
            }
            ticks.tick().await;
            let now = self.look().await?;
            let before = self.seen.replace(now.clone()).unwrap_or_else(|| now.clone());
            if before.plans != now.plans && !self.is_deaf_to_plans {
                self.told.push(Change::Everything);
            }
            let ids: BTreeSet<_> = before.versions.keys().chain(now.versions.keys()).collect();
            let changed =
                ids.into_iter().filter(|id| before.versions.get(id) != now.versions.get(id));
            let step = if self.is_lossy { 2 } else { 1 };
            self.told.extend(changed.step_by(step).map(|id| Change::Changed(*id)));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_feed_that_loses_changes_is_found() {
    type Break = fn(&mut Comparing);
    let cases: [(Break, &[&str]); 3] = [
        (|_| {}, &[]),
        (|feed| feed.is_lossy = true, &["each_of_many_changes_is_announced"]),
        (|feed| feed.is_deaf_to_plans = true, &["a_change_of_a_plan_is_announced"]),
    ];
    for (make_wrong, expected) in cases {
        let checked = change_feed(async || {
            let store = MemoryKeyStore::new();
            let mut feed = Comparing::new(store.clone());
            make_wrong(&mut feed);
            ((store, feed), ())
        });
        let found = checked.await.err();
        let rules: Vec<_> = found.iter().flat_map(|found| found.iter()).map(|it| it.0).collect();
        assert_eq!(rules, expected, "{found:?}");
    }
}
