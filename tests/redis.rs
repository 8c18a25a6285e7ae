//! Limits that a fleet shares: what Redis decides is what the limiter of one process would.

#![cfg(test)]

mod harness;

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use harness::redis::Redis;
use proptest::{prelude::*, test_runner::TestRunner};
use tokio::runtime::Runtime;
use tower_api_key::rate_limit::{
    BucketId, Buckets, Check, Decisions, LocalRateLimiter, Quota, RateLimiter, RedisRateLimiter,
    Unavailable,
};

/// As many nanoseconds as the clock of a real server has.
const START: Duration = Duration::from_secs(1_800_000_000);

async fn decided(check: Check) -> Decisions {
    match check {
        Check::Ready(decisions) => decisions,
        Check::Pending(decisions) => decisions.await,
        _ => unreachable!("there is no other"),
    }
}

fn units(units: u32) -> NonZeroU32 {
    NonZeroU32::new(units).unwrap()
}

/// Patient, so that a busy machine is no outage; and one that decides nothing by itself.
fn limiter(redis: &Redis) -> RedisRateLimiter {
    let builder = RedisRateLimiter::builder(&redis.url()).deadline(Duration::from_secs(1));
    builder.when_unavailable(Unavailable::Deny).callers_time().build().unwrap()
}

#[derive(Clone, Debug)]
enum Step {
    Take(u32),
    Peek,
    Charge(u32),
    GiveBack(u32),
    Wait(Duration),
    /// Until what was denied last would fit.
    WaitAsTold,
    /// Other quotas for the same buckets.
    Change(Vec<Quota>),
}

fn quota() -> impl Strategy<Value = Quota> {
    let window =
        prop_oneof![100..5_000_u64, Just(60_000), Just(86_400_000), 100..3_000_000_000_u64];
    (1..200_u32, window, 1..200_u32, any::<bool>()).prop_map(|(limit, millis, burst, sliding)| {
        let window = Duration::from_millis(millis);
        if sliding {
            Quota::sliding(limit, window).unwrap()
        } else {
            Quota::per(limit, window).unwrap().burst(burst).unwrap()
        }
    })
}

fn quotas() -> impl Strategy<Value = Vec<Quota>> {
    proptest::collection::vec(quota(), 1..4)
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (1..4_u32).prop_map(Step::Take),
        1 => (1..300_u32).prop_map(Step::Take),
        2 => Just(Step::Peek),
        1 => (1..300_u32).prop_map(Step::Charge),
        2 => (1..4_u32).prop_map(Step::GiveBack),
        4 => (0..2_000_000_000_u64).prop_map(|nanos| Step::Wait(Duration::from_nanos(nanos))),
        1 => (0..200_000_u64).prop_map(|secs| Step::Wait(Duration::from_secs(secs))),
        3 => Just(Step::WaitAsTold),
        1 => quotas().prop_map(Step::Change),
    ];
    proptest::collection::vec(step, 1..60)
}

/// The buckets of the same quotas, each under a name that stays when the quota changes.
fn buckets(
    limiter: &dyn RateLimiter,
    key: u128,
    quotas: &[Quota],
    now: Duration,
) -> Arc<dyn Buckets> {
    let named = quotas
        .iter()
        .enumerate()
        .map(|(at, quota)| (BucketId::of_key("acme", key, &format!("policy-{at}")), quota.clone()));
    limiter.buckets(&named.collect::<Vec<_>>(), now)
}

#[test]
fn redis_decides_as_the_limiter_of_one_process_does() {
    let (runtime, redis) = (Runtime::new().unwrap(), Redis::start());
    let _guard = runtime.enter();
    let shared = limiter(&redis);
    let key = std::cell::Cell::new(0);
    let mut runner =
        TestRunner::new(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() });
    let outcome = runner.run(&(quotas(), steps()), |(quotas, steps)| {
        key.set(key.get() + 1);
        let local = LocalRateLimiter::new();
        let mut now = START;
        let mut both =
            [buckets(&shared, key.get(), &quotas, now), buckets(&local, key.get(), &quotas, now)];
        let mut told = Duration::ZERO;
        for step in steps {
            let before = redis.scripts_run();
            let by_redis = match &step {
                Step::Take(n) => {
                    let [shared, local] = both.each_ref().map(|b| b.take(units(*n), now));
                    Some((runtime.block_on(decided(shared)), runtime.block_on(decided(local))))
                }
                Step::Peek => {
                    let [shared, local] = both.each_ref().map(|b| b.peek(now));
                    Some((runtime.block_on(decided(shared)), runtime.block_on(decided(local))))
                }
                Step::Charge(n) => {
                    both.iter().for_each(|b| b.charge(units(*n), now));
                    None
                }
                Step::GiveBack(n) => {
                    both.iter().for_each(|b| b.give_back(units(*n), now));
                    None
                }
                Step::Wait(time) => {
                    now += *time;
                    continue;
                }
                Step::WaitAsTold => {
                    now += std::mem::take(&mut told);
                    continue;
                }
                Step::Change(quotas) => {
                    both = [
                        buckets(&shared, key.get(), quotas, now),
                        buckets(&local, key.get(), quotas, now),
                    ];
                    // What is rescaled is rescaled when Redis hears of it.
                    let [shared, local] = both.each_ref().map(|b| b.peek(now));
                    Some((runtime.block_on(decided(shared)), runtime.block_on(decided(local))))
                }
            };
            match by_redis {
                Some((by_redis, here)) => {
                    prop_assert_eq!(&by_redis, &here, "{:?} at {:?}", step, now);
                    let denied = here.iter().filter(|decision| !decision.is_admitted());
                    let wait = denied.map(|decision| decision.next_unit_in()).max();
                    // Not one that never ends.
                    told = wait.filter(|wait| *wait < Duration::MAX / 2).unwrap_or_default();
                }
                None => while redis.scripts_run() == before {},
            }
        }
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
    assert!(shared.is_shared());
}
