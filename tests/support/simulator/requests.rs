//! Requests of keys with limits, for tests.

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use proptest::{collection::vec, prelude::*, sample::Index};
use tower_api_key::rate_limit::{
    Decision, Quota, RateLimiter, RateLimits,
    port::{Buckets, Decisions, Subject},
};

use super::decided;

/// The clocks of limiters cover a hundred years.
pub(crate) const END: Duration = Duration::from_secs(100 * 365 * 86_400);

/// The buckets of an unused key.
pub(crate) struct Key {
    consumer: String,
    /// In the order of decisions.
    pub(crate) quotas: Vec<Quota>,
    pub(crate) buckets: Arc<dyn Buckets>,
}

impl Key {
    pub(crate) fn new(limiter: &dyn RateLimiter, quotas: &[Quota], now: Duration) -> Self {
        static CONSUMERS: AtomicU32 = AtomicU32::new(0);
        let consumer = format!("consumer-{}", CONSUMERS.fetch_add(1, Ordering::Relaxed));
        let limits = limits(quotas);
        let buckets = limiter.buckets(&Subject::of_key(&consumer, 1), &limits, now);
        Self { consumer, quotas: limits.iter().cloned().collect(), buckets }
    }

    pub(crate) fn change(&mut self, limiter: &dyn RateLimiter, quotas: &[Quota], now: Duration) {
        let limits = limits(quotas);
        self.quotas = limits.iter().cloned().collect();
        self.buckets = limiter.buckets(&Subject::of_key(&self.consumer, 1), &limits, now);
    }

    /// Requests the buckets from the limiter again.
    pub(crate) fn ask_again(&mut self, limiter: &dyn RateLimiter, now: Duration) {
        self.change(limiter, &self.quotas.clone(), now);
    }

    pub(crate) async fn take(&self, units: NonZeroU32, now: Duration) -> Decisions {
        decided(self.buckets.take(units, now)).await
    }

    pub(crate) async fn admits(&self, units: NonZeroU32, now: Duration) -> bool {
        self.take(units, now).await.is_admitted()
    }

    pub(crate) async fn peek(&self, now: Duration) -> Decisions {
        decided(self.buckets.peek(now)).await
    }

    /// Takes everything that is left, in as many requests as the number has set bits.
    pub(crate) async fn drain(&self, now: Duration) -> u64 {
        let left = self.peek(now).await.iter().map(Decision::remaining).min().unwrap_or_default();
        let bits = u32::BITS - left.leading_zeros();
        let mut taken = 0;
        for units in (0..=bits).rev().filter_map(|bit| NonZeroU32::new(1_u32.checked_shl(bit)?)) {
            while self.admits(units, now).await {
                taken += u64::from(units.get());
                assert!(taken <= 2 * u64::from(left), "{left} units do not end");
            }
        }
        taken
    }
}

pub(crate) fn limits(quotas: &[Quota]) -> RateLimits {
    RateLimits::new(quotas.iter().cloned()).unwrap()
}

/// The wait until every denied quota admits again.
pub(crate) fn wait(decisions: &[Decision]) -> Duration {
    let denied = decisions.iter().filter(|decision| !decision.is_admitted());
    denied.map(Decision::next_unit_in).max().unwrap_or_default()
}

pub(crate) fn quota() -> impl Strategy<Value = Quota> {
    let limit = prop_oneof![1..5_u32, 1..100_u32, 1..1_000_000_u32];
    let window = prop_oneof![100..200_u64, 100..10_000_u64, 100..10_000_000_000_u64];
    any_quota(limit.boxed(), window.boxed())
}

/// A quota that a test can use up a few times.
pub(crate) fn small(most: u32) -> impl Strategy<Value = Quota> {
    any_quota((1..most).boxed(), (100..1_000_000_u64).boxed())
}

pub(crate) fn any_quota(
    limit: BoxedStrategy<u32>,
    millis: BoxedStrategy<u64>,
) -> impl Strategy<Value = Quota> {
    let parts = (limit, millis, 1..100_u32, 0..5_u32, any::<bool>());
    parts.prop_filter_map("out of range", |(limit, millis, burst, kind, per_consumer)| {
        let window = Duration::from_millis(millis);
        let quota = match kind {
            0 => Quota::per(limit, window),
            1 => Quota::per(limit, window).and_then(|quota| quota.burst(burst)),
            2 => Quota::at_most(limit, window),
            3 => Quota::at_most(limit, window).and_then(|quota| quota.burst(burst.min(limit))),
            _ => Quota::sliding(limit, window),
        };
        let quota = quota.ok()?;
        Some(if per_consumer { quota.per_consumer() } else { quota })
    })
}

/// One to four quotas of a key.
pub(crate) fn quotas() -> impl Strategy<Value = Vec<Quota>> {
    let named = |(at, quota): (usize, Quota)| quota.named(format!("quota.{at}")).unwrap();
    vec(quota(), 1..=4).prop_map(move |quotas| quotas.into_iter().enumerate().map(named).collect())
}

pub(crate) fn units() -> impl Strategy<Value = NonZeroU32> {
    let units = prop_oneof![6 => Just(1), 2 => 1..5_u32, 1 => 1..100_u32, 1 => 1..=u32::MAX];
    units.prop_map(|units| NonZeroU32::new(units).unwrap())
}

/// The time since the last request, relative to the quotas.
#[derive(Clone, Debug)]
pub(crate) enum Gap {
    None,
    AsTold,
    /// This many 1000ths of the time a quota needs for one unit.
    Interval(Index, u32),
    /// This many 1000ths of the window of a quota.
    Window(Index, u32),
    Nanos(u64),
}

pub(crate) fn gap() -> impl Strategy<Value = Gap> {
    prop_oneof![
        4 => Just(Gap::None),
        2 => Just(Gap::AsTold),
        2 => (any::<Index>(), 0..3_000_u32).prop_map(|(of, parts)| Gap::Interval(of, parts)),
        2 => (any::<Index>(), 0..1_500_u32).prop_map(|(of, parts)| Gap::Window(of, parts)),
        1 => (0..1_000_000_u64).prop_map(Gap::Nanos),
    ]
}

impl Gap {
    pub(crate) fn length(&self, key: &Key, told: Duration) -> Duration {
        let parts = |of: &Index, length: fn(&Quota) -> Duration, parts: u32| {
            length(of.get(&key.quotas)) / 1_000 * parts
        };
        match self {
            Self::AsTold if told < END => told,
            Self::None | Self::AsTold => Duration::ZERO,
            Self::Interval(of, part) => parts(of, Quota::interval, *part),
            Self::Window(of, part) => parts(of, Quota::window, *part),
            Self::Nanos(nanos) => Duration::from_nanos(*nanos),
        }
    }
}

pub(crate) type Requests = Vec<(Gap, NonZeroU32)>;

pub(crate) fn requests(most: usize) -> impl Strategy<Value = Requests> {
    vec((gap(), units()), 1..=most)
}

#[derive(Clone, Debug)]
pub(crate) enum Act {
    Take(NonZeroU32),
    Peek,
    Charge(NonZeroU32),
    /// Gives back what the latest request took.
    GiveBack,
    AskAgain,
    Sweep,
    Rename,
}

#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub(crate) quotas: Vec<Quota>,
    pub(crate) acts: Vec<(Gap, Act)>,
}

pub(crate) fn script() -> impl Strategy<Value = Script> {
    let act = prop_oneof![
        12 => units().prop_map(Act::Take),
        2 => Just(Act::Peek),
        1 => units().prop_map(Act::Charge),
        2 => Just(Act::GiveBack),
        1 => Just(Act::AskAgain),
        1 => Just(Act::Sweep),
        1 => Just(Act::Rename),
    ];
    (quotas(), vec((gap(), act), 1..100)).prop_map(|(quotas, acts)| Script { quotas, acts })
}
