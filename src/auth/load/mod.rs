//! Loads keys that are not cached: single flight, in a task of their own, within a deadline.

mod breaker;
mod corrupt;
mod directory;
mod erased;
mod failures;
mod flights;
mod forget;
mod revoked;
mod strangers;
mod turned_away;

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

pub(super) use self::erased::{BoxFuture, ErasedStore};
use self::{
    breaker::Breaker,
    corrupt::CorruptKeys,
    directory::Directory,
    flights::{Flight, Flights},
    revoked::RevokedKeys,
    strangers::{Asker, Strangers},
};
use super::{
    Event, Observer, Rejection, RejectionKind,
    cache::{CachePolicy, KeyCache, Peek},
    caught::Throttle,
    clock_check::ClockCheck,
    copies::Copies,
    entry::{Entry, Generation, Loaded},
    gcra::Rate,
    health::FeedState,
    network::ClientNetwork,
    terms::Terms,
};
use crate::{
    clock::Clock,
    key::KeyHash,
    record::{KeyId, KeyRecord, KeyStatus, Scopes},
    store::{StoreError, StoreErrorKind},
    trace,
};

/// The key's entry, `None` if the key does not exist, or why that is unknown.
pub(super) type Outcome = Result<Option<Arc<Entry>>, Rejection>;

/// The result of a load.
#[derive(Clone)]
pub(super) struct Landed {
    outcome: Outcome,
    /// The key changed since the load started, perhaps before some requests joined.
    is_overtaken: bool,
}

type Turn<'a> = (Option<SemaphorePermit<'a>>, SemaphorePermit<'a>);

/// The cache and its loader.
pub(super) struct Loader {
    pub(super) store: Arc<dyn ErasedStore>,
    pub(super) clock: Arc<dyn Clock>,
    clocks: ClockCheck,
    pub(super) observer: Option<Arc<dyn Observer>>,
    observer_panics: Throttle,
    pub(super) terms: Terms,
    scopes: Copies<Scopes>,
    pub(super) cache: KeyCache,
    pub(super) feed: FeedState,
    breaker: Breaker,
    errors: trace::ErrorLog,
    corrupt: CorruptKeys,
    board: Mutex<Board>,
    turns: Semaphore,
    /// For look-ups of streams, beside `turns`.
    pub(super) watchers: Semaphore,
    streams: AtomicU64,
    pub(super) strangers: Strangers,
    max_flights: usize,
    deadline: Duration,
}

/// Held while a result is cached and while one is invalidated, which orders the two.
#[derive(Default)]
struct Board {
    flights: Flights<Landed>,
    directory: Directory,
    /// Keys that were cached until they changed, so the limits on unknown keys do not apply.
    acquaintances: HashSet<KeyHash>,
    revoked: RevokedKeys,
}

/// How many loads may queue per permit. Beyond that, a permit would not come in time.
const QUEUE_PER_TURN: usize = 64;
/// How late a load that keeps its deadline may be.
const GRACE: Duration = Duration::from_millis(100);

impl Loader {
    pub(super) fn new(
        store: Arc<dyn ErasedStore>,
        terms: Terms,
        observer: Option<Arc<dyn Observer>>,
        policy: CachePolicy,
        failures: Rate,
    ) -> Self {
        Self {
            store,
            clock: Arc::clone(&terms.meters.clock),
            terms,
            scopes: Copies::new(),
            observer,
            observer_panics: Throttle::new(),
            clocks: ClockCheck::default(),
            feed: FeedState::default(),
            breaker: Breaker::default(),
            errors: trace::ErrorLog::default(),
            corrupt: CorruptKeys::default(),
            board: Mutex::default(),
            turns: Semaphore::new(policy.max_loads),
            watchers: Semaphore::new((policy.max_loads / 4).max(1)),
            streams: AtomicU64::new(0),
            strangers: Strangers::new(&policy, failures),
            max_flights: policy.max_loads.saturating_mul(QUEUE_PER_TURN),
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
                self.bring_forward(hash, &entry, now);
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
    fn bring_forward(&self, hash: &KeyHash, entry: &Arc<Entry>, now: Duration) {
        if let Ok(_board) = self.board.try_lock() {
            self.cache.bring_forward(hash, entry, now);
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
        let landed = self.wait_for_flight(hash, network).await?;
        if !landed.is_overtaken {
            return landed.outcome;
        }
        // This load starts after the request came, so its result is current enough.
        self.wait_for_flight(hash, network).await?.outcome
    }

    async fn wait_for_flight(
        self: &Arc<Self>,
        hash: KeyHash,
        network: Option<ClientNetwork>,
    ) -> Result<Landed, Rejection> {
        let Ok(runtime) = Handle::try_current() else {
            let error = StoreError::new(StoreErrorKind::Other).because("no tokio runtime");
            return Err(Rejection::store_unavailable(error));
        };
        let (mut flight, is_joined) = match self.flight(hash, network, &runtime) {
            ControlFlow::Continue(it) => it,
            ControlFlow::Break(outcome) => return Ok(Landed { outcome, is_overtaken: false }),
        };
        let landing = flight.landed.wait_for(Option::is_some);
        let landed = timeout(self.deadline + GRACE, landing).await;
        match landed.as_ref().map(|landed| landed.as_deref()) {
            Ok(Ok(Some(landed))) => {
                if is_joined && matches!(landed.outcome, Ok(None)) {
                    self.strangers.failed(network, self.clock.monotonic());
                }
                Ok(landed.clone())
            }
            // The task panicked, or its runtime is shutting down or stalled.
            _ => {
                self.board().flights.strike_off(&hash, flight.number);
                let error = StoreError::new(StoreErrorKind::Other).because("the load was aborted");
                Err(Rejection::store_unavailable(error))
            }
        }
    }

    /// The load of `hash` in progress, or a new one, and whether it was joined. Breaks with a
    /// cached result if a load completed after the caller had looked into the cache.
    fn flight(
        self: &Arc<Self>,
        hash: KeyHash,
        network: Option<ClientNetwork>,
        runtime: &Handle,
    ) -> ControlFlow<Outcome, (Flight<Landed>, bool)> {
        let mut board = self.board();
        if let Some(flight) = board.flights.get(&hash) {
            return ControlFlow::Continue((flight.clone(), true));
        }
        let now = self.clock.monotonic();
        let asker = match self.cache.peek(&hash, now) {
            Peek::Fresh(entry) => return ControlFlow::Break(Ok(Some(entry))),
            Peek::Absent => {
                self.strangers.failed(network, now);
                return ControlFlow::Break(Ok(None));
            }
            Peek::Stale(_) => Asker::Known,
            Peek::Miss if board.acquaintances.contains(&hash) => Asker::Known,
            Peek::Miss => {
                let has_room = board.flights.len() < self.max_flights;
                match self.strangers.admit(&hash, network, has_room, now) {
                    Ok(asker) => asker,
                    Err(rejection) => return ControlFlow::Break(Err(rejection)),
                }
            }
        };
        let (flight, landed) = board.flights.take_off(hash);
        let landing = Landing { loader: Arc::clone(self), hash, number: flight.number, landed };
        // A runtime that is shutting down drops the task at once, and dropping `landing` takes the
        // lock.
        drop(board);
        runtime.spawn(async move {
            let outcome = landing.loader.fetch(&hash, asker).await;
            landing.land(outcome);
        });
        ControlFlow::Continue((flight, false))
    }

    /// Asks the store for a hash that no key has.
    pub(super) async fn probe(self: &Arc<Self>) {
        let loader = Arc::clone(self);
        let nobody = KeyHash::from_bytes([0; 32]);
        let fetch = async move { loader.fetch(&nobody, Asker::Known).await.map(drop) };
        // In a task of its own, because the store may panic. The result is recorded by the breaker.
        let _ = tokio::spawn(fetch).await;
    }

    async fn fetch(self: &Arc<Self>, hash: &KeyHash, asker: Asker) -> Result<Fetched, Rejection> {
        let mut cost = self.strangers.cost(asker);
        if !self.breaker.would_allow(self.clock.monotonic()) {
            return Err(down());
        }
        let begin = Instant::now();
        let deadline = begin + self.deadline;
        // In a full queue, permits come only near the deadline. Half of the time is kept for the
        // query: if cut short, it would look like a store that does not answer.
        let turn = timeout_at(begin + self.deadline / 2, self.turn(asker)).await;
        let Ok(Ok(_turn)) = turn else {
            return Err(self.strangers.turn_away(hash));
        };
        self.check_clocks();
        let missed = self.clocks.missed();
        // Both are read before the query: expiry measured from here comes early rather than late,
        // and later invalidations are noticed.
        let (now, generation) = (self.clock.monotonic(), self.cache.generation());
        // If the store is a replica that is too far behind, the record is older by this.
        let outdated_by = self.feed.outdated_by(now);
        self.strangers.charge(&mut cost, asker, hash, now)?;
        // Checked last, as the store may have gone down while waiting for the permit.
        if !self.breaker.allow(now) {
            return Err(down());
        }
        let found = timeout_at(deadline, self.store.find(hash)).await;
        let late = |_| {
            let late = format!("no answer within {:?}", self.deadline);
            Err(StoreError::new(StoreErrorKind::Unavailable).because(late))
        };
        let found = found.unwrap_or_else(late).and_then(|found| self.terms.check(found));
        let answered = self.clock.monotonic();
        match &found {
            Ok(Some(_)) => drop(cost),
            Ok(None) => cost.fail(answered),
            Err(_) => cost.spend(),
        }
        match found {
            Ok(record) => {
                if self.breaker.answered() {
                    trace::info!("key store recovered");
                }
                let entry = record.map(|mut record| {
                    self.board().revoked.correct(&mut record);
                    record.scopes = self.scopes.of(&record.scopes);
                    if self.terms.misses_plan(&record) {
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
                    Arc::new(Entry::load(record, &self.terms, watch, loaded))
                });
                if !outdated_by.is_zero() && !self.may_tell(entry.as_deref(), asker, answered) {
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
    fn may_tell(&self, entry: Option<&Entry>, asker: Asker, now: Duration) -> bool {
        match entry {
            Some(entry) => {
                entry.status(now) == KeyStatus::Revoked || self.cache.is_usable(entry, now)
            }
            None => matches!(asker, Asker::Known),
        }
    }

    fn unknown_plan(&self, record: &KeyRecord) {
        trace::warn!(key_id = %record.id, plan = record.plan, "undefined plan");
        self.observe(&Event::UnknownPlan { key_id: record.id });
    }

    /// Acquires the permits that a query holds.
    async fn turn(&self, asker: Asker) -> Result<Turn<'_>, AcquireError> {
        let stranger = match asker {
            Asker::Known | Asker::Returning(_) => None,
            Asker::Stranger(_) => Some(self.strangers.turns.acquire().await?),
        };
        Ok((stranger, self.turns.acquire().await?))
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
        self.board().directory.watch(id, hash)
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
        Duration::from_nanos(self.clocks.missed().saturating_sub(entry.live.missed))
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

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
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
struct Landing {
    loader: Arc<Loader>,
    hash: KeyHash,
    number: u64,
    landed: watch::Sender<Option<Landed>>,
}

impl Landing {
    /// Caches the result unless the key changed after the load started: the load was detached, or a
    /// change of its id was noted.
    fn land(self, outcome: Result<Fetched, Rejection>) {
        let mut board = self.loader.board();
        let is_listed = board.flights.is_listed(&self.hash, self.number);
        let is_overtaken = !is_listed
            || outcome.as_ref().is_ok_and(|fetched| self.is_overtaken(&board.flights, fetched));
        if let Ok(fetched) = &outcome
            && !is_overtaken
        {
            self.keep(&mut board, fetched);
        }
        board.flights.strike_off(&self.hash, self.number);
        drop(board);
        let outcome = outcome.map(|fetched| fetched.entry);
        self.landed.send_replace(Some(Landed { outcome, is_overtaken }));
    }

    fn is_overtaken(&self, flights: &Flights<Landed>, fetched: &Fetched) -> bool {
        let id = fetched.entry.as_ref().map(|entry| entry.key_id());
        let is_outdated_absence =
            id.is_none() && !self.loader.cache.is_absence_current(fetched.generation);
        is_outdated_absence || flights.is_overtaken(self.number, id)
    }

    fn keep(&self, board: &mut Board, fetched: &Fetched) {
        let cache = &self.loader.cache;
        board.acquaintances.remove(&self.hash);
        match &fetched.entry {
            Some(entry) => {
                if let Some(before) = board.directory.enter(entry) {
                    // Changes reported for this id will no longer find the old hash.
                    self.loader.forget(board, &before);
                }
                cache.insert(self.hash, Arc::clone(entry));
            }
            None => cache.insert_absent(self.hash, fetched.loaded_at, fetched.generation),
        }
        // Streams waiting for a permit need not wait any longer.
        let works = |entry: &Arc<Entry>| entry.status(fetched.loaded_at) == KeyStatus::Active;
        if !fetched.entry.as_ref().is_some_and(works) {
            board.directory.wake(&self.hash);
        }
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.loader.board().flights.strike_off(&self.hash, self.number);
    }
}
