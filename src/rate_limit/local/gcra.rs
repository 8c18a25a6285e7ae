//! One quota counted by GCRA.

use std::{
    cell::Cell,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use governor::{
    clock::Clock,
    middleware::StateInformationMiddleware,
    nanos::Nanos,
    state::{NotKeyed, StateStore},
};

use super::fill::Fill;
use crate::rate_limit::{Decision, Quota};

/// A bucket that refills evenly, counted by [`governor`](https://docs.rs/governor).
pub(super) struct Gcra {
    interval: Duration,
    burst: NonZeroU32,
    state: Tat,
    governor: governor::RateLimiter<NotKeyed, Tat, CallersClock, StateInformationMiddleware>,
}

impl Gcra {
    /// A bucket that is as full as `fill`.
    pub(super) fn new(quota: &Quota, fill: Fill, now: Duration) -> Self {
        let state = Tat::default();
        state.reach(now.saturating_add(fill.of(quota.refill_time())));
        Self::with(quota, state)
    }

    /// The same state under another quota: half used up stays half used up.
    pub(super) fn under(&self, quota: &Quota, now: Duration) -> Self {
        self.state.rescale(self.capacity(), quota.refill_time(), now);
        Self::with(quota, self.state.clone())
    }

    fn with(quota: &Quota, state: Tat) -> Self {
        let (interval, burst) = (quota.interval(), quota.burst_size());
        // `Quota` refuses an interval of zero, for which governor has no quota.
        let rate = governor::Quota::with_period(interval)
            .unwrap_or_else(|| governor::Quota::per_second(NonZeroU32::MIN))
            .allow_burst(burst);
        let governor = CallersClock::at(Nanos::from(0), || {
            governor::RateLimiter::new(rate, state.clone(), CallersClock)
        });
        Self { interval, burst, state, governor }
    }

    pub(super) fn take(&self, units: NonZeroU32, now: Duration) -> Decision {
        let instant = Nanos::from(now);
        let outcome = CallersClock::at(instant, || match units {
            NonZeroU32::MIN => Ok(self.governor.check()),
            units => self.governor.check_n(units),
        });
        match outcome {
            Ok(Ok(state)) => {
                Decision::admit(state.remaining_burst_capacity(), self.next_unit_in(now))
            }
            Ok(Err(denied)) => Decision::deny_with(self.left(now), denied.wait_time_from(instant)),
            // More than the bucket ever holds.
            Err(_) => Decision::deny_with(self.left(now), Duration::MAX),
        }
    }

    pub(super) fn peek(&self, units: NonZeroU32, now: Duration) -> Decision {
        let left = self.left(now);
        if units <= self.burst && units.get() <= left {
            return Decision::admit(left, self.next_unit_in(now));
        }
        let wait = match self.interval.checked_mul(units.get()) {
            Some(needed) if units <= self.burst => {
                (self.state.ahead_of(now) + needed).saturating_sub(self.capacity())
            }
            _ => Duration::MAX,
        };
        Decision::deny_with(left, wait)
    }

    pub(super) fn charge(&self, units: NonZeroU32, now: Duration) {
        let needed = self.interval.saturating_mul(units.get());
        // Two full buckets ahead of the clock is what the arithmetic has room for.
        let most = now.saturating_add(self.capacity().saturating_mul(2));
        self.state.advance(now, needed, most);
    }

    pub(super) fn give_back(&self, units: NonZeroU32) {
        self.state.recede(self.interval.saturating_mul(units.get()));
    }

    pub(super) fn fill(&self, now: Duration) -> Fill {
        Fill::new(self.state.ahead_of(now), self.capacity())
    }

    /// Whether somebody else holds the state, under an earlier quota. This holds it twice.
    pub(super) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.state.0) > 2
    }

    /// The time in which an empty bucket fills.
    fn capacity(&self) -> Duration {
        self.interval.saturating_mul(self.burst.get())
    }

    fn left(&self, now: Duration) -> u32 {
        let left = self.capacity().saturating_sub(self.state.ahead_of(now));
        u32::try_from(left.as_nanos() / self.interval.as_nanos()).unwrap_or(u32::MAX)
    }

    /// Time until one more unit is back: what is left of the interval that is running, and of what
    /// was charged beyond the bucket.
    fn next_unit_in(&self, now: Duration) -> Duration {
        let ahead = self.state.ahead_of(now);
        // The bucket has nothing left, or less than that.
        let owed = ahead.saturating_sub(self.capacity().saturating_sub(self.interval));
        if ahead.is_zero() || !owed.is_zero() {
            return owed;
        }
        let rest = (ahead.as_nanos() - 1) % self.interval.as_nanos() + 1;
        Duration::from_nanos(u64::try_from(rest).unwrap_or(u64::MAX))
    }
}

/// The *theoretical arrival time* of GCRA: when the bucket will be full, in nanoseconds of the
/// caller's clock. It is all the state a bucket has, and apart from the quota so that a changed
/// quota goes on from it.
#[derive(Clone, Default)]
struct Tat(Arc<AtomicU64>);

impl Tat {
    fn ahead_of(&self, now: Duration) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed)).saturating_sub(now)
    }

    fn reach(&self, at: Duration) {
        self.0.fetch_max(nanos(at), Ordering::AcqRel);
    }

    fn advance(&self, now: Duration, by: Duration, most: Duration) {
        let advanced = |tat: u64| {
            Some(tat.max(nanos(now)).saturating_add(nanos(by)).min(nanos(most).max(tat)))
        };
        // Never an empty update.
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, advanced);
    }

    fn recede(&self, by: Duration) {
        let receded = |tat: u64| Some(tat.saturating_sub(nanos(by)));
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, receded);
    }

    /// Leaves the bucket as full of what takes `to` to fill as it was of what takes `from`.
    fn rescale(&self, from: Duration, to: Duration, now: Duration) {
        let (from, to, now) = (from.as_nanos().max(1), to.as_nanos(), now.as_nanos());
        let rescaled = |tat: u64| {
            let used = u128::from(tat).saturating_sub(now).min(from);
            u64::try_from(now + (used * to).div_ceil(from)).ok().filter(|_| used > 0)
        };
        // An empty update: the bucket is full, and is so of any quota.
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, rescaled);
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
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
                Ordering::Release,
                Ordering::Relaxed,
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
    fn at<T>(now: Nanos, check: impl FnOnce() -> T) -> T {
        CALLERS_TIME.set(now.as_u64());
        check()
    }
}

impl Clock for CallersClock {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        CALLERS_TIME.get().into()
    }
}
