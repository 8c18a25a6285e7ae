//! Loads keys that are not cached: single flight, in a task of their own, within a deadline.

mod corrupt_keys;
mod dyn_store;
mod id_index;
mod invalidate;
mod key_ended;
mod revoked_keys;
mod single_flight;

use std::{
    collections::HashSet,
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::{AcquireError, Semaphore, SemaphorePermit, watch},
    time::{Instant, timeout, timeout_at},
};

pub(super) use self::dyn_store::{BoxFuture, DynStore};
use self::{
    corrupt_keys::CorruptKeys,
    id_index::IdIndex,
    revoked_keys::RevokedKeys,
    single_flight::{InFlightLoad, InFlightLoads},
};
use super::{
    ClientNetwork, Event, Observer, Rejection, RejectionKind,
    cache::{CachePolicy, Entry, Generation, Interner, KeyCache, LimitResolver, Loaded, Peek},
    catch_panic::Throttle,
    clock_check::ClockCheck,
    health::FeedState,
    throttle::{LookupClass, Rate, UnknownKeyLimiter},
};
use crate::{
    circuit_breaker::{Answer, BreakerConfig, CircuitBreaker},
    clock::Clock,
    key::KeyHash,
    record::{KeyId, KeyRecord, KeyStatus, Scopes},
    store::{StoreError, StoreErrorKind},
    trace,
};

/// The circuit breaker of the store. A recovered store must be noticed well within a second.
const BREAKER: BreakerConfig = BreakerConfig {
    threshold: 5,
    cool_down: Duration::from_millis(250),
    failures_postpone_probe: true,
};

/// The key's entry, `None` if the key does not exist, or why that is unknown.
pub(super) type Outcome = Result<Option<Arc<Entry>>, Rejection>;

/// The result of a load.
#[derive(Clone)]
pub(super) struct LoadResult {
    outcome: Outcome,
    /// The key changed since the load started, perhaps before some requests joined.
    is_superseded: bool,
}

type Permit<'a> = (Option<SemaphorePermit<'a>>, SemaphorePermit<'a>);

/// The cache and its loader.
pub(super) struct Loader {
    pub(super) store: Arc<dyn DynStore>,
    pub(super) clock: Arc<dyn Clock>,
    clocks: ClockCheck,
    pub(super) observer: Option<Arc<dyn Observer>>,
    observer_panics: Throttle,
    pub(super) limits: LimitResolver,
    scopes: Interner<Scopes>,
    pub(super) cache: KeyCache,
    pub(super) feed: FeedState,
    breaker: CircuitBreaker,
    errors: trace::ErrorLog,
    corrupt: CorruptKeys,
    state: Mutex<LoadState>,
    permits: Semaphore,
    /// For look-ups of streams, beside `permits`.
    pub(super) watchers: Semaphore,
    streams: AtomicU64,
    pub(super) unknown_keys: UnknownKeyLimiter,
    max_in_flight: usize,
    deadline: Duration,
}

/// Held while a result is cached and while one is invalidated, which orders the two.
#[derive(Default)]
struct LoadState {
    in_flight: InFlightLoads<LoadResult>,
    ids: IdIndex,
    /// Keys that were cached until they changed, so the limits on unknown keys do not apply.
    recently_known: HashSet<KeyHash>,
    revoked: RevokedKeys,
}

/// How many loads may queue per permit. Beyond that, a permit would not come in time.
const QUEUE_PER_PERMIT: usize = 64;
/// How late a load that keeps its deadline may be.
const GRACE: Duration = Duration::from_millis(100);

impl Loader {
    pub(super) fn new(
        store: Arc<dyn DynStore>,
        limits: LimitResolver,
        observer: Option<Arc<dyn Observer>>,
        policy: CachePolicy,
        failures: Rate,
    ) -> Self {
        Self {
            store,
            clock: Arc::clone(&limits.meters.clock),
            limits,
            scopes: Interner::new(),
            observer,
            observer_panics: Throttle::new(),
            clocks: ClockCheck::default(),
            feed: FeedState::default(),
            breaker: CircuitBreaker::new(BREAKER),
            errors: trace::ErrorLog::default(),
            corrupt: CorruptKeys::default(),
            state: Mutex::default(),
            permits: Semaphore::new(policy.max_loads),
            watchers: Semaphore::new((policy.max_loads / 4).max(1)),
            streams: AtomicU64::new(0),
            unknown_keys: UnknownKeyLimiter::new(&policy, failures),
            max_in_flight: policy.max_loads.saturating_mul(QUEUE_PER_PERMIT),
            deadline: policy.load_deadline,
            cache: KeyCache::new(policy),
        }
    }

    /// Whether the store is up; `None` if it has never answered.
    pub(super) fn is_store_up(&self) -> Option<bool> {
        self.breaker.is_up()
    }

    /// Looks into the cache. A stale entry counts as fresh while the store is known to be down.
    pub(super) fn peek(&self, hash: &KeyHash, now: Duration) -> Peek {
        match self.cache.peek(hash, now) {
            Peek::Fresh(entry) => {
                if entry.status(now) == KeyStatus::Active {
                    self.promote(hash, &entry, now);
                }
                Peek::Fresh(entry)
            }
            Peek::Stale(entry) if !self.breaker.would_allow(now) => {
                self.stale_served(&entry);
                Peek::Fresh(entry)
            }
            peek => peek,
        }
    }

    /// Skipped if the lock is taken: a later request will do it.
    fn promote(&self, hash: &KeyHash, entry: &Arc<Entry>, now: Duration) {
        if let Ok(_board) = self.state.try_lock() {
            self.cache.promote(hash, entry, now);
        }
    }

    /// Asks the store; falls back to the cached record if it does not answer. `network` is the
    /// client's network, for keys that this node does not know.
    pub(super) async fn load(
        self: Arc<Self>,
        hash: KeyHash,
        network: Option<ClientNetwork>,
    ) -> Outcome {
        let rejection = match self.join(hash, network).await {
            Err(rejection) => rejection,
            Ok(entry) => {
                if let Some(entry) = entry.as_ref().filter(|entry| entry.is_outdated()) {
                    self.stale_served(entry);
                }
                return Ok(entry);
            }
        };
        if rejection.store_error_kind() == Some(StoreErrorKind::Corrupt) {
            return Err(rejection);
        }
        // Read again, as the entry may have been invalidated in the meantime.
        let now = self.clock.monotonic();
        match self.cache.peek(&hash, now) {
            Peek::Fresh(entry) => Ok(Some(entry)),
            Peek::Stale(entry)
                if rejection.kind() == RejectionKind::Overloaded
                    && self.cache.is_overdue(&entry, now) =>
            {
                Err(rejection)
            }
            Peek::Stale(entry) => {
                self.stale_served(&entry);
                Ok(Some(entry))
            }
            Peek::Absent | Peek::Miss => Err(rejection),
        }
    }

    async fn join(self: &Arc<Self>, hash: KeyHash, network: Option<ClientNetwork>) -> Outcome {
        let result = self.wait_for_load(hash, network).await?;
        if !result.is_superseded {
            return result.outcome;
        }
        // This load starts after the request came, so its result is current enough.
        self.wait_for_load(hash, network).await?.outcome
    }

    async fn wait_for_load(
        self: &Arc<Self>,
        hash: KeyHash,
        network: Option<ClientNetwork>,
    ) -> Result<LoadResult, Rejection> {
        let Ok(runtime) = Handle::try_current() else {
            let error = StoreError::new(StoreErrorKind::Other).because("no tokio runtime");
            return Err(Rejection::store_unavailable(error));
        };
        let (mut load, is_joined) = match self.join_or_start(hash, network, &runtime) {
            ControlFlow::Continue(it) => it,
            ControlFlow::Break(outcome) => return Ok(LoadResult { outcome, is_superseded: false }),
        };
        let completion = load.result.wait_for(Option::is_some);
        let result = timeout(self.deadline + GRACE, completion).await;
        match result.as_ref().map(|result| result.as_deref()) {
            Ok(Ok(Some(result))) => {
                if is_joined && matches!(result.outcome, Ok(None)) {
                    self.unknown_keys.failed(network, self.clock.monotonic());
                }
                Ok(result.clone())
            }
            // The task panicked, or its runtime is shutting down or stalled.
            _ => {
                self.state().in_flight.detach_load(&hash, load.number);
                let error = StoreError::new(StoreErrorKind::Other).because("the load was aborted");
                Err(Rejection::store_unavailable(error))
            }
        }
    }

    /// The load of `hash` in progress, or a new one, and whether it was joined. Breaks with a
    /// cached result if a load completed after the caller had looked into the cache.
    fn join_or_start(
        self: &Arc<Self>,
        hash: KeyHash,
        network: Option<ClientNetwork>,
        runtime: &Handle,
    ) -> ControlFlow<Outcome, (InFlightLoad<LoadResult>, bool)> {
        let mut state = self.state();
        if let Some(load) = state.in_flight.get(&hash) {
            return ControlFlow::Continue((load.clone(), true));
        }
        let now = self.clock.monotonic();
        let class = match self.cache.peek(&hash, now) {
            Peek::Fresh(entry) => return ControlFlow::Break(Ok(Some(entry))),
            Peek::Absent => {
                self.unknown_keys.failed(network, now);
                return ControlFlow::Break(Ok(None));
            }
            Peek::Stale(_) => LookupClass::Known,
            Peek::Miss if state.recently_known.contains(&hash) => LookupClass::Known,
            Peek::Miss => {
                let has_room = state.in_flight.len() < self.max_in_flight;
                match self.unknown_keys.admit(&hash, network, has_room, now) {
                    Ok(class) => class,
                    Err(rejection) => return ControlFlow::Break(Err(rejection)),
                }
            }
        };
        let (load, result) = state.in_flight.start(hash);
        let guard = CompletionGuard { loader: Arc::clone(self), hash, number: load.number, result };
        // A runtime that is shutting down drops the task at once, and dropping `guard` takes the
        // lock.
        drop(state);
        runtime.spawn(async move {
            let outcome = guard.loader.fetch(&hash, class).await;
            guard.complete(outcome);
        });
        ControlFlow::Continue((load, false))
    }

    /// Asks the store for a hash that no key has.
    pub(super) async fn probe(self: &Arc<Self>) {
        let loader = Arc::clone(self);
        let no_key = KeyHash::from_bytes([0; 32]);
        let fetch = async move { loader.fetch(&no_key, LookupClass::Known).await.map(drop) };
        // In a task of its own, because the store may panic. The result is recorded by the breaker.
        let _ = tokio::spawn(fetch).await;
    }

    async fn fetch(
        self: &Arc<Self>,
        hash: &KeyHash,
        class: LookupClass,
    ) -> Result<Fetched, Rejection> {
        let mut cost = self.unknown_keys.cost(class);
        if !self.breaker.would_allow(self.clock.monotonic()) {
            return Err(down());
        }
        let begin = Instant::now();
        let deadline = begin + self.deadline;
        // In a full queue, permits come only near the deadline. Half of the time is kept for the
        // query: if cut short, it would look like a store that does not answer.
        let permit = timeout_at(begin + self.deadline / 2, self.permit(class)).await;
        let Ok(Ok(_turn)) = permit else {
            return Err(self.unknown_keys.turn_away(hash));
        };
        self.check_clocks();
        let missed = self.clocks.missed();
        // Both are read before the query: expiry measured from here comes early rather than late,
        // and later invalidations are noticed.
        let (now, generation) = (self.clock.monotonic(), self.cache.generation());
        // If the store is a replica that is too far behind, the record is older by this.
        let outdated_by = self.feed.outdated_by(now);
        self.unknown_keys.charge(&mut cost, class, hash, now)?;
        // Checked last, as the store may have gone down while waiting for the permit.
        if !self.breaker.allow(now) {
            return Err(down());
        }
        let found = timeout_at(deadline, self.store.find(hash)).await;
        let late = |_| {
            let late = format!("no answer within {:?}", self.deadline);
            Err(StoreError::new(StoreErrorKind::Unavailable).because(late))
        };
        let found = found.unwrap_or_else(late).and_then(|found| self.limits.check(found));
        let answered = self.clock.monotonic();
        match &found {
            Ok(Some(_)) => drop(cost),
            Ok(None) => cost.fail(answered),
            Err(_) => cost.spend(),
        }
        match found {
            Ok(record) => {
                if self.breaker.answered() == Answer::Recovery {
                    trace::info!("key store recovered");
                }
                let entry = record.map(|mut record| {
                    self.state().revoked.correct(&mut record);
                    record.scopes = self.scopes.of(&record.scopes);
                    if self.limits.misses_plan(&record) {
                        self.unknown_plan(&record);
                    }
                    let watch: Weak<Self> = Arc::downgrade(self);
                    let loaded = Loaded {
                        loaded_at: now,
                        answered_at: answered,
                        outdated_by,
                        generation: generation.present,
                        missed,
                    };
                    Arc::new(Entry::load(record, &self.limits, watch, loaded))
                });
                if !outdated_by.is_zero() && !self.may_tell(entry.as_deref(), class, answered) {
                    return Err(outdated());
                }
                Ok(Fetched { entry, loaded_at: now, generation })
            }
            Err(error) => Err(self.failed(hash, error)),
        }
    }

    /// Whether a replica that is too far behind is trusted about this key. Revocation and deletion
    /// are permanent, so those are; any other record is used as long as during an outage. A key
    /// that was never known may have been created in the meantime.
    fn may_tell(&self, entry: Option<&Entry>, class: LookupClass, now: Duration) -> bool {
        match entry {
            Some(entry) => {
                entry.status(now) == KeyStatus::Revoked || self.cache.is_usable(entry, now)
            }
            None => matches!(class, LookupClass::Known),
        }
    }

    fn unknown_plan(&self, record: &KeyRecord) {
        trace::warn!(key_id = %record.id, plan = record.plan, "undefined plan");
        self.observe(&Event::UnknownPlan { key_id: record.id });
    }

    /// Acquires the permits that a query holds.
    async fn permit(&self, class: LookupClass) -> Result<Permit<'_>, AcquireError> {
        let stranger = match class {
            LookupClass::Known | LookupClass::Retrying(_) => None,
            LookupClass::Unknown(_) => Some(self.unknown_keys.permits.acquire().await?),
        };
        Ok((stranger, self.permits.acquire().await?))
    }

    fn failed(&self, hash: &KeyHash, error: StoreError) -> Rejection {
        self.observe(&Event::LoadFailed { error: &error });
        let now = self.clock.monotonic();
        match error.kind() {
            // Overload of this process says nothing about the store.
            StoreErrorKind::Overloaded => {
                self.errors.warn("key look-up failed", &error, now);
                Rejection::overloaded(error)
            }
            StoreErrorKind::Corrupt => {
                if self.corrupt.is_due(hash, now) {
                    trace::warn!(?error, "key record rejected");
                }
                Rejection::store_unavailable(error)
            }
            kind => {
                self.errors.warn("key look-up failed", &error, now);
                if kind == StoreErrorKind::Unavailable && self.breaker.failed(now) {
                    trace::warn!(
                        ?error,
                        "key store unavailable; keys are checked against the cache"
                    );
                }
                Rejection::store_unavailable(error)
            }
        }
    }

    /// Subscribes to changes of the key.
    pub(super) fn watch(&self, id: KeyId, hash: KeyHash) -> watch::Receiver<u64> {
        self.state().ids.watch(id, hash)
    }

    /// The status of the key at `now` of the monotonic clock, corrected by the time that this clock
    /// missed.
    pub(super) fn status(&self, entry: &Entry, now: Duration) -> KeyStatus {
        match self.missed_since(entry) {
            Duration::ZERO => entry.status(now),
            missed => entry.status_after_gap(now, missed),
        }
    }

    /// The time that the monotonic clock has missed since the key was loaded.
    pub(super) fn missed_since(&self, entry: &Entry) -> Duration {
        Duration::from_nanos(self.clocks.missed().saturating_sub(entry.ext.missed))
    }

    /// If the wall clock ran ahead of the monotonic clock, cached keys may have expired meanwhile;
    /// they must all be confirmed.
    pub(super) fn check_clocks(&self) {
        if let Some(ahead) = self.clocks.check(&*self.clock) {
            trace::warn!(?ahead, "wall clock ran ahead of the monotonic one; cached keys expired");
            self.expire_all();
            self.observe(&Event::ClockGap { ahead });
        }
    }

    /// A number for another stream that waits for the end of a key.
    pub(super) fn next_stream(&self) -> u64 {
        self.streams.fetch_add(1, Ordering::Relaxed)
    }

    fn stale_served(&self, entry: &Entry) {
        self.observe(&Event::StaleServed { key_id: entry.key_id() });
    }

    /// A panicking observer must not fail the request.
    pub(super) fn observe(&self, event: &Event<'_>) {
        if let Some(observer) = &self.observer
            && catch_unwind(AssertUnwindSafe(|| observer.observe(event))).is_err()
            && self.observer_panics.is_due()
        {
            trace::warn!("observer panicked; see the panic's own message");
        }
    }

    fn state(&self) -> MutexGuard<'_, LoadState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The rejection while the store is down.
fn down() -> Rejection {
    let error = StoreError::new(StoreErrorKind::Unavailable).because("circuit breaker open");
    Rejection::store_unavailable(error)
}

/// The rejection while the replica is too far behind.
fn outdated() -> Rejection {
    let problem = "the replica is too far behind to confirm keys";
    let error = StoreError::new(StoreErrorKind::Unavailable).because(problem);
    Rejection::store_unavailable(error)
}

struct Fetched {
    entry: Option<Arc<Entry>>,
    loaded_at: Duration,
    generation: Generation,
}

/// Ends a load however its task ends. The load is detached before its result is published, so that
/// no request joins it afterwards.
struct CompletionGuard {
    loader: Arc<Loader>,
    hash: KeyHash,
    number: u64,
    result: watch::Sender<Option<LoadResult>>,
}

impl CompletionGuard {
    /// Caches the result unless the key changed after the load started: the load was detached, or a
    /// change of its id was noted.
    fn complete(self, outcome: Result<Fetched, Rejection>) {
        let mut state = self.loader.state();
        let is_listed = state.in_flight.is_listed(&self.hash, self.number);
        let is_superseded = !is_listed
            || outcome.as_ref().is_ok_and(|fetched| self.is_superseded(&state.in_flight, fetched));
        if let Ok(fetched) = &outcome
            && !is_superseded
        {
            self.keep(&mut state, fetched);
        }
        state.in_flight.detach_load(&self.hash, self.number);
        drop(state);
        let outcome = outcome.map(|fetched| fetched.entry);
        self.result.send_replace(Some(LoadResult { outcome, is_superseded }));
    }

    fn is_superseded(&self, in_flight: &InFlightLoads<LoadResult>, fetched: &Fetched) -> bool {
        let id = fetched.entry.as_ref().map(|entry| entry.key_id());
        let is_outdated_absence =
            id.is_none() && !self.loader.cache.is_absence_current(fetched.generation);
        is_outdated_absence || in_flight.is_superseded(self.number, id)
    }

    fn keep(&self, state: &mut LoadState, fetched: &Fetched) {
        let cache = &self.loader.cache;
        state.recently_known.remove(&self.hash);
        match &fetched.entry {
            Some(entry) => {
                if let Some(before) = state.ids.enter(entry) {
                    // Changes reported for this id will no longer find the old hash.
                    self.loader.forget(state, &before);
                }
                cache.insert(self.hash, Arc::clone(entry));
            }
            None => cache.insert_absent(self.hash, fetched.loaded_at, fetched.generation),
        }
        // Streams waiting for a permit need not wait any longer.
        let works = |entry: &Arc<Entry>| entry.status(fetched.loaded_at) == KeyStatus::Active;
        if !fetched.entry.as_ref().is_some_and(works) {
            state.ids.wake(&self.hash);
        }
    }
}

impl Drop for CompletionGuard {
    fn drop(&mut self) {
        self.loader.state().in_flight.detach_load(&self.hash, self.number);
    }
}
