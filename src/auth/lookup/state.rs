//! What look-ups share: the loads in progress, and what bounds them.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::{AcquireError, Semaphore, SemaphorePermit, watch};

use super::{Legacy, id_index::IdIndex, revoked_keys::RevokedKeys, single_flight::InFlightLoads};
use crate::{
    auth::{
        Rejection,
        cache::{CachePolicy, Entry, Interner},
        canary::Canary,
        key_log::KeyLog,
        throttle::{LookupClass, Rate, UnknownKeyLimiter},
    },
    circuit_breaker::{BreakerConfig, CircuitBreaker},
    key::KeyHash,
    record::{KeyId, ScopeCatalog, Scopes},
    trace,
};

/// The circuit breaker of the store. A recovered store must be noticed well within a second.
const BREAKER: BreakerConfig = BreakerConfig {
    threshold: 5,
    cool_down: Duration::from_millis(250),
    failures_postpone_probe: true,
};

/// What is known of a key.
#[derive(Clone)]
pub(in crate::auth) enum Known {
    Key(Arc<Entry>),
    /// No key that could let anyone in, but it may be a canary key.
    Absent(Option<Arc<Canary>>),
}

impl Known {
    pub(super) fn entry(&self) -> Option<&Arc<Entry>> {
        match self {
            Self::Key(entry) => Some(entry),
            Self::Absent(_) => None,
        }
    }
}

/// What is known of the key, or why nothing is.
pub(super) type Outcome = Result<Known, Rejection>;

/// The result of a load.
#[derive(Clone)]
pub(super) struct LoadResult {
    pub(super) outcome: Outcome,
    /// The key changed since the load started, perhaps before some requests joined.
    pub(super) is_superseded: bool,
}

type Permit<'a> = (Option<SemaphorePermit<'a>>, SemaphorePermit<'a>);

/// The look-ups of an authenticator.
pub(in crate::auth) struct Lookup {
    /// The scopes of the service, and the sets of them that keys have.
    pub(in crate::auth) catalog: Option<ScopeCatalog>,
    scopes: Interner<Scopes>,
    pub(super) breaker: CircuitBreaker,
    pub(super) errors: trace::ErrorLog,
    pub(super) corrupt: KeyLog<KeyHash>,
    state: Mutex<LoadState>,
    permits: Semaphore,
    /// For look-ups of streams, beside `permits`.
    pub(super) watchers: Semaphore,
    streams: AtomicU64,
    pub(in crate::auth) unknown_keys: UnknownKeyLimiter,
    pub(super) max_in_flight: usize,
    pub(super) deadline: Duration,
    /// How much longer a key may take that is compared with legacy hashes.
    patience: Duration,
}

/// How late a load that keeps its deadline may be.
const GRACE: Duration = Duration::from_millis(100);

/// Held while a result is cached and while one is invalidated, which orders the two.
#[derive(Default)]
pub(super) struct LoadState {
    pub(super) in_flight: InFlightLoads<LoadResult>,
    pub(super) ids: IdIndex,
    /// Keys that were cached until they changed, so the limits on unknown keys do not apply.
    pub(super) recently_known: HashSet<KeyHash>,
    pub(super) revoked: RevokedKeys,
}

/// How many loads may queue per permit. Beyond that, a permit would not come in time.
const QUEUE_PER_PERMIT: usize = 64;

impl Lookup {
    pub(in crate::auth) fn new(
        policy: &CachePolicy,
        failures: Rate,
        catalog: Option<ScopeCatalog>,
        legacy: Option<&Legacy>,
    ) -> Self {
        Self {
            catalog,
            scopes: Interner::new(),
            breaker: CircuitBreaker::new(BREAKER),
            errors: trace::ErrorLog::default(),
            corrupt: KeyLog::default(),
            state: Mutex::default(),
            permits: Semaphore::new(policy.max_loads),
            watchers: Semaphore::new((policy.max_loads / 4).max(1)),
            streams: AtomicU64::new(0),
            unknown_keys: UnknownKeyLimiter::new(policy, failures),
            max_in_flight: policy.max_loads.saturating_mul(QUEUE_PER_PERMIT),
            deadline: policy.load_deadline,
            patience: legacy.map_or(Duration::ZERO, Legacy::patience),
        }
    }

    /// Whether the store is up; `None` if it has never answered.
    pub(in crate::auth) fn is_store_up(&self) -> Option<bool> {
        self.breaker.is_up()
    }

    /// Asks the store again at once, rather than after the cool-down.
    #[cfg(feature = "test-util")]
    pub(in crate::auth) fn store_is_back(&self) {
        self.breaker.reset();
    }

    /// All that the stored scopes of a key contain, as one copy for all keys with the same.
    pub(super) fn effective(&self, stored: &Scopes) -> Scopes {
        match &self.catalog {
            Some(catalog) => self.scopes.of(&catalog.expand(stored)),
            None => self.scopes.of(stored),
        }
    }

    /// How long a load takes at most, with what it may be late.
    pub(in crate::auth) fn longest_load(&self) -> Duration {
        self.deadline + self.patience + GRACE
    }

    /// Acquires the permits that a query holds.
    pub(super) async fn permit(&self, class: LookupClass) -> Result<Permit<'_>, AcquireError> {
        let for_unknown = match class {
            LookupClass::Known | LookupClass::Retrying(_) => None,
            LookupClass::Unknown(_) => Some(self.unknown_keys.permits.acquire().await?),
        };
        Ok((for_unknown, self.permits.acquire().await?))
    }

    /// Subscribes to changes of the key.
    pub(super) fn watch(&self, id: KeyId, hash: KeyHash) -> watch::Receiver<u64> {
        self.state().ids.watch(id, hash)
    }

    /// A number for another stream that waits for the end of a key.
    pub(super) fn next_stream(&self) -> u64 {
        self.streams.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn state(&self) -> MutexGuard<'_, LoadState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guard of the state, unless another holds it.
    pub(super) fn try_state(&self) -> Option<MutexGuard<'_, LoadState>> {
        self.state.try_lock().ok()
    }
}
