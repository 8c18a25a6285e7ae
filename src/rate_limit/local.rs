use std::{
    cell::Cell,
    collections::{HashMap, hash_map::RandomState},
    fmt,
    hash::BuildHasher,
    num::NonZeroU32,
    sync::{
        Arc, Mutex, PoisonError,
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

use super::{Bucket, BucketId, Check, Decision, Quota, RateLimiter};

/// Buckets in this process's memory, counted by [`governor`](https://docs.rs/governor).
///
/// Right for one process. A fleet of `n` processes admits up to `n` times the quota.
///
/// Buckets that are full again and belong to no cached key are forgotten, which nobody can tell
/// from keeping them: on each worker tick, and whenever the number of buckets has doubled.
pub struct LocalRateLimiter {
    shards: [Mutex<Shard>; SHARDS],
    hasher: RandomState,
}

/// Enough that sweeping one of a million buckets holds a lock for about a millisecond.
const SHARDS: usize = 64;
const SWEEP_FROM: usize = 64;

#[derive(Default)]
struct Shard {
    buckets: HashMap<BucketId, Arc<LocalBucket>>,
    sweep_at: usize,
}

impl LocalRateLimiter {
    /// A limiter without buckets.
    #[must_use]
    pub fn new() -> Self {
        Self { shards: std::array::from_fn(|_| Mutex::default()), hasher: RandomState::new() }
    }

    /// The number of buckets in memory.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).buckets.len()).sum()
    }

    /// Whether there are no buckets in memory.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Default for LocalRateLimiter {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for LocalRateLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalRateLimiter").field("buckets", &self.len()).finish()
    }
}

impl RateLimiter for LocalRateLimiter {
    fn bucket(&self, id: &BucketId, quota: &Quota, now: Duration) -> Arc<dyn Bucket> {
        // The top bits choose the shard, as the map inside uses the others.
        let shard = self.hasher.hash_one(id) >> (u64::BITS - SHARDS.trailing_zeros());
        let shard = usize::try_from(shard).ok().and_then(|shard| self.shards.get(shard));
        let Some(shard) = shard else { return Arc::new(LocalBucket::new(quota, Tat::default())) };
        let mut shard = lock(shard);
        if shard.buckets.len() >= shard.sweep_at {
            shard.sweep(now);
        }
        match shard.buckets.get(id) {
            Some(bucket) if bucket.quota == *quota => Arc::clone(bucket) as _,
            known => {
                let state = known.map(|bucket| bucket.state.clone()).unwrap_or_default();
                if let Some(known) = known {
                    state.rescale(&known.quota, quota, now);
                }
                let bucket = Arc::new(LocalBucket::new(quota, state));
                shard.buckets.insert(id.clone(), Arc::clone(&bucket));
                bucket
            }
        }
    }

    fn sweep(&self, now: Duration) {
        for shard in &self.shards {
            lock(shard).sweep(now);
        }
    }
}

impl Shard {
    fn sweep(&mut self, now: Duration) {
        self.buckets.retain(|_, bucket| bucket.is_in_use() || !bucket.is_full(now));
        self.sweep_at = (self.buckets.len() * 2).max(SWEEP_FROM);
        if self.buckets.capacity() > self.sweep_at * 2 {
            self.buckets.shrink_to(self.sweep_at);
        }
    }
}

fn lock(shard: &Mutex<Shard>) -> std::sync::MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

struct LocalBucket {
    quota: Quota,
    state: Tat,
    governor: governor::RateLimiter<NotKeyed, Tat, CallersClock, StateInformationMiddleware>,
}

impl LocalBucket {
    fn new(quota: &Quota, state: Tat) -> Self {
        // `Quota` refuses an interval of zero, for which governor has no quota.
        let rate = governor::Quota::with_period(quota.interval())
            .unwrap_or_else(|| governor::Quota::per_second(NonZeroU32::MIN))
            .allow_burst(quota.burst_size());
        let governor = CallersClock::at(Nanos::from(0), || {
            governor::RateLimiter::new(rate, state.clone(), CallersClock)
        });
        Self { quota: quota.clone(), state, governor }
    }

    /// Whether somebody holds this bucket, or one of an earlier quota that shares its state. Each
    /// bucket holds the state twice.
    fn is_in_use(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) > 1 || Arc::strong_count(&self.state.0) > 2
    }

    fn is_full(&self, now: Duration) -> bool {
        self.state.ahead_of(now).is_zero()
    }

    /// Time until one more unit is back: what is left of the interval that is running.
    fn next_unit_in(&self, now: Duration) -> Duration {
        let ahead = self.state.ahead_of(now).as_nanos();
        let interval = self.quota.interval().as_nanos();
        let rest = if ahead == 0 { 0 } else { (ahead - 1) % interval + 1 };
        Duration::from_nanos(u64::try_from(rest).unwrap_or(u64::MAX))
    }
}

impl Bucket for LocalBucket {
    fn take(&self, cost: NonZeroU32, now: Duration) -> Check {
        let instant = Nanos::from(now);
        let outcome = CallersClock::at(instant, || match cost {
            NonZeroU32::MIN => Ok(self.governor.check()),
            cost => self.governor.check_n(cost),
        });
        Check::Ready(match outcome {
            Ok(Ok(state)) => {
                Decision::admit(state.remaining_burst_capacity(), self.next_unit_in(now))
            }
            Ok(Err(denied)) => Decision::deny(denied.wait_time_from(instant)),
            // More than the bucket ever holds.
            Err(_) => Decision::deny(Duration::MAX),
        })
    }

    fn peek(&self, now: Duration) -> Check {
        let used = self.state.ahead_of(now).as_nanos();
        let left = capacity(&self.quota).saturating_sub(used) / self.quota.interval().as_nanos();
        let next = self.next_unit_in(now);
        Check::Ready(match u32::try_from(left).unwrap_or(u32::MAX) {
            0 => Decision::deny(next),
            remaining => Decision::admit(remaining, next),
        })
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

    /// Leaves the bucket as full of `to` as it was of `from`: half used up stays half used up.
    fn rescale(&self, from: &Quota, to: &Quota, now: Duration) {
        let (from, to, now) = (capacity(from), capacity(to), now.as_nanos());
        let rescaled = |tat: u64| {
            let used = u128::from(tat).saturating_sub(now).min(from);
            u64::try_from(now + (used * to).div_ceil(from)).ok().filter(|_| used > 0)
        };
        // An empty update: the bucket is full, and is so of any quota.
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, rescaled);
    }
}

/// The time in which an empty bucket fills, in nanoseconds. [`Quota`] keeps it within 62 bits.
fn capacity(quota: &Quota) -> u128 {
    quota.interval().as_nanos() * u128::from(quota.burst_size().get())
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn take(bucket: &dyn Bucket, now: Duration) -> Decision {
        match bucket.take(NonZeroU32::MIN, now) {
            Check::Ready(decision) => decision,
            Check::Pending(_) => unreachable!("a local bucket decides at once"),
        }
    }

    fn minute(id: u128) -> BucketId {
        BucketId::new(id, "minute")
    }

    const START: Duration = Duration::from_secs(1000);

    #[test]
    fn the_burst_passes_then_one_per_interval() {
        let limiter = LocalRateLimiter::new();
        let quota = Quota::per_minute(10).unwrap().burst(3).unwrap();
        let bucket = limiter.bucket(&minute(1), &quota, START);
        for remaining in [2, 1, 0] {
            let decision = take(&*bucket, START);
            assert!(decision.is_admitted());
            assert_eq!(decision.remaining(), remaining);
            assert_eq!(decision.next_unit_in(), Duration::from_secs(6));
        }
        let denied = take(&*bucket, START + Duration::from_secs(1));
        assert_eq!(denied, Decision::deny(Duration::from_secs(5)));
        assert!(take(&*bucket, START + Duration::from_secs(6)).is_admitted());
    }

    #[test]
    fn a_changed_quota_applies_at_once_and_does_not_refill() {
        let limiter = LocalRateLimiter::new();
        let small = Quota::per_minute(5).unwrap();
        let bucket = limiter.bucket(&minute(1), &small, START);
        while take(&*bucket, START).is_admitted() {}

        let large = Quota::per_minute(600).unwrap();
        let bucket = limiter.bucket(&minute(1), &large, START);
        assert!(!take(&*bucket, START).is_admitted(), "an empty bucket stays empty");
        assert!(take(&*bucket, START + Duration::from_millis(100)).is_admitted());
        assert!(!take(&*bucket, START + Duration::from_millis(199)).is_admitted());
    }

    #[test]
    fn a_bucket_whose_state_is_in_use_under_another_quota_is_never_swept() {
        let limiter = LocalRateLimiter::new();
        let (old, new) = (Quota::per_minute(10).unwrap(), Quota::per_minute(20).unwrap());
        let held = limiter.bucket(&minute(1), &old, START);
        drop(limiter.bucket(&minute(1), &new, START));
        limiter.sweep(START);
        let again = limiter.bucket(&minute(1), &new, START);
        let mut admitted = 0;
        for bucket in [again, held] {
            while take(&*bucket, START).is_admitted() {
                admitted += 1;
            }
        }
        assert!(admitted <= 20, "{admitted} at once under quotas of 10 and 20");
    }

    #[test]
    fn a_quota_that_changes_back_and_forth_never_refills() {
        let limiter = LocalRateLimiter::new();
        let quotas = [
            Quota::per_second(100).unwrap(),
            Quota::per(100, Duration::from_secs(3600)).unwrap(),
            Quota::per(2, Duration::from_secs(86_400)).unwrap(),
            Quota::per_minute(60).unwrap().burst(7).unwrap(),
        ];
        let id = minute(1);
        let bucket = limiter.bucket(&id, &quotas[0], START);
        while take(&*bucket, START).is_admitted() {}
        for quota in quotas.iter().cycle().take(20) {
            let bucket = limiter.bucket(&id, quota, START);
            assert!(!take(&*bucket, START).is_admitted(), "{quota:?}");
            let wait = take(&*bucket, START).next_unit_in();
            assert!(wait <= quota.interval() + Duration::from_micros(1), "{wait:?} of {quota:?}");
        }
    }

    #[test]
    fn half_a_bucket_stays_half_a_bucket() {
        let limiter = LocalRateLimiter::new();
        let small = Quota::per_minute(10).unwrap();
        let bucket = limiter.bucket(&minute(1), &small, START);
        for _ in 0..5 {
            assert!(take(&*bucket, START).is_admitted());
        }
        let large = Quota::per(1000, Duration::from_secs(3600)).unwrap();
        let bucket = limiter.bucket(&minute(1), &large, START);
        assert_eq!(take(&*bucket, START).remaining(), 499);
    }

    #[test]
    fn a_bucket_outlives_its_users_until_it_is_full_again() {
        let limiter = LocalRateLimiter::new();
        let quota = Quota::per_minute(1).unwrap();
        let first = take(&*limiter.bucket(&minute(1), &quota, START), START);
        assert!(first.is_admitted());
        limiter.sweep(START + Duration::from_secs(59));
        let again = take(&*limiter.bucket(&minute(1), &quota, START), START);
        assert!(!again.is_admitted(), "asking for the bucket again refilled it");

        limiter.sweep(START + Duration::from_secs(60));
        assert!(limiter.is_empty());
    }

    #[test]
    fn a_bucket_in_use_is_never_swept() {
        let limiter = LocalRateLimiter::new();
        let quota = Quota::per_minute(1).unwrap();
        let held = limiter.bucket(&minute(1), &quota, START);
        limiter.sweep(START);
        assert!(take(&*held, START).is_admitted());
        assert!(!take(&*limiter.bucket(&minute(1), &quota, START), START).is_admitted());
    }

    #[test]
    fn idle_buckets_do_not_pile_up() {
        let limiter = LocalRateLimiter::new();
        let quota = Quota::per_second(1).unwrap();
        let mut now = START;
        for id in 0..100_000 {
            now += Duration::from_millis(1);
            assert!(take(&*limiter.bucket(&minute(id), &quota, now), now).is_admitted());
        }
        assert!(limiter.len() < 2 * (1000 + SHARDS * SWEEP_FROM), "{}", limiter.len());
    }

    fn peek(bucket: &dyn Bucket, now: Duration) -> Decision {
        match bucket.peek(now) {
            Check::Ready(decision) => decision,
            Check::Pending(_) => unreachable!("a local bucket decides at once"),
        }
    }

    proptest! {
        #[test]
        fn a_peek_tells_what_a_take_would_and_changes_nothing(
            limit in 1..50_u32,
            window_ms in 1..5_000_u64,
            burst in 1..50_u32,
            gaps in proptest::collection::vec(0..2_000_u64, 1..200),
        ) {
            let quota = Quota::per(limit, Duration::from_millis(window_ms)).unwrap();
            let quota = quota.burst(burst).unwrap();
            let bucket = || LocalRateLimiter::new().bucket(&minute(1), &quota, START);
            let (peeked, left_alone) = (bucket(), bucket());
            let mut now = START;
            for gap in gaps {
                now += Duration::from_millis(gap);
                let told = peek(&*peeked, now);
                let taken = take(&*peeked, now);
                prop_assert_eq!(taken, take(&*left_alone, now));
                prop_assert_eq!(told.is_admitted(), taken.is_admitted());
                if taken.is_admitted() {
                    prop_assert_eq!(told.remaining(), taken.remaining() + 1);
                } else {
                    prop_assert_eq!(told, taken);
                }
                let after = peek(&*peeked, now);
                prop_assert_eq!(after.remaining(), taken.remaining());
                prop_assert_eq!(after.next_unit_in(), taken.next_unit_in());
            }
        }

        #[test]
        fn never_more_than_promised_and_the_wait_is_exact(
            limit in 1..50_u32,
            window_ms in 1..5_000_u64,
            burst in 1..50_u32,
            gaps in proptest::collection::vec(0..2_000_u64, 1..200),
        ) {
            let window = Duration::from_millis(window_ms);
            let quota = Quota::per(limit, window).unwrap().burst(burst).unwrap();
            let bucket = LocalRateLimiter::new().bucket(&minute(1), &quota, START);
            let (mut now, mut admitted) = (START, Vec::new());
            for gap in gaps {
                now += Duration::from_millis(gap);
                let decision = take(&*bucket, now);
                if decision.is_admitted() {
                    admitted.push(now);
                } else {
                    let wait = decision.next_unit_in();
                    prop_assert!(wait > Duration::ZERO);
                    prop_assert!(!take(&*bucket, now + wait - Duration::from_nanos(1)).is_admitted());
                    now += wait;
                    prop_assert!(take(&*bucket, now).is_admitted(), "not admitted after the wait");
                    admitted.push(now);
                }
            }
            for (first, from) in admitted.iter().enumerate() {
                let in_window = admitted[first..].iter().filter(|at| **at - *from <= window).count();
                prop_assert!(in_window as u64 <= quota.most_in(window));
            }
        }
    }
}
