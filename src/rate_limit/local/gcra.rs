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
    time::Duration,
};

use governor::{
    clock::Clock, middleware::StateInformationMiddleware, nanos::Nanos, state::StateStore,
};

use crate::rate_limit::{Decision, gcra_math::GcraMath};

/// A GCRA bucket, counted by [`governor`](https://docs.rs/governor).
///
/// What the bucket lacks is measured as the nanoseconds in which it refills. It may exceed the size
/// of the bucket because of units that another quota admitted or that were charged.
pub(super) struct Gcra {
    rate: Arc<Rate>,
    tat: Tat,
}

/// The refill of a quota, shared by all its buckets, so that a bucket is little more than its
/// [`Tat`]: small, and contiguous for the processor's caches.
pub(super) struct Rate {
    refill: GcraMath,
    governor: governor::RateLimiter<Tat, Carried, CallersClock, StateInformationMiddleware>,
}

impl Rate {
    fn new(refill: GcraMath) -> Self {
        // `Quota` rejects an interval of zero, for which governor has no quota.
        let rate = governor::Quota::with_period(Duration::from_nanos(refill.interval()))
            .unwrap_or_else(|| governor::Quota::per_second(NonZeroU32::MIN))
            .allow_burst(refill.burst());
        let governor =
            CallersClock::at(0, || governor::RateLimiter::new(rate, Carried, CallersClock));
        Self { refill, governor }
    }
}

/// The rates in use, by burst and interval.
#[derive(Default)]
pub(super) struct Rates {
    of: HashMap<(NonZeroU32, u64), Arc<Rate>>,
    sweep_at: usize,
}

const SWEEP_RATES_FROM: usize = 16;

/// The maximum TAT, which leaves room for the units of a request. The clock stops at a third of it,
/// and the longest burst takes another third.
const MOST: u64 = u64::MAX / 4 * 3;

impl Rates {
    pub(super) fn of(&mut self, burst: NonZeroU32, interval: u64) -> Arc<Rate> {
        if let Some(rate) = self.of.get(&(burst, interval)) {
            return Arc::clone(rate);
        }
        if self.of.len() >= self.sweep_at {
            self.sweep();
        }
        let rate = Arc::new(Rate::new(GcraMath::new(burst, interval)));
        self.of.insert((burst, interval), Arc::clone(&rate));
        rate
    }

    pub(super) fn sweep(&mut self) {
        self.of.retain(|_, rate| Arc::strong_count(rate) > 1);
        self.sweep_at = SWEEP_RATES_FROM.max(self.of.len() * 2);
    }
}

impl Gcra {
    /// A full bucket.
    pub(super) fn new(rate: Arc<Rate>, now: u64) -> Self {
        Self { rate, tat: Tat(AtomicU64::new(now)) }
    }

    /// Also returns the TAT after this request, for [`undo`](Self::undo).
    pub(super) fn take(&self, units: NonZeroU32, now: u64) -> (Decision, u64) {
        // Larger requests would overflow: governor multiplies before it compares with the burst.
        let fits_at_all = units <= self.rate.refill.burst();
        let outcome = fits_at_all
            .then(|| CallersClock::at(now, || self.rate.governor.check_key_n(&self.tat, units)));
        let missing = self.ahead_of(now);
        match outcome {
            Some(Ok(Ok(state))) => {
                let left = state.remaining_burst_capacity();
                (Decision::admit(left, self.rate.refill.next_unit_in(missing)), LAST_TAT.get())
            }
            _ => (self.rate.refill.deny(units, missing), 0),
        }
    }

    /// Reverts a take that was just made, unless other requests have changed the bucket since: the
    /// units may have refilled meanwhile, and must not come back twice.
    pub(super) fn undo(&self, units: NonZeroU32, full_at: u64) {
        let before = full_at.saturating_sub(self.rate.refill.needed(units));
        let _ = self.tat.0.compare_exchange(full_at, before, Ordering::AcqRel, Ordering::Relaxed);
    }

    pub(super) fn peek(&self, units: NonZeroU32, now: u64) -> Decision {
        self.rate.refill.look(units, self.ahead_of(now))
    }

    /// Counts `units` that another quota admitted, whether they fit or not. With `beyond`, the
    /// bucket stays used up for at most that long. Returns whether units were left out for that.
    pub(super) fn add(&self, units: NonZeroU32, now: u64, beyond: Option<u64>) -> bool {
        let full = now.saturating_add(self.rate.refill.capacity());
        let most = beyond.map_or(MOST, |beyond| full.saturating_add(beyond).min(MOST));
        self.tat.advance(now, self.rate.refill.needed(units), most)
    }

    pub(super) fn charge(&self, units: NonZeroU32, now: u64) {
        let needed = self.rate.refill.needed(units);
        let most = now.saturating_add(self.rate.refill.capacity().saturating_mul(2));
        self.tat.advance(now, needed, most);
    }

    pub(super) fn give_back(&self, units: NonZeroU32) {
        self.tat.recede(self.rate.refill.needed(units));
    }

    /// Sets the bucket to lack at least `ahead` nanoseconds of refill.
    pub(super) fn raise(&self, ahead: u64, now: u64) {
        self.tat.0.fetch_max(now.saturating_add(ahead).min(MOST), Ordering::AcqRel);
    }

    /// When the bucket is full; in the past if it has been for a while.
    pub(super) fn full_at(&self) -> u64 {
        self.tat.0.load(Ordering::Acquire)
    }

    /// Reads by an atomic update, so that later updates are ordered after it.
    pub(super) fn touch(&self) {
        self.tat.0.fetch_add(0, Ordering::AcqRel);
    }

    pub(super) fn ahead_of(&self, now: u64) -> u64 {
        self.full_at().saturating_sub(now)
    }

    /// Takes over the state of another bucket, which lacks `missing`.
    #[cfg(feature = "redis")]
    pub(super) fn follow(&self, missing: u64, now: u64) {
        self.tat.0.store(now.saturating_add(missing), Ordering::Release);
    }
}

/// The *theoretical arrival time* of GCRA: when the bucket will be full, in nanoseconds of the
/// caller's clock.
///
/// A request that other requests overtake after it read the clock is decided by its own reading and
/// by everything taken meanwhile, because all of that is one atomic number.
struct Tat(AtomicU64);

impl Tat {
    /// Advances by `by`, up to `most`. Returns whether `most` was reached.
    fn advance(&self, now: u64, by: u64, most: u64) -> bool {
        let mut is_clipped = false;
        let advanced = |tat: u64| {
            let wanted = tat.max(now).saturating_add(by);
            is_clipped = wanted > most;
            Some(wanted.min(most.max(tat)))
        };
        // The closure never declines.
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, advanced);
        is_clipped
    }

    fn recede(&self, by: u64) {
        let receded = |tat: u64| Some(tat.saturating_sub(by));
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, receded);
    }
}

/// Required by governor, which never clones its keys.
impl Clone for Tat {
    fn clone(&self) -> Self {
        Self(AtomicU64::new(self.0.load(Ordering::Acquire)))
    }
}

/// Keys are equal by identity, because the state changes.
impl PartialEq for Tat {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for Tat {}

impl Hash for Tat {
    fn hash<H: Hasher>(&self, state: &mut H) {
        std::ptr::from_ref(self).hash(state);
    }
}

/// The state store for governor: the key itself is the state.
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
                Ok(_) => {
                    LAST_TAT.set(next.into());
                    return Ok(outcome);
                }
                Err(changed) => tat = changed,
            }
        }
    }
}

/// Passes the caller's clock reading to governor: one reading serves the whole request, and a
/// test's clock reaches every bucket.
#[derive(Clone, Debug)]
struct CallersClock;

thread_local! {
    static CALLERS_TIME: Cell<u64> = const { Cell::new(0) };
    /// The TAT after the last take of this thread, which governor does not return.
    static LAST_TAT: Cell<u64> = const { Cell::new(0) };
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

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: u64 = 1_000;
    const BURST: u64 = 3;

    fn full(now: u64) -> Gcra {
        let burst = NonZeroU32::new(u32::try_from(BURST).unwrap()).unwrap();
        Gcra::new(Rates::default().of(burst, INTERVAL), now)
    }

    fn take_all(bucket: &Gcra, now: u64) -> u64 {
        let takes = std::iter::from_fn(|| Some(bucket.take(NonZeroU32::MIN, now).0.is_admitted()));
        takes.take_while(|admitted| *admitted).count().try_into().unwrap()
    }

    #[test]
    fn what_is_undone_at_once_is_there_again() {
        let bucket = full(0);
        let (decision, full_at) = bucket.take(NonZeroU32::MIN, 0);
        assert!(decision.is_admitted());
        bucket.undo(NonZeroU32::MIN, full_at);
        assert_eq!(take_all(&bucket, 0), BURST);
    }

    #[test]
    fn what_came_back_by_itself_does_not_come_back_again_when_it_is_undone() {
        // Whole and partial intervals.
        for later in [INTERVAL, 2 * INTERVAL, 5 * INTERVAL, 5 * INTERVAL + 1] {
            let bucket = full(0);
            let (_, full_at) = bucket.take(NonZeroU32::MIN, 0);
            assert_eq!(take_all(&bucket, later), BURST);
            bucket.undo(NonZeroU32::MIN, full_at);
            assert_eq!(take_all(&bucket, later), 0, "after {later} ns");
        }
    }

    #[test]
    fn rates_that_no_bucket_has_do_not_pile_up_and_others_are_shared() {
        let mut rates = Rates::default();
        let kept = rates.of(NonZeroU32::MIN, INTERVAL);
        for interval in 1..1_000 {
            rates.of(NonZeroU32::MIN, INTERVAL + interval);
            assert!(rates.of.len() <= 2 * SWEEP_RATES_FROM, "{} rates", rates.of.len());
        }
        assert!(Arc::ptr_eq(&kept, &rates.of(NonZeroU32::MIN, INTERVAL)));
        // As many as are in use fit, too, and are not looked through each time.
        let used: Vec<_> =
            (1..100).map(|more| rates.of(NonZeroU32::MIN, INTERVAL + more)).collect();
        rates.sweep();
        assert_eq!(rates.of.len(), 1 + used.len());
        assert_eq!(rates.sweep_at, 2 * rates.of.len());
    }
}
