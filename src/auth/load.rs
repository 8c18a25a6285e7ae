//! Getting a key that is not in the cache: once, in a task of its own, within a deadline.

use std::{
    collections::HashMap,
    future::Future,
    ops::ControlFlow,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::{AcquireError, Semaphore, SemaphorePermit, watch},
    time::{Instant, timeout, timeout_at},
};

use super::{
    Event, Observer, Rejection, RejectionKind,
    breaker::Breaker,
    cache::{CachePolicy, KeyCache, Peek},
    entry::Entry,
};
use crate::{
    clock::Clock,
    key::KeyHash,
    rate_limit::{RateLimiter, RateLimits},
    record::KeyRecord,
    store::{KeyStore, StoreError, StoreErrorKind, Usage},
    trace,
};

/// A key's entry, `None` for no such key, or why it cannot be told.
type Outcome = Result<Option<Arc<Entry>>, Rejection>;

type Turn<'a> = (Option<SemaphorePermit<'a>>, SemaphorePermit<'a>);

/// The cache, and what fills it.
pub(super) struct Loader {
    pub(super) store: Arc<dyn ErasedStore>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) limiter: Arc<dyn RateLimiter>,
    pub(super) observer: Option<Arc<dyn Observer>>,
    pub(super) default_limits: RateLimits,
    cache: KeyCache,
    /// The loads whose results will be kept, joined by whoever wants the same key. Also held while
    /// a result is put into the cache and while one is thrown out, which puts an order between
    /// the two.
    flights: Mutex<HashMap<KeyHash, Flight>>,
    next_flight: AtomicU64,
    turns: Semaphore,
    /// What keys nobody has heard of may take of the turns. Anybody can make up such keys, and a
    /// flood of them shall not keep known ones from being confirmed, or a revocation unnoticed.
    turns_of_strangers: Semaphore,
    max_flights: usize,
    deadline: Duration,
    breaker: Breaker,
}

/// Loads that may wait for each turn. Beyond, there is no hope of one in time.
const QUEUE_PER_TURN: usize = 64;
/// What a load that keeps its deadline may be late by.
const GRACE: Duration = Duration::from_millis(100);

#[derive(Clone)]
struct Flight {
    id: u64,
    outcome: watch::Receiver<Option<Outcome>>,
}

impl Loader {
    pub(super) fn new(
        store: Arc<dyn ErasedStore>,
        clock: Arc<dyn Clock>,
        limiter: Arc<dyn RateLimiter>,
        observer: Option<Arc<dyn Observer>>,
        default_limits: RateLimits,
        policy: CachePolicy,
    ) -> Self {
        Self {
            store,
            clock,
            limiter,
            observer,
            default_limits,
            flights: Mutex::default(),
            next_flight: AtomicU64::new(0),
            turns: Semaphore::new(policy.max_loads),
            turns_of_strangers: Semaphore::new(policy.max_loads - policy.max_loads / 4),
            max_flights: policy.max_loads.saturating_mul(QUEUE_PER_TURN),
            deadline: policy.load_deadline,
            cache: KeyCache::new(policy),
            breaker: Breaker::default(),
        }
    }

    /// What the cache says; a stale entry counts as fresh while the store is known to be down.
    pub(super) fn peek(&self, hash: &KeyHash, now: Duration) -> Peek {
        match self.cache.peek(hash, now) {
            Peek::Stale(entry) if !self.breaker.would_allow(now) => {
                self.stale_served(&entry);
                Peek::Fresh(entry)
            }
            peek => peek,
        }
    }

    /// What the store says, or what it last said if it does not answer.
    pub(super) async fn load(self: Arc<Self>, hash: KeyHash) -> Outcome {
        let rejection = match self.join(hash).await {
            Err(rejection) => rejection,
            outcome => return outcome,
        };
        if rejection.store_error_kind() == Some(StoreErrorKind::Corrupt) {
            return Err(rejection);
        }
        // Looked up again: an invalidation in the meantime has taken it away.
        match self.cache.peek(&hash, self.clock.monotonic()) {
            Peek::Fresh(entry) => Ok(Some(entry)),
            Peek::Stale(entry) => {
                self.stale_served(&entry);
                Ok(Some(entry))
            }
            Peek::Absent | Peek::Miss => Err(rejection),
        }
    }

    async fn join(self: &Arc<Self>, hash: KeyHash) -> Outcome {
        let Ok(runtime) = Handle::try_current() else {
            let error = StoreError::new(StoreErrorKind::Other).because("no tokio runtime");
            return Err(Rejection::store_unavailable(error));
        };
        let mut flight = match self.flight(hash, &runtime) {
            ControlFlow::Continue(flight) => flight,
            ControlFlow::Break(landed) => return landed,
        };
        let landing = flight.outcome.wait_for(Option::is_some);
        let landed = timeout(self.deadline + GRACE, landing).await;
        match landed.as_ref().map(|landed| landed.as_deref()) {
            Ok(Ok(Some(outcome))) => outcome.clone(),
            // The task panicked, or the runtime that it was spawned on shuts down or stands still.
            _ => {
                strike_off(&mut self.flights(), &hash, flight.id);
                let error = StoreError::new(StoreErrorKind::Other).because("the load was aborted");
                Err(Rejection::store_unavailable(error))
            }
        }
    }

    /// The load of `hash` that is under way, or a new one; what the last one brought if it landed
    /// after the caller had looked into the cache.
    fn flight(self: &Arc<Self>, hash: KeyHash, runtime: &Handle) -> ControlFlow<Outcome, Flight> {
        let mut flights = self.flights();
        if let Some(flight) = flights.get(&hash) {
            return ControlFlow::Continue(flight.clone());
        }
        let is_known = match self.cache.peek(&hash, self.clock.monotonic()) {
            Peek::Fresh(entry) => return ControlFlow::Break(Ok(Some(entry))),
            Peek::Absent => return ControlFlow::Break(Ok(None)),
            Peek::Stale(_) => true,
            Peek::Miss => false,
        };
        if !is_known && flights.len() >= self.max_flights {
            return ControlFlow::Break(Err(Rejection::new(RejectionKind::Overloaded)));
        }
        let (outcome, receiver) = watch::channel(None);
        let id = self.next_flight.fetch_add(1, Ordering::Relaxed);
        let flight = Flight { id, outcome: receiver };
        flights.insert(hash, flight.clone());
        let landing = Landing { loader: Arc::clone(self), hash, id, outcome };
        // A runtime that is shutting down drops the task at once, and the landing takes the lock.
        drop(flights);
        runtime.spawn(async move {
            let outcome = landing.loader.fetch(&hash, is_known).await;
            landing.land(outcome);
        });
        ControlFlow::Continue(flight)
    }

    async fn fetch(&self, hash: &KeyHash, is_known: bool) -> Result<Fetched, Rejection> {
        if !self.breaker.would_allow(self.clock.monotonic()) {
            return Err(down());
        }
        let begin = Instant::now();
        let deadline = begin + self.deadline;
        // In a full queue every turn comes when the wait is all but over. Half of the time is the
        // query's own: cut off, it would look like a store that does not answer.
        let turn = timeout_at(begin + self.deadline / 2, self.turn(is_known)).await;
        let Ok(Ok(_turn)) = turn else {
            return Err(Rejection::new(RejectionKind::Overloaded));
        };
        // Both before the query: a deadline reckoned from here comes early rather than late, and
        // an invalidation after it is noticed.
        let (now, generation) = (self.clock.monotonic(), self.cache.generation());
        // Only now, as the store may have gone down in the meantime.
        if !self.breaker.allow(now) {
            return Err(down());
        }
        let found = timeout_at(deadline, self.store.find(hash)).await;
        let late = |_| {
            let late = format!("no answer within {:?}", self.deadline);
            Err(StoreError::new(StoreErrorKind::Unavailable).because(late))
        };
        match found.unwrap_or_else(late) {
            Ok(record) => {
                if self.breaker.answered() {
                    trace::info!("the key store answers again");
                }
                let entry = record.map(|record| {
                    let (limits, limiter) = (&self.default_limits, &*self.limiter);
                    Arc::new(Entry::new(record, limits, limiter, now, generation))
                });
                Ok(Fetched { entry, loaded_at: now, generation })
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    /// To be held while a query is under way.
    async fn turn(&self, is_known: bool) -> Result<Turn<'_>, AcquireError> {
        let stranger = if is_known { None } else { Some(self.turns_of_strangers.acquire().await?) };
        Ok((stranger, self.turns.acquire().await?))
    }

    fn failed(&self, error: StoreError) -> Rejection {
        self.observe(&Event::LoadFailed { error: &error });
        trace::debug!(?error, "a key could not be looked up");
        let down = error.kind() == StoreErrorKind::Unavailable;
        if down && self.breaker.failed(self.clock.monotonic()) {
            trace::warn!(?error, "the key store is down; keys are judged by what is cached");
        }
        Rejection::store_unavailable(error)
    }

    pub(super) fn invalidate(&self, hash: &KeyHash) {
        let mut flights = self.flights();
        flights.remove(hash);
        self.cache.invalidate(hash);
    }

    pub(super) fn invalidate_all(&self) {
        let mut flights = self.flights();
        flights.clear();
        self.cache.invalidate_all();
    }

    fn stale_served(&self, entry: &Entry) {
        self.observe(&Event::StaleServed { key_id: entry.consumer.key_id() });
    }

    pub(super) fn observe(&self, event: &Event<'_>) {
        if let Some(observer) = &self.observer {
            observer.observe(event);
        }
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<KeyHash, Flight>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why nobody asks a store that is down.
fn down() -> Rejection {
    let error = StoreError::new(StoreErrorKind::Unavailable).because("it was down just now");
    Rejection::store_unavailable(error)
}

struct Fetched {
    entry: Option<Arc<Entry>>,
    loaded_at: Duration,
    generation: u64,
}

/// Ends a flight however its task ends: it is struck off before anybody hears of its outcome, so
/// that nobody joins it afterwards.
struct Landing {
    loader: Arc<Loader>,
    hash: KeyHash,
    id: u64,
    outcome: watch::Sender<Option<Outcome>>,
}

impl Landing {
    /// Keeps the result, unless the key was invalidated after the flight took off: then it was
    /// struck off, and what it brings is for those who were waiting already.
    fn land(self, outcome: Result<Fetched, Rejection>) {
        let mut flights = self.loader.flights();
        if strike_off(&mut flights, &self.hash, self.id)
            && let Ok(fetched) = &outcome
        {
            match &fetched.entry {
                Some(entry) => self.loader.cache.insert(self.hash, Arc::clone(entry)),
                None => self.loader.cache.insert_absent(
                    self.hash,
                    fetched.loaded_at,
                    fetched.generation,
                ),
            }
        }
        drop(flights);
        self.outcome.send_replace(Some(outcome.map(|fetched| fetched.entry)));
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        strike_off(&mut self.loader.flights(), &self.hash, self.id);
    }
}

/// Takes this flight off the list, and no later one of the same key. True if it was on it.
fn strike_off(flights: &mut HashMap<KeyHash, Flight>, hash: &KeyHash, id: u64) -> bool {
    let listed = flights.get(hash).is_some_and(|flight| flight.id == id);
    if listed {
        flights.remove(hash);
    }
    listed
}

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// [`KeyStore`] as a trait object, which boxes once per look-up and flush.
pub(super) trait ErasedStore: Send + Sync {
    fn find<'a>(
        &'a self,
        hash: &'a KeyHash,
    ) -> BoxFuture<'a, Result<Option<KeyRecord>, StoreError>>;

    fn record_usage<'a>(&'a self, batch: &'a [Usage]) -> BoxFuture<'a, Result<(), StoreError>>;
}

impl<S: KeyStore> ErasedStore for S {
    fn find<'a>(
        &'a self,
        hash: &'a KeyHash,
    ) -> BoxFuture<'a, Result<Option<KeyRecord>, StoreError>> {
        Box::pin(KeyStore::find(self, hash))
    }

    fn record_usage<'a>(&'a self, batch: &'a [Usage]) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(KeyStore::record_usage(self, batch))
    }
}
