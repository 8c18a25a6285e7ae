//! Keys that still have a slow or salted hash of another system: they are verified and moved at their
//! first use.
//!
//! Only keys that the store does not know by their hash get here. A request finds the keys that may
//! be its own by the hint in it, compares it with their hashes on blocking threads, and replaces the
//! hash that matches by the one by which the key is found from then on.
//!
//! Whoever makes keys up causes this work, so it is bounded: half of the cores at once, and half a
//! core in the long run for keys that turn out to be unknown.

mod dyn_hashes;
mod left;
mod presented;
mod scan;

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    thread::available_parallelism,
    time::Duration,
};

use tokio::{sync::Semaphore, time::timeout};

pub(in crate::auth) use self::presented::Presented;
use self::{dyn_hashes::DynHashes, left::Left};
use super::fetch::Fetched;
use crate::{
    auth::{
        Event, Rejection, VerificationOutcome,
        core::Core,
        throttle::{CpuBudget, LookupClass},
    },
    key::{AcceptedFormat, KeyHash},
    store::port::LegacyHashes,
    trace,
};

/// How long a request waits for its verification. The verification then goes on without it, so that
/// a key that is compared with many hashes is known when its client retries.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many queries for candidates run at once, so that management keeps connections.
const MAX_QUERIES: usize = 2;

/// What verifies keys by their legacy hashes.
pub(in crate::auth) struct Legacy {
    hashes: Arc<dyn DynHashes>,
    queries: Semaphore,
    first: Lane,
    /// For keys that were rejected before: ever new keys never get here.
    retried: Lane,
    /// One for each verification at a time.
    cores: Arc<Semaphore>,
    /// The keys that are being compared.
    scanned: Mutex<HashSet<KeyHash>>,
    left: Left,
    errors: trace::ErrorLog,
}

/// What keys of one kind may spend.
struct Lane {
    /// For the whole comparison of a key, so that few go into debt at once.
    turns: Semaphore,
    budget: CpuBudget,
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

    fn lane(&self, class: LookupClass) -> &Lane {
        match class {
            LookupClass::Unknown(_) => &self.first,
            LookupClass::Retrying(_) | LookupClass::Known => &self.retried,
        }
    }

    /// Notes that a key is being compared; `None` if it already is.
    fn enter(self: &Arc<Self>, hash: KeyHash) -> Option<Scanning> {
        let mut scanned = self.scanned.lock().unwrap_or_else(PoisonError::into_inner);
        scanned.insert(hash).then(|| Scanning { legacy: Arc::clone(self), hash })
    }
}

/// A comparison in progress.
struct Scanning {
    legacy: Arc<Legacy>,
    hash: KeyHash,
}

impl Drop for Scanning {
    fn drop(&mut self) {
        let scanned = self.legacy.scanned.lock();
        scanned.unwrap_or_else(PoisonError::into_inner).remove(&self.hash);
    }
}

impl Core {
    /// Looks for a key that the store does not know by `hash` among those that have not moved, and
    /// moves it. `None`: it is not among them.
    pub(in crate::auth::lookup) async fn fetch_legacy(
        self: &Arc<Self>,
        presented: Arc<Presented>,
        hash: &KeyHash,
        class: LookupClass,
    ) -> Result<Option<Fetched>, Rejection> {
        let Some(legacy) = &self.legacy else { return Ok(None) };
        let busy = || {
            let outcome = VerificationOutcome::TurnedAway;
            self.observe(&Event::LegacyHashCompared { outcome, took: Duration::ZERO });
            self.lookup.unknown_keys.turn_away(hash)
        };
        let Some(scanning) = legacy.enter(*hash) else { return Err(busy()) };
        let scan = tokio::spawn(Arc::clone(self).scan(scanning, presented, class));
        match timeout(PATIENCE, scan).await {
            Ok(Ok(Ok(fetched))) => Ok(fetched),
            Ok(Ok(Err(scan::Failed::Busy))) | Err(_) => Err(busy()),
            Ok(Ok(Err(scan::Failed::Store(error)))) => {
                legacy.errors.warn("legacy hash look-up failed", &error, self.clock.monotonic());
                Err(Rejection::store_unavailable(error))
            }
            // It panicked, or its runtime is shutting down.
            Ok(Err(_)) => Err(busy()),
        }
    }
}
