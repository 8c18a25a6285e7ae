//! One quota counted by GCRA.

use std::{
    cell::Cell,
    collections::HashMap,
    hash::{Hash, Hasher},
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use governor::{
    clock::Clock, middleware::StateInformationMiddleware, nanos::Nanos, state::StateStore,
};

use super::{fill::Fill, nanos::nanos};
use crate::rate_limit::{Decision, Quota, refill::Refill};

/// A bucket that refills evenly, counted by [`governor`](https://docs.rs/governor).
///
/// What is missing in it is measured by the nanoseconds in which it comes back.
pub(super) struct Gcra {
    rate: Arc<Rate>,
    tat: Tat,
}

/// How buckets of one quota refill. All of them share it, so that a bucket is its [`Tat`] and little
/// else: small, and of one piece for the processor's caches.
pub(super) struct Rate {
    quota: Quota,
    refill: Refill,
    governor: governor::RateLimiter<Tat, Carried, CallersClock, StateInformationMiddleware>,
}

impl Rate {
    fn of(quota: &Quota) -> Self {
        // `Quota` refuses an interval of zero, for which governor has no quota.
        let rate = governor::Quota::with_period(quota.interval())
            .unwrap_or_else(|| governor::Quota::per_second(NonZeroU32::MIN))
            .allow_burst(quota.burst_size());
        let governor =
            CallersClock::at(0, || governor::RateLimiter::new(rate, Carried, CallersClock));
        Self { quota: quota.clone(), refill: Refill::of(quota), governor }
    }
}

/// The rates of the buckets in use.
#[derive(Default)]
pub(super) struct Rates {
    of: HashMap<Quota, Arc<Rate>>,
    sweep_at: usize,
}

const SWEEP_RATES_FROM: usize = 16;

impl Rates {
    fn of(&mut self, quota: &Quota) -> Arc<Rate> {
        if let Some(rate) = self.of.get(quota) {
            return Arc::clone(rate);
        }
        if self.of.len() >= self.sweep_at {
            self.sweep();
        }
        let rate = Arc::new(Rate::of(quota));
        self.of.insert(quota.clone(), Arc::clone(&rate));
        rate
    }

    pub(super) fn sweep(&mut self) {
        self.of.retain(|_, rate| Arc::strong_count(rate) > 1);
        self.sweep_at = SWEEP_RATES_FROM.max(self.of.len() * 2);
    }
}

impl Gcra {
    /// A bucket that is as full as `fill`.
    pub(super) fn new(quota: &Quota, rates: &mut Rates, fill: Fill, now: u64) -> Self {
        let missing = fill.used_of(nanos(quota.refill_time()));
        Self { rate: rates.of(quota), tat: Tat::new(now.saturating_add(missing)) }
    }

    /// The same state under another quota: half used up stays half used up.
    pub(super) fn under(&self, quota: &Quota, rates: &mut Rates, now: u64) -> Self {
        self.tat.rescale(self.rate.refill.capacity(), nanos(quota.refill_time()), now);
        Self { rate: rates.of(quota), tat: self.tat.clone() }
    }

    pub(super) fn quota(&self) -> &Quota {
        &self.rate.quota
    }

    pub(super) fn take(&self, units: NonZeroU32, now: u64) -> Decision {
        // Others would overflow: governor multiplies before it looks whether so many ever fit.
        let fits_at_all = units <= self.rate.refill.burst();
        let outcome = fits_at_all
            .then(|| CallersClock::at(now, || self.rate.governor.check_key_n(&self.tat, units)));
        let missing = self.tat.ahead_of(now);
        match outcome {
            Some(Ok(Ok(state))) => Decision::admit(
                state.remaining_burst_capacity(),
                self.rate.refill.next_unit_in(missing),
            ),
            _ => self.rate.refill.deny(units, missing),
        }
    }

    pub(super) fn peek(&self, units: NonZeroU32, now: u64) -> Decision {
        self.rate.refill.look(units, self.tat.ahead_of(now))
    }

    pub(super) fn charge(&self, units: NonZeroU32, now: u64) {
        let needed = self.rate.refill.needed(units);
        let most = now.saturating_add(self.rate.refill.capacity().saturating_mul(2));
        self.tat.advance(now, needed, most);
    }

    pub(super) fn give_back(&self, units: NonZeroU32) {
        self.tat.recede(self.rate.refill.needed(units));
    }

    pub(super) fn fill(&self, now: u64) -> Fill {
        Fill::new(self.tat.ahead_of(now), self.rate.refill.capacity())
    }

    /// Whether somebody else holds the state, under an earlier quota.
    pub(super) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.tat.0) > 1
    }

    #[cfg(feature = "redis")]
    pub(super) fn ahead_of(&self, now: u64) -> u64 {
        self.tat.ahead_of(now)
    }

    /// Stands as another bucket does, in which that much is missing.
    #[cfg(feature = "redis")]
    pub(super) fn follow(&self, missing: u64, now: u64) {
        self.tat.0.store(now.saturating_add(missing), Ordering::Release);
    }
}

/// The *theoretical arrival time* of GCRA: when the bucket will be full, in nanoseconds of the
/// caller's clock. It is all the state a bucket has, and apart from the quota so that a changed
/// quota goes on from it.
///
/// Whoever reads the clock, and is overtaken before it takes, is judged by what it read and by all
/// that was taken meanwhile: there is one number, which only one at a time changes.
#[derive(Clone)]
struct Tat(Arc<AtomicU64>);

impl Tat {
    fn new(at: u64) -> Self {
        Self(Arc::new(AtomicU64::new(at)))
    }

    fn ahead_of(&self, now: u64) -> u64 {
        self.0.load(Ordering::Acquire).saturating_sub(now)
    }

    fn advance(&self, now: u64, by: u64, most: u64) {
        let advanced = |tat: u64| Some(tat.max(now).saturating_add(by).min(most.max(tat)));
        // Never an empty update.
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, advanced);
    }

    fn recede(&self, by: u64) {
        let receded = |tat: u64| Some(tat.saturating_sub(by));
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, receded);
    }

    /// Leaves the bucket as full of what takes `to` to fill as it was of what takes `from`.
    fn rescale(&self, from: u64, to: u64, now: u64) {
        let rescaled = |tat: u64| {
            let fill = Fill::new(tat.saturating_sub(now), from);
            (!fill.is_full()).then(|| now.saturating_add(fill.used_of(to)))
        };
        // An empty update: the bucket is full, and is so of any quota.
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, rescaled);
    }
}

/// It is one, whatever it says.
impl PartialEq for Tat {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Tat {}

impl Hash for Tat {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

/// Where governor finds the state of a key: the key is the state.
#[derive(Debug)]
struct Carried;

impl StateStore for Carried {
    type Key = Tat;

    fn measure_and_replace<T, F, E>(&self, Tat(state): &Tat, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut tat = state.load(Ordering::Acquire);
        loop {
            let (outcome, next) = decide((tat > 0).then(|| tat.into()))?;
            match state.compare_exchange_weak(tat, next.into(), Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => return Ok(outcome),
                Err(changed) => tat = changed,
            }
        }
    }
}

/// Tells governor the time its caller has already read: one reading serves the whole request, and
/// a test's clock reaches every bucket.
#[derive(Clone, Debug)]
struct CallersClock;

thread_local! {
    static CALLERS_TIME: Cell<u64> = const { Cell::new(0) };
}

impl CallersClock {
    fn at<T>(now: u64, check: impl FnOnce() -> T) -> T {
        CALLERS_TIME.set(now);
        check()
    }
}

impl Clock for CallersClock {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        CALLERS_TIME.get().into()
    }
}
