//! What limiters admit: exactly what they should. One suite for all of them.

#![cfg(test)]

mod simulator;

use std::{
    num::NonZeroU32,
    sync::Arc,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use proptest::prelude::*;
use tower_api_key::rate_limit::{
    BucketId, Buckets, CountedPer, LocalRateLimiter, Quota, RateLimiter,
};

use self::simulator::{Simulator, decided};

/// One of several quotas, of any kind.
fn quota() -> impl Strategy<Value = Quota> {
    let limit = prop_oneof![1..5_u32, 1..100_u32, 1..1_000_000_u32];
    let window = prop_oneof![100..200_u64, 100..10_000_u64, 100..100_000_000_000_u64];
    let quota = (limit, window, 1..100_u32, 0..4_u32, any::<bool>());
    quota.prop_filter_map("out of range", |(limit, window, burst, kind, shared)| {
        let window = Duration::from_millis(window);
        let quota = match kind {
            0 => Quota::per(limit, window),
            1 => Quota::per(limit, window).and_then(|quota| quota.burst(burst)),
            2 => Quota::at_most(limit, window),
            _ => Quota::sliding(limit, window),
        };
        let quota = quota.ok()?;
        Some(if shared { quota.per_consumer() } else { quota })
    })
}

/// One to four quotas of a key.
fn quotas() -> impl Strategy<Value = Vec<Quota>> {
    let named = |(at, quota): (usize, Quota)| quota.named(format!("quota.{at}")).unwrap();
    proptest::collection::vec(quota(), 1..=4)
        .prop_map(move |quotas| quotas.into_iter().enumerate().map(named).collect())
}

/// The quotas of a key that no test has used yet.
fn fresh(quotas: &[Quota]) -> Vec<(BucketId, Quota)> {
    static CONSUMERS: AtomicU32 = AtomicU32::new(0);
    let consumer = format!("consumer-{}", CONSUMERS.fetch_add(1, Ordering::Relaxed));
    let id = |quota: &Quota| match quota.counted_per() {
        CountedPer::Consumer => BucketId::of_consumer(&consumer, quota.name()),
        _ => BucketId::of_key(&consumer, 1, quota.name()),
    };
    quotas.iter().map(|quota| (id(quota), quota.clone())).collect()
}

#[derive(Clone, Debug)]
enum Act {
    Take(u32),
    Peek,
    Charge(u32),
    /// What the latest request took.
    GiveBack,
    AskAgain,
    Sweep,
    Change(usize),
}

/// A time to wait, of which the quotas know the length.
#[derive(Clone, Debug)]
enum Gap {
    None,
    /// As long as the latest answer said.
    AsTold,
    /// Of a quota: so many 1000ths of its interval, window, slot, and so many nanoseconds.
    Interval(usize, u32),
    Window(usize, u32),
    Nanos(u64),
}

fn acts() -> impl Strategy<Value = Vec<(Gap, Act)>> {
    let units =
        prop_oneof![4 => Just(1_u32), 2 => 1..5_u32, 1 => 1..100_u32, 1 => 1..1_000_000_u32];
    let act = prop_oneof![
        12 => units.clone().prop_map(Act::Take),
        2 => Just(Act::Peek),
        1 => units.prop_map(Act::Charge),
        2 => Just(Act::GiveBack),
        1 => Just(Act::AskAgain),
        1 => Just(Act::Sweep),
        1 => (0..4_usize).prop_map(Act::Change),
    ];
    let gap = prop_oneof![
        4 => Just(Gap::None),
        2 => Just(Gap::AsTold),
        2 => (0..4_usize, 0..3_000_u32).prop_map(|(of, part)| Gap::Interval(of, part)),
        2 => (0..4_usize, 0..1_500_u32).prop_map(|(of, part)| Gap::Window(of, part)),
        1 => (0..1_000_000_u64).prop_map(Gap::Nanos),
    ];
    proptest::collection::vec((gap, act), 1..80)
}

impl Gap {
    fn length(&self, quotas: &[(BucketId, Quota)], told: Duration) -> Duration {
        let part = |at: usize, length: fn(&Quota) -> Duration, part: u32| {
            length(&quotas[at % quotas.len()].1) / 1000 * part
        };
        match *self {
            Self::None => Duration::ZERO,
            Self::AsTold if told == Duration::MAX => Duration::ZERO,
            Self::AsTold => told,
            Self::Interval(of, parts) => part(of, Quota::interval, parts),
            Self::Window(of, parts) => part(of, Quota::window, parts),
            Self::Nanos(nanos) => Duration::from_nanos(nanos),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn as_the_simulator(
        first in quotas(),
        others in proptest::collection::vec(quotas(), 4),
        acts in acts(),
        start in prop_oneof![Just(0), 0..1_u64 << 60],
    ) {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            let limiter = LocalRateLimiter::new();
            let mut simulator = Simulator::new();
            let mut now = Duration::from_nanos(start);
            let mut quotas = fresh(&first);
            simulator.buckets(&quotas, now);
            let mut buckets = limiter.buckets(&quotas, now);
            let mut told = Duration::ZERO;
            let mut taken = None;
            for (gap, act) in acts {
                now += gap.length(&quotas, told);
                match act {
                    Act::Take(units) => {
                        let units = NonZeroU32::new(units).unwrap();
                        let decisions = decided(buckets.take(units, now)).await;
                        assert_eq!(decisions, simulator.take(&quotas, units, now), "{units} at {now:?}");
                        taken = decisions.is_admitted().then_some(units);
                        told = decisions.iter().filter(|d| !d.is_admitted()).map(|d| d.next_unit_in()).max().unwrap_or_default();
                    }
                    Act::Peek => {
                        let decisions = decided(buckets.peek(now)).await;
                        assert_eq!(decisions, simulator.peek(&quotas, now), "{now:?}");
                    }
                    Act::Charge(units) => {
                        let units = NonZeroU32::new(units).unwrap();
                        buckets.charge(units, now);
                        simulator.charge(&quotas, units, now);
                    }
                    Act::GiveBack => if let Some(units) = taken.take() {
                        buckets.give_back(units, now);
                        simulator.give_back(&quotas, units, now);
                    },
                    Act::AskAgain => buckets = limiter.buckets(&quotas, now),
                    Act::Sweep => limiter.sweep(now),
                    Act::Change(to) => {
                        for ((id, quota), other) in quotas.iter_mut().zip(&others[to]) {
                            let _ = id;
                            *quota = other.clone();
                        }
                        simulator.buckets(&quotas, now);
                        buckets = limiter.buckets(&quotas, now);
                    }
                }
            }
        });
    }
}
