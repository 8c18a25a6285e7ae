//! The contract of every store, checked on all of them by the suite that the crate offers to authors
//! of stores.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails panics")]

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::SystemTime,
};

use tower_api_key::{
    clock::ManualClock,
    key::KeyHash,
    key_store_contract, manage_keys_contract,
    record::{KeyId, KeyRecord},
    store::{KeyStore, MemoryKeyStore, PgKeyStore, SqliteKeyStore, StoreError, StoreErrorKind},
    test_util::{
        FaultStore,
        contract::{SeedKeys, manage_keys, usage_ledger},
    },
    usage_ledger_contract,
};

use crate::servers::postgres::{Database, Server};

async fn postgres() -> (PgKeyStore, Database) {
    let database = Server::shared().database().await;
    let store = PgKeyStore::connect(database.url()).await.unwrap();
    store.migrate().await.unwrap();
    (store, database)
}

async fn sqlite(url: &str) -> SqliteKeyStore {
    let store = SqliteKeyStore::connect(url).await.unwrap();
    store.migrate().await.unwrap();
    store
}

manage_keys_contract!(memory, async || (MemoryKeyStore::new(), ()));

manage_keys_contract!(sqlite_in_memory, async || (sqlite("sqlite::memory:").await, ()));

manage_keys_contract!(sqlite_file, async || {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/keys.db", folder.path().display());
    (sqlite(&url).await, folder)
});

manage_keys_contract!(postgres_server, async || postgres().await);

manage_keys_contract!(faults_that_are_not_asked_for, async || {
    (FaultStore::new(MemoryKeyStore::new(), ManualClock::default()), ())
});

usage_ledger_contract!(ledger_in_memory, async || (MemoryKeyStore::new(), ()));

usage_ledger_contract!(ledger_of_sqlite, async || (sqlite("sqlite::memory:").await, ()));

usage_ledger_contract!(ledger_of_postgres, async || postgres().await);

usage_ledger_contract!(ledger_without_faults, async || {
    (FaultStore::new(MemoryKeyStore::new(), ManualClock::default()), ())
});

/// A store that only looks keys up, and keeps the port's default for uses.
struct LookUps(MemoryKeyStore);

impl KeyStore for LookUps {
    async fn find(&self, hash: &KeyHash) -> Result<Option<KeyRecord>, StoreError> {
        self.0.find(hash).await
    }
}

impl SeedKeys for LookUps {
    async fn seed(&self, record: &KeyRecord) -> Result<(), StoreError> {
        self.0.seed(record).await
    }

    async fn last_use(&self, id: KeyId) -> Result<Option<SystemTime>, StoreError> {
        self.0.last_use(id).await
    }

    fn records_usage(&self) -> bool {
        false
    }
}

key_store_contract!(look_ups_alone, async || (LookUps(MemoryKeyStore::new()), ()));

/// Rules that the manual names.
macro_rules! on_every_store {
    ($suite:ident: $($rule:ident)*) => {
        $(
            #[tokio::test]
            async fn $rule() {
                $suite::$rule(MemoryKeyStore::new()).await.unwrap();
                $suite::$rule(sqlite("sqlite::memory:").await).await.unwrap();
                $suite::$rule(postgres().await.0).await.unwrap();
            }
        )*
    };
}

on_every_store! {
    manage_keys:
    an_update_keeps_what_may_not_change
    an_invalid_plan_name_is_refused
}

on_every_store! {
    usage_ledger:
    corrections_are_added
    hours_add_up_to_days_of_utc
    hours_are_in_order_and_only_those_with_use
    hours_of_keys_are_read_page_by_page
    use_is_read_of_a_key_while_it_was_a_consumers
}

/// A suite that stops before its end, or checks nothing, would find nothing.
#[tokio::test]
async fn each_rule_of_a_suite_is_checked_on_a_store_of_its_own() {
    let made = AtomicUsize::new(0);
    let checked = manage_keys(async || {
        made.fetch_add(1, Ordering::Relaxed);
        (MemoryKeyStore::new(), ())
    });
    checked.await.unwrap();
    assert_eq!(made.into_inner(), 50);
}

#[tokio::test]
async fn a_store_that_answers_with_an_error_breaks_rules() {
    let checked = manage_keys(async || {
        let store = FaultStore::new(MemoryKeyStore::new(), ManualClock::default());
        store.fail_with(StoreErrorKind::Corrupt);
        (store, ())
    });
    let violations = checked.await.unwrap_err();
    assert_eq!(violations.iter().count(), 50, "{violations}");
    let (rule, violation) = violations.iter().next().unwrap();
    assert_eq!(rule, "every_field_is_found");
    let text = "an operation failed that should have succeeded: StoreError { kind: Corrupt";
    assert!(violation.to_string().starts_with(text), "{violation}");
}
