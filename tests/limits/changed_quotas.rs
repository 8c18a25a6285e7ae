//! After a change of quotas, exactly as much is left as the manual says: no less, and no more.
//!
//! `limiter_contract` bounds what passes from above, whatever changes. Here the changes are few, so
//! that a model of them is simple and every decision can be foretold.

use std::{num::NonZeroU32, time::Duration};

use proptest::{collection::vec, prelude::*};
use tower_api_key::rate_limit::{Algorithm, Decision, LocalRateLimiter, Quota};

use crate::simulator::{
    Simulator,
    requests::{Key, Requests, any_quota, gap, wait},
};

const START: Duration = Duration::from_secs(1_000);
/// A bucket that has been full and unused for as long may be forgotten.
const RETENTION: Duration = Duration::from_secs(600);

/// Two quotas, of which the first refills faster.
fn faster_and_slower() -> impl Strategy<Value = (Quota, Quota)> {
    (quota(), quota()).prop_filter_map("the same rate, or slots in common", |(one, other)| {
        let (one, other) = (one.named("one").unwrap(), other.named("other").unwrap());
        let is_sliding = |quota: &Quota| quota.algorithm() == Algorithm::SlidingWindow;
        if is_sliding(&one) && is_sliding(&other) && one.window() == other.window() {
            return None;
        }
        let gain = gain(&one, &other);
        (gain != 0).then_some(if gain > 0 { (one, other) } else { (other, one) })
    })
}

/// So short that a bucket is seldom forgotten, and so small that it is used up often.
fn quota() -> impl Strategy<Value = Quota> {
    any_quota((1..50_u32).boxed(), (100..5_000_u64).boxed())
}

fn paced() -> impl Strategy<Value = Quota> {
    quota().prop_filter("sliding", |quota| quota.algorithm() == Algorithm::Gcra)
}

fn requests() -> impl Strategy<Value = Requests> {
    let units = prop_oneof![6 => Just(1), 2 => 1..8_u32, 1 => 1..100_u32];
    vec((gap(), units.prop_map(|units| NonZeroU32::new(units).unwrap())), 0..40)
}

/// The refill rate: units in nanoseconds.
fn rate(quota: &Quota) -> (i128, i128) {
    let nanos = |duration: Duration| i128::try_from(duration.as_nanos()).unwrap();
    match quota.algorithm() {
        Algorithm::Gcra => (1, nanos(quota.interval())),
        _ => (quota.limit().into(), nanos(quota.window())),
    }
}

/// By how much the first quota refills faster, in units per product of the lengths of both rates.
fn gain(one: &Quota, other: &Quota) -> i128 {
    let ((units, nanos), (others, other_nanos)) = (rate(one), rate(other));
    units * other_nanos - others * nanos
}

/// A key, and what it should be told.
struct Run {
    limiter: LocalRateLimiter,
    key: Key,
    simulator: Simulator,
    now: Duration,
    told: Duration,
}

impl Run {
    fn new(quota: &Quota) -> Self {
        let limiter = LocalRateLimiter::new();
        let key = Key::new(&limiter, std::slice::from_ref(quota), START);
        let mut simulator = Simulator::new();
        simulator.buckets(&key.quotas, START);
        Self { limiter, key, simulator, now: START, told: Duration::ZERO }
    }

    fn change(&mut self, quota: &Quota) {
        self.key.change(&self.limiter, std::slice::from_ref(quota), self.now);
    }

    /// Sends requests, each of which is decided as by these buckets alone. What is admitted is
    /// counted by the `others`, which owe at most what they refill in `beyond`.
    async fn decides_as(
        &mut self,
        quotas: &[Quota],
        others: &[Quota],
        beyond: Option<Duration>,
        requests: Requests,
    ) {
        for (gap, units) in requests {
            self.now += gap.length(&self.key, self.told);
            let decisions = self.key.take(units, self.now).await;
            let expected = self.simulator.take(quotas, units, self.now);
            assert_eq!(decisions, expected, "{units} at {:?} of {quotas:?}", self.now);
            if decisions.is_admitted() {
                self.simulator.count(others, units, beyond, self.now);
            }
            self.told = wait(&decisions);
        }
    }
}

/// The faster quota stays in force until the slower one allows less.
///
/// Returns the time until which it does at least, and from which it does not.
fn until(fast: &Quota, slow: &Quota, run: &Run) -> (Duration, Duration) {
    let left = run.simulator.peek(std::slice::from_ref(fast), run.now)[0].remaining();
    let units = i128::from(slow.burst_size().get()) - i128::from(left);
    let ((_, nanos), (_, others)) = (rate(fast), rate(slow));
    let gain = gain(fast, slow);
    // Windows refill in steps.
    let step = if fast.algorithm() == Algorithm::Gcra { 0 } else { fast.limit().into() };
    let least = (units - 1).max(0) * nanos * others / gain;
    let most = (units + step).max(0) * (nanos * others / gain + 1);
    let at = |after: i128| run.now + Duration::from_nanos(u64::try_from(after).unwrap());
    (at(least), at(most))
}

async fn begins_full(fast: Quota, slow: Quota, [before, after, again]: [Requests; 3]) {
    let mut run = Run::new(&fast);
    let both = [fast.clone(), slow.clone()];
    let [of_fast, of_slow] = [&both[..1], &both[1..]];
    run.decides_as(of_fast, &[], None, before).await;

    let (least, most) = until(&fast, &slow, &run);
    let changed = run.now;
    run.change(&slow);
    run.simulator.add_full(&slow, run.now);
    // Whether the model of the faster quota is exact. It does not spread what a window owes.
    let mut is_exact = true;
    for (gap, units) in after {
        run.now += gap.length(&run.key, run.told);
        let now = run.now;
        let [fast_fits, slow_fits] =
            [of_fast, of_slow].map(|of| run.simulator.fits(of, units, now));
        let decision = run.key.take(units, now).await[0];
        let case =
            format!("{units} at {now:?}, {decision:?}, until {least:?} to {most:?}: {both:?}");
        let is_admitted = decision.is_admitted();
        if now < least {
            assert_eq!(is_admitted, fast_fits && slow_fits, "{case}");
        } else if now >= most {
            assert_eq!(is_admitted, slow_fits, "{case}");
        } else {
            assert!(slow_fits || !is_admitted, "{case}");
            assert!(!is_exact || is_admitted || !(fast_fits && slow_fits), "{case}");
        }
        if is_admitted {
            is_exact &= fast_fits || fast.algorithm() == Algorithm::Gcra;
            run.simulator.count(&both, units, None, now);
        } else if now < least {
            let told = run.simulator.take(&both, units, now);
            if now.saturating_add(wait(&told)) <= least {
                assert_eq!(decision.next_unit_in(), wait(&told), "{case}");
            }
        }
        if now < least || now >= most {
            let of = if now < least { &both } else { of_slow };
            let left = run.simulator.peek(of, now).iter().map(Decision::remaining).min();
            assert_eq!(Some(decision.remaining()), left, "{case}");
        }
        run.told = decision.next_unit_in();
    }

    // It has counted everything.
    if is_exact && run.now < changed + RETENTION {
        run.change(&fast);
        run.decides_as(of_fast, &[], None, again).await;
    }
}

async fn lacks_what_was_taken(fast: Quota, slow: Quota, [before, after, again]: [Requests; 3]) {
    let mut run = Run::new(&slow);
    let [of_fast, of_slow] = [[fast.clone()], [slow.clone()]];
    run.decides_as(&of_slow, &[], None, before).await;
    let changed = run.now;
    run.change(&fast);
    run.simulator.add_lacking(&fast, &slow, run.now);
    // What the faster quota lets through uses up the slower one, and no more than that.
    run.decides_as(&of_fast, &of_slow, Some(Duration::ZERO), after).await;
    if run.now < changed + RETENTION {
        run.change(&slow);
        run.decides_as(&of_slow, &[], None, again).await;
    }
}

fn run(fact: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(fact);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn a_slower_quota_begins_full_beside_the_faster_one(
        (fast, slow) in faster_and_slower(), requests in [requests(), requests(), requests()],
    ) {
        run(begins_full(fast, slow, requests));
    }

    #[test]
    fn a_faster_quota_lacks_what_was_taken_of_the_slower_one(
        quotas in (paced(), paced()), requests in [requests(), requests(), requests()],
    ) {
        let (one, other) = (quotas.0.named("one").unwrap(), quotas.1.named("other").unwrap());
        let gain = gain(&one, &other);
        prop_assume!(gain != 0);
        let (fast, slow) = if gain > 0 { (one, other) } else { (other, one) };
        run(lacks_what_was_taken(fast, slow, requests));
    }

    #[test]
    fn a_larger_limit_of_the_same_window_gives_the_difference_at_once(
        limits in (1..50_u32, 1..50_u32), millis in 100..5_000_u64,
        before in requests(), after in requests(),
    ) {
        let sliding = |limit, name| {
            Quota::sliding(limit, Duration::from_millis(millis)).unwrap().named(name).unwrap()
        };
        let small = sliding(limits.0, "small");
        let large = sliding(limits.0 + limits.1, "large");
        run(async {
            let mut run = Run::new(&small);
            run.decides_as(std::slice::from_ref(&small), &[], None, before).await;
            run.change(&large);
            run.simulator.add_lacking(&large, &small, run.now);
            run.decides_as(std::slice::from_ref(&large), &[], None, after).await;
            // Two windows more than the smaller limit are owed at most.
            run.change(&small);
            run.now += small.interval() * 3;
            assert_eq!(run.key.drain(run.now).await, u64::from(small.limit()));
        });
    }
}
