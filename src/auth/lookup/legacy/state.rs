//! What look-ups by legacy hashes share, and what bounds them.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    thread::available_parallelism,
    time::Duration,
};

use tokio::sync::Semaphore;

use super::{dyn_hashes::DynHashes, left::Left, presented::Presented};
use crate::{
    auth::throttle::{CpuBudget, LookupClass},
    key::{AcceptedFormat, KeyHash},
    store::port::LegacyHashes,
    trace,
};

/// How long a request waits for its verification. The verification then goes on without it, so that
/// a key that is compared with many hashes is known when its client retries.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// How many queries for candidates run at once, so that management keeps connections.
const MAX_QUERIES: usize = 2;

/// What verifies keys by their legacy hashes.
pub(in crate::auth) struct Legacy {
    pub(super) hashes: Arc<dyn DynHashes>,
    pub(super) queries: Semaphore,
    first: Lane,
    /// For keys that were rejected before: ever new keys never get here.
    retried: Lane,
    /// One for each verification at a time.
    pub(super) cores: Arc<Semaphore>,
    /// The keys that are being compared.
    scanned: Mutex<HashSet<KeyHash>>,
    left: Left,
    pub(super) errors: trace::ErrorLog,
}

/// What keys of one kind may spend.
pub(super) struct Lane {
    /// For the whole comparison of a key, so that few go into debt at once.
    pub(super) turns: Semaphore,
    pub(super) budget: CpuBudget,
}

impl Legacy {
    pub(in crate::auth) fn new(hashes: impl LegacyHashes) -> Self {
        let cores = available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1));
        let lane = || Lane { turns: Semaphore::new(cores), budget: CpuBudget::default() };
        Self {
            hashes: Arc::new(hashes),
            queries: Semaphore::new(MAX_QUERIES),
            first: lane(),
            retried: lane(),
            cores: Arc::new(Semaphore::new(cores)),
            scanned: Mutex::default(),
            left: Left::default(),
            errors: trace::ErrorLog::default(),
        }
    }

    /// How much longer than a query a look-up takes.
    pub(in crate::auth) const fn patience(&self) -> Duration {
        PATIENCE
    }

    /// A copy of the key, if it may be one that has not moved.
    pub(in crate::auth) fn presented(
        &self,
        formats: &[AcceptedFormat],
        key: &[u8],
    ) -> Option<Arc<Presented>> {
        if self.left.is_none() {
            return None;
        }
        Presented::of(formats, key).map(Arc::new)
    }

    /// Counts the keys that are left.
    pub(in crate::auth) async fn count(&self, now: Duration) {
        let counting = self.left.begin();
        match self.hashes.count().await {
            Ok(left) => self.left.counted(counting, left),
            Err(error) => self.errors.warn("legacy hashes not counted", &error, now),
        }
    }

    /// Keys may have been imported.
    pub(in crate::auth) fn may_have_grown(&self) {
        self.left.may_have_grown();
    }

    /// How many keys are left, as last counted.
    #[cfg(feature = "metrics")]
    pub(in crate::auth) fn left(&self) -> Option<u64> {
        self.left.count()
    }

    pub(super) fn lane(&self, class: LookupClass) -> &Lane {
        match class {
            LookupClass::Unknown(_) => &self.first,
            LookupClass::Retrying(_) | LookupClass::Known => &self.retried,
        }
    }

    /// Notes that a key is being compared; `None` if it already is.
    pub(super) fn enter(self: &Arc<Self>, hash: KeyHash) -> Option<Scanning> {
        let mut scanned = self.scanned.lock().unwrap_or_else(PoisonError::into_inner);
        scanned.insert(hash).then(|| Scanning { legacy: Arc::clone(self), hash })
    }
}

/// A comparison in progress.
pub(super) struct Scanning {
    pub(super) legacy: Arc<Legacy>,
    pub(super) hash: KeyHash,
}

impl Drop for Scanning {
    fn drop(&mut self) {
        let scanned = self.legacy.scanned.lock();
        scanned.unwrap_or_else(PoisonError::into_inner).remove(&self.hash);
    }
}
