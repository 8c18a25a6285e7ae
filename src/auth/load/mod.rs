//! Getting a key that is not in the cache: once, in a task of its own, within a deadline.

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

/// A key's entry, `None` for no such key, or why it cannot be told.
pub(super) type Outcome = Result<Option<Arc<Entry>>, Rejection>;

/// What a load brought.
#[derive(Clone)]
pub(super) struct Landed {
    outcome: Outcome,
    /// The key was changed in the meantime, perhaps before somebody joined.
    is_overtaken: bool,
}

type Turn<'a> = (Option<SemaphorePermit<'a>>, SemaphorePermit<'a>);

/// The cache, and what fills it.
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
    /// For streams that look their keys up, beside `turns`.
    pub(super) watchers: Semaphore,
    streams: AtomicU64,
    pub(super) strangers: Strangers,
    max_flights: usize,
    deadline: Duration,
}

/// Held while a result is put into the cache and while one is thrown out, which puts an order
/// between the two.
#[derive(Default)]
struct Board {
    flights: Flights<Landed>,
    directory: Directory,
    /// Keys that were known until they were changed: they need not queue up with strangers.
    acquaintances: HashSet<KeyHash>,
    revoked: RevokedKeys,
}

/// Loads that may wait for each turn. Beyond, there is no hope of one in time.
const QUEUE_PER_TURN: usize = 64;
/// What a load that keeps its deadline may be late by.
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

    /// Whether the store answers, as far as that is known; `None` if it never has.
    pub(super) fn is_store_up(&self) -> Option<bool> {
        self.breaker.is_up()
    }

    /// What the cache says; a stale entry counts as fresh while the store is known to be down.
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

    /// Somebody else may hold the lock: then another request will find the key as this one did.
    fn bring_forward(&self, hash: &KeyHash, entry: &Arc<Entry>, now: Duration) {
        if let Ok(_board) = self.board.try_lock() {
            self.cache.bring_forward(hash, entry, now);
        }
    }

    /// What the store says, or what it last said if it does not answer. `network` is where a
    /// stranger asks from.
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
        // Looked up again: an invalidation in the meantime has taken it away.
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
        // This one takes off after the caller came: it is as new as can be asked for.
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
            // The task panicked, or the runtime that it was spawned on shuts down or stands still.
            _ => {
                self.board().flights.strike_off(&hash, flight.number);
                let error = StoreError::new(StoreErrorKind::Other).because("the load was aborted");
                Err(Rejection::store_unavailable(error))
            }
        }
    }

    /// The load of `hash` that is under way, or a new one, and whether it is joined; what the last
    /// one brought if it landed after the caller had looked into the cache.
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
        // A runtime that is shutting down drops the task at once, and the landing takes the lock.
        drop(board);
        runtime.spawn(async move {
            let outcome = landing.loader.fetch(&hash, asker).await;
            landing.land(outcome);
        });
        ControlFlow::Continue((flight, false))
    }

    /// Asks the store whether it answers. No key has this hash.
    pub(super) async fn probe(self: &Arc<Self>) {
        let loader = Arc::clone(self);
        let nobody = KeyHash::from_bytes([0; 32]);
        let fetch = async move { loader.fetch(&nobody, Asker::Known).await.map(drop) };
        // In a task of its own, as every query is: the store may panic. The breaker has the answer.
        let _ = tokio::spawn(fetch).await;
    }

    async fn fetch(self: &Arc<Self>, hash: &KeyHash, asker: Asker) -> Result<Fetched, Rejection> {
        let mut cost = self.strangers.cost(asker);
        if !self.breaker.would_allow(self.clock.monotonic()) {
            return Err(down());
        }
        let begin = Instant::now();
        let deadline = begin + self.deadline;
        // In a full queue every turn comes when the wait is all but over. Half of the time is the
        // query's own: cut off, it would look like a store that does not answer.
        let turn = timeout_at(begin + self.deadline / 2, self.turn(asker)).await;
        let Ok(Ok(_turn)) = turn else {
            return Err(self.strangers.turn_away(hash));
        };
        self.check_clocks();
        let missed = self.clocks.missed();
        // Both before the query: a deadline reckoned from here comes early rather than late, and
        // an invalidation after it is noticed.
        let (now, generation) = (self.clock.monotonic(), self.cache.generation());
        // What a replica says that is behind is as old as that.
        let outdated_by = self.feed.outdated_by(now);
        self.strangers.charge(&mut cost, asker, hash, now)?;
        // Only now, as the store may have gone down in the meantime.
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
                    trace::info!("the key store answers again");
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

    /// Whether a replica that is behind may say this of a key: that it is revoked or was deleted, as
    /// it stays so; anything else for as long as while the store does not answer. What is not there
    /// may have been created meanwhile.
    fn may_tell(&self, entry: Option<&Entry>, asker: Asker, now: Duration) -> bool {
        match entry {
            Some(entry) => {
                entry.status(now) == KeyStatus::Revoked || self.cache.is_usable(entry, now)
            }
            None => matches!(asker, Asker::Known),
        }
    }

    fn unknown_plan(&self, record: &KeyRecord) {
        trace::warn!(key_id = %record.id, plan = record.plan, "a key names an undefined plan");
        self.observe(&Event::UnknownPlan { key_id: record.id });
    }

    /// To be held while a query is under way.
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
            // An overload of this process says nothing of the store.
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
                        "the key store is down; keys are judged by what is cached"
                    );
                }
                Rejection::store_unavailable(error)
            }
        }
    }

    /// Hears when the key may have been changed.
    pub(super) fn watch(&self, id: KeyId, hash: KeyHash) -> watch::Receiver<u64> {
        self.board().directory.watch(id, hash)
    }

    /// Whether the key may be used at `now` of the monotonic clock, and of the time that this has
    /// missed.
    pub(super) fn status(&self, entry: &Entry, now: Duration) -> KeyStatus {
        match self.missed_since(entry) {
            Duration::ZERO => entry.status(now),
            missed => entry.status_after_gap(now, missed),
        }
    }

    /// What the monotonic clock has missed since the key was loaded.
    pub(super) fn missed_since(&self, entry: &Entry) -> Duration {
        Duration::from_nanos(self.clocks.missed().saturating_sub(entry.live.missed))
    }

    /// A wall clock that has run ahead of the monotonic one is a gap: whatever is cached may have
    /// ended meanwhile.
    pub(super) fn check_clocks(&self) {
        if let Some(ahead) = self.clocks.check(&*self.clock) {
            trace::warn!(?ahead, "wall clock ran ahead of the monotonic one; cached keys expired");
            self.expire_all();
            self.observe(&Event::ClockGap { ahead });
        }
    }

    /// The number of another stream that waits for the end of a key.
    pub(super) fn next_stream(&self) -> u64 {
        self.streams.fetch_add(1, Ordering::Relaxed)
    }

    fn stale_served(&self, entry: &Entry) {
        self.observe(&Event::StaleServed { key_id: entry.key_id() });
    }

    /// What an observer does wrong is no reason to turn anybody away.
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

/// Why nobody asks a store that is down.
fn down() -> Rejection {
    let error = StoreError::new(StoreErrorKind::Unavailable).because("it was down just now");
    Rejection::store_unavailable(error)
}

/// Why a replica that is behind is not believed.
fn outdated() -> Rejection {
    let problem = "the replica that keys are looked up in is too far behind";
    let error = StoreError::new(StoreErrorKind::Unavailable).because(problem);
    Rejection::store_unavailable(error)
}

struct Fetched {
    entry: Option<Arc<Entry>>,
    loaded_at: Duration,
    generation: Generation,
}

/// Ends a flight however its task ends: it is struck off before anybody hears of its outcome, so
/// that nobody joins it afterwards.
struct Landing {
    loader: Arc<Loader>,
    hash: KeyHash,
    number: u64,
    landed: watch::Sender<Option<Landed>>,
}

impl Landing {
    /// Keeps the result, unless the key was changed after the flight took off: struck off the list,
    /// or told by its id.
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
                    // What is told of this id will no longer find it.
                    self.loader.forget(board, &before);
                }
                cache.insert(self.hash, Arc::clone(entry));
            }
            None => cache.insert_absent(self.hash, fetched.loaded_at, fetched.generation),
        }
        // Streams that wait for their turn need not wait any longer.
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
