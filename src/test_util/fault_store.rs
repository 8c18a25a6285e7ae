use std::{
    fmt,
    sync::{Arc, OnceLock, Weak},
    time::{Duration, SystemTime},
};

use tokio::sync::{Mutex, watch};

use crate::{
    auth::Worker,
    clock::ManualClock,
    key::KeyHash,
    rate_limit::RateLimits,
    record::{AuditEntry, KeyId, KeyRecord},
    store::{
        EventPage, EventQuery, KeyPage, KeyQuery, KeyStore, ManageKeys, StoreError, StoreErrorKind,
        UsageBucket, UsageCursor, UsageQuery,
        port::{Backend, HourlyUse, LegacyHashes, LegacyKey, ManagePlans, UsageBatch},
    },
};

/// A store whose faults a test controls, around another store. Clones share the faults.
///
/// A fault concerns every operation of the store, reading and writing. A transaction that has begun
/// goes on without faults.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use tower_api_key::{
///     clock::ManualClock,
///     store::{ManageKeys, KeyQuery, MemoryKeyStore},
///     test_util::FaultStore,
/// };
///
/// let store = FaultStore::new(MemoryKeyStore::new(), ManualClock::default());
/// store.fail_next(1);
/// assert!(store.list(&KeyQuery::new()).await.is_err());
/// assert!(store.list(&KeyQuery::new()).await.is_ok());
/// # }
/// ```
#[derive(Clone)]
pub struct FaultStore<S> {
    store: S,
    clock: ManualClock,
    faults: Arc<watch::Sender<Faults>>,
    worker: Arc<OnceLock<Weak<Mutex<Worker>>>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Faults {
    /// The error of every operation.
    error: Option<StoreErrorKind>,
    /// How many operations fail.
    failures: usize,
    delay: Duration,
    /// How many operations wait for the clock.
    waiting: usize,
    /// How many operations have begun.
    begun: usize,
}

impl<S> FaultStore<S> {
    /// `store` without faults. Delays are measured by `clock`.
    pub fn new(store: S, clock: ManualClock) -> Self {
        Self { store, clock, faults: Arc::default(), worker: Arc::default() }
    }

    /// The next `operations` fail as [unavailable](StoreErrorKind::Unavailable).
    pub fn fail_next(&self, operations: usize) {
        self.faults.send_modify(|faults| faults.failures = operations);
    }

    /// Every operation fails as [unavailable](StoreErrorKind::Unavailable), until the store
    /// [comes back](Self::come_back).
    pub fn go_down(&self) {
        self.fail_with(StoreErrorKind::Unavailable);
    }

    /// Every operation fails with an error of this kind, until the store
    /// [comes back](Self::come_back).
    pub fn fail_with(&self, kind: StoreErrorKind) {
        self.faults.send_modify(|faults| faults.error = Some(kind));
    }

    /// Ends all faults: failures and delays. Operations that wait already go on waiting.
    pub fn come_back(&self) {
        self.faults.send_modify(|faults| {
            let Faults { waiting, begun, .. } = *faults;
            *faults = Faults { waiting, begun, ..Faults::default() };
        });
    }

    /// Every operation waits until the clock has advanced by `delay` since it began.
    pub fn delay(&self, delay: Duration) {
        self.faults.send_modify(|faults| faults.delay = delay);
    }

    /// Waits until `operations` wait for the clock, so that the test can then advance it.
    pub async fn until_waiting(&self, operations: usize) {
        let mut faults = self.faults.subscribe();
        // It cannot end early: `self` keeps the sender.
        let _ = faults.wait_for(|faults| faults.waiting >= operations).await;
    }

    /// How many operations have begun, failed ones included: to assert that something asks the store,
    /// or does not.
    #[must_use]
    pub fn operations(&self) -> usize {
        self.faults.borrow().begun
    }

    /// The store without faults.
    #[must_use]
    pub fn inner(&self) -> &S {
        &self.store
    }

    /// Reads of last uses have `worker` write them first, because it does not run.
    pub(super) fn write_usage_with(&self, worker: Weak<Mutex<Worker>>) {
        // The store is made together with the worker, so it has no other.
        let _ = self.worker.set(worker);
    }

    async fn write_usage(&self) {
        // A slow store would be waited for twice.
        if !self.faults.borrow().delay.is_zero() {
            return;
        }
        if let Some(worker) = self.worker.get().and_then(Weak::upgrade) {
            worker.lock().await.write_usage_now().await;
        }
    }

    /// Waits, and fails if the operation is to fail.
    async fn begin_operation(&self) -> Result<(), StoreError> {
        let mut error = None;
        let mut delay = Duration::ZERO;
        self.faults.send_modify(|faults| {
            faults.begun += 1;
            delay = faults.delay;
            error = faults.error;
            if error.is_none() && faults.failures > 0 {
                faults.failures -= 1;
                error = Some(StoreErrorKind::Unavailable);
            }
        });
        if !delay.is_zero() {
            let _waiting = Waiting::new(&self.faults);
            self.clock.sleep(delay).await;
        }
        match error {
            Some(kind) => Err(StoreError::new(kind).because("a fault that the test asked for")),
            None => Ok(()),
        }
    }
}

/// Counts an operation that waits, also if it is dropped.
struct Waiting<'a>(&'a watch::Sender<Faults>);

impl<'a> Waiting<'a> {
    fn new(faults: &'a watch::Sender<Faults>) -> Self {
        faults.send_modify(|faults| faults.waiting += 1);
        Self(faults)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|faults| faults.waiting -= 1);
    }
}

impl<S: KeyStore> KeyStore for FaultStore<S> {
    async fn find(&self, hash: &KeyHash) -> Result<Option<KeyRecord>, StoreError> {
        self.begin_operation().await?;
        self.store.find(hash).await
    }

    async fn record_usage(&self, batch: &UsageBatch) -> Result<(), StoreError> {
        self.begin_operation().await?;
        self.store.record_usage(batch).await
    }

    async fn append_audit(&self, entries: &[AuditEntry]) -> Result<(), StoreError> {
        self.begin_operation().await?;
        self.store.append_audit(entries).await
    }
}

impl<S: ManageKeys> ManageKeys for FaultStore<S> {
    type Transaction = S::Transaction;

    async fn begin(&self) -> Result<S::Transaction, StoreError> {
        self.begin_operation().await?;
        self.store.begin().await
    }

    async fn get(&self, id: KeyId) -> Result<Option<KeyRecord>, StoreError> {
        self.begin_operation().await?;
        self.store.get(id).await
    }

    async fn find_many(&self, hashes: &[KeyHash]) -> Result<Vec<KeyRecord>, StoreError> {
        self.begin_operation().await?;
        self.store.find_many(hashes).await
    }

    async fn list(&self, query: &KeyQuery) -> Result<KeyPage, StoreError> {
        self.begin_operation().await?;
        self.write_usage().await;
        self.store.list(query).await
    }

    async fn events(&self, query: &EventQuery) -> Result<EventPage, StoreError> {
        self.begin_operation().await?;
        self.write_usage().await;
        self.store.events(query).await
    }

    async fn last_used_at(&self, id: KeyId) -> Result<Option<SystemTime>, StoreError> {
        self.begin_operation().await?;
        self.write_usage().await;
        self.store.last_used_at(id).await
    }

    async fn usage(&self, query: &UsageQuery) -> Result<Vec<UsageBucket>, StoreError> {
        self.begin_operation().await?;
        self.write_usage().await;
        self.store.usage(query).await
    }

    async fn usage_hours(
        &self,
        after: UsageCursor,
        end: SystemTime,
        limit: usize,
    ) -> Result<Vec<HourlyUse>, StoreError> {
        self.begin_operation().await?;
        self.write_usage().await;
        self.store.usage_hours(after, end, limit).await
    }
}

impl<S: ManagePlans> ManagePlans for FaultStore<S> {
    async fn set_plan(&self, name: &str, limits: &RateLimits) -> Result<(), StoreError> {
        self.begin_operation().await?;
        self.store.set_plan(name, limits).await
    }

    async fn remove_plan(&self, name: &str) -> Result<bool, StoreError> {
        self.begin_operation().await?;
        self.store.remove_plan(name).await
    }

    async fn plans(&self) -> Result<Vec<(String, RateLimits)>, StoreError> {
        self.begin_operation().await?;
        self.store.plans().await
    }
}

impl<S: LegacyHashes> LegacyHashes for FaultStore<S> {
    async fn legacy_keys(
        &self,
        hint: Option<&str>,
        limit: usize,
    ) -> Result<Vec<LegacyKey>, StoreError> {
        self.begin_operation().await?;
        self.store.legacy_keys(hint, limit).await
    }

    async fn count_legacy_keys(&self) -> Result<u64, StoreError> {
        self.begin_operation().await?;
        self.store.count_legacy_keys().await
    }
}

impl<S: Backend> Backend for FaultStore<S> {
    type Feed = S::Feed;

    async fn migrate(&self) -> Result<(), StoreError> {
        self.begin_operation().await?;
        self.store.migrate().await
    }

    fn change_feed(&self) -> Option<S::Feed> {
        self.store.change_feed()
    }
}

impl<S: fmt::Debug> fmt::Debug for FaultStore<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultStore")
            .field("store", &self.store)
            .field("faults", &*self.faults.borrow())
            .finish_non_exhaustive()
    }
}
