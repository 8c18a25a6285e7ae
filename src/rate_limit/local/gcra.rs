//! One quota counted by GCRA.

use std::{
    cell::Cell,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use governor::{
    clock::Clock,
    middleware::StateInformationMiddleware,
    nanos::Nanos,
    state::{NotKeyed, StateStore},
};

use super::{fill::Fill, nanos::nanos};
use crate::rate_limit::{Decision, Quota, refill::Refill};

/// A bucket that refills evenly, counted by [`governor`](https://docs.rs/governor).
///
/// What is missing in it is measured by the nanoseconds in which it comes back.
pub(super) struct Gcra {
    refill: Refill,
    state: Tat,
    governor: governor::RateLimiter<NotKeyed, Tat, CallersClock, StateInformationMiddleware>,
}

impl Gcra {
    /// A bucket that is as full as `fill`.
    pub(super) fn new(quota: &Quota, fill: Fill, now: u64) -> Self {
        let missing = fill.used_of(nanos(quota.refill_time()));
        Self::with(quota, Tat::new(now.saturating_add(missing)))
    }

    /// The same state under another quota: half used up stays half used up.
    pub(super) fn under(&self, quota: &Quota, now: u64) -> Self {
        self.state.rescale(self.refill.capacity(), nanos(quota.refill_time()), now);
        Self::with(quota, self.state.clone())
    }

    fn with(quota: &Quota, state: Tat) -> Self {
        // `Quota` refuses an interval of zero, for which governor has no quota.
        let rate = governor::Quota::with_period(quota.interval())
            .unwrap_or_else(|| governor::Quota::per_second(NonZeroU32::MIN))
            .allow_burst(quota.burst_size());
        let governor =
            CallersClock::at(0, || governor::RateLimiter::new(rate, state.clone(), CallersClock));
        Self { refill: Refill::of(quota), state, governor }
    }

    pub(super) fn take(&self, units: NonZeroU32, now: u64) -> Decision {
        // Others would overflow: governor multiplies before it looks whether so many ever fit.
        let fits_at_all = units <= self.refill.burst();
        let outcome = fits_at_all.then(|| CallersClock::at(now, || self.governor.check_n(units)));
        let missing = self.state.ahead_of(now);
        match outcome {
            Some(Ok(Ok(state))) => {
                Decision::admit(state.remaining_burst_capacity(), self.refill.next_unit_in(missing))
            }
            _ => self.refill.deny(units, missing),
        }
    }

    pub(super) fn peek(&self, units: NonZeroU32, now: u64) -> Decision {
        self.refill.look(units, self.state.ahead_of(now))
    }

    pub(super) fn charge(&self, units: NonZeroU32, now: u64) {
        let needed = self.refill.needed(units);
        let most = now.saturating_add(self.refill.capacity().saturating_mul(2));
        self.state.advance(now, needed, most);
    }

    pub(super) fn give_back(&self, units: NonZeroU32) {
        self.state.recede(self.refill.needed(units));
    }

    pub(super) fn fill(&self, now: u64) -> Fill {
        Fill::new(self.state.ahead_of(now), self.refill.capacity())
    }

    /// Whether somebody else holds the state, under an earlier quota. This holds it twice.
    pub(super) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.state.0) > 2
    }

    #[cfg(feature = "redis")]
    pub(super) fn ahead_of(&self, now: u64) -> u64 {
        self.state.ahead_of(now)
    }

    /// Stands as another bucket does, in which that much is missing.
    #[cfg(feature = "redis")]
    pub(super) fn follow(&self, missing: u64, now: u64) {
        self.state.0.store(now.saturating_add(missing), Ordering::Release);
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

impl StateStore for Tat {
    type Key = NotKeyed;

    fn measure_and_replace<T, F, E>(&self, _: &NotKeyed, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut tat = self.0.load(Ordering::Acquire);
        loop {
            let (outcome, next) = decide((tat > 0).then(|| tat.into()))?;
            match self.0.compare_exchange_weak(
                tat,
                next.into(),
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
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
