//! The suite that the crate offers to authors of limiters: the crate's own keep it, and it finds what
//! is wrong with others. `limiter_contract.rs` checks the same of more cases, by a simulator.

#![allow(clippy::unwrap_used, reason = "a test that fails panics")]

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tower_api_key::{
    rate_limit::{
        Decision, LocalRateLimiter, RateLimiter, RateLimits,
        port::{Buckets, Check, Decisions, Subject},
    },
    rate_limiter_contract,
    test_util::contract::rate_limiter,
};

rate_limiter_contract!(local, async || (LocalRateLimiter::new(), ()));
rate_limiter_contract!(redis, async || (crate::redis_limiter::limiter(), ()));

#[derive(Clone, Copy, Debug)]
enum Bug {
    /// Each time a key is loaded, its bucket is full.
    RefillsOnLoad,
    /// All keys of a consumer share one bucket.
    OneBucketPerConsumer,
    TakesWhatItDenies,
    TakesWhenPeeked,
    LosesCharges,
    LosesRefunds,
    /// Every third unit is free.
    CountsTwoOfThree,
    /// `Retry-After` is half of what it should be.
    HalfTheWait,
}

struct Faulty {
    limiter: LocalRateLimiter,
    loads: AtomicU32,
    bug: Bug,
}

struct FaultyBuckets {
    buckets: Arc<dyn Buckets>,
    takes: AtomicU32,
    bug: Bug,
}

impl RateLimiter for Faulty {
    fn buckets(
        &self,
        subject: &Subject<'_>,
        limits: &RateLimits,
        now: Duration,
    ) -> Arc<dyn Buckets> {
        let load = self.loads.fetch_add(1, Ordering::Relaxed);
        let consumer = format!("{}-{load}", subject.consumer());
        let subject = match self.bug {
            Bug::RefillsOnLoad => Subject::of_key(&consumer, 1),
            Bug::OneBucketPerConsumer => Subject::of_key(subject.consumer(), 1),
            _ => *subject,
        };
        let buckets = self.limiter.buckets(&subject, limits, now);
        Arc::new(FaultyBuckets { buckets, takes: AtomicU32::new(0), bug: self.bug })
    }

    fn sweep(&self, now: Duration) {
        self.limiter.sweep(now);
    }
}

fn ready(check: Check) -> Decisions {
    match check {
        Check::Ready(decisions) => decisions,
        _ => unreachable!("a local limiter decides at once"),
    }
}

impl Buckets for FaultyBuckets {
    fn take(&self, units: NonZeroU32, now: Duration) -> Check {
        let take = self.takes.fetch_add(1, Ordering::Relaxed);
        let mut decisions = ready(self.buckets.take(units, now));
        match self.bug {
            Bug::TakesWhatItDenies if !decisions.is_admitted() => {
                self.buckets.charge(NonZeroU32::MIN, now);
            }
            Bug::CountsTwoOfThree if decisions.is_admitted() && take % 3 == 2 => {
                self.buckets.give_back(units, now);
            }
            Bug::HalfTheWait => {
                for decision in decisions.iter_mut().filter(|it| !it.is_admitted()) {
                    *decision =
                        Decision::deny_with(decision.remaining(), decision.next_unit_in() / 2);
                }
            }
            _ => {}
        }
        Check::Ready(decisions)
    }

    fn peek(&self, now: Duration) -> Check {
        match self.bug {
            Bug::TakesWhenPeeked => self.buckets.take(NonZeroU32::MIN, now),
            _ => self.buckets.peek(now),
        }
    }

    fn charge(&self, units: NonZeroU32, now: Duration) {
        if !matches!(self.bug, Bug::LosesCharges) {
            self.buckets.charge(units, now);
        }
    }

    fn give_back(&self, units: NonZeroU32, now: Duration) {
        if !matches!(self.bug, Bug::LosesRefunds) {
            self.buckets.give_back(units, now);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_limiter_that_breaks_its_contract_is_found() {
    for (bug, rule) in [
        (Bug::RefillsOnLoad, "a_bucket_belongs_to_its_subject"),
        (Bug::RefillsOnLoad, "a_bucket_outlives_what_was_returned"),
        (Bug::RefillsOnLoad, "a_changed_quota_keeps_what_was_taken"),
        (Bug::RefillsOnLoad, "keys_of_a_consumer_share_its_quotas"),
        (Bug::OneBucketPerConsumer, "a_bucket_belongs_to_its_subject"),
        (Bug::OneBucketPerConsumer, "classes_are_counted_by_themselves"),
        (Bug::TakesWhatItDenies, "a_denied_request_takes_nothing"),
        (Bug::TakesWhatItDenies, "a_denied_request_is_admitted_after_its_wait"),
        (Bug::TakesWhenPeeked, "a_peek_takes_nothing"),
        (Bug::LosesCharges, "a_charge_becomes_debt"),
        (Bug::LosesCharges, "debt_is_capped"),
        (Bug::LosesRefunds, "a_refund_undoes_a_take"),
        (Bug::LosesRefunds, "a_refund_fills_at_most_the_bucket"),
        (Bug::CountsTwoOfThree, "an_unused_bucket_is_full"),
        (Bug::CountsTwoOfThree, "no_window_admits_more_than_promised"),
        (Bug::CountsTwoOfThree, "concurrent_requests_share_what_is_left"),
        (Bug::HalfTheWait, "a_denied_request_is_admitted_after_its_wait"),
        (Bug::HalfTheWait, "more_units_than_fit_are_never_admitted"),
    ] {
        let faulty = || Faulty { limiter: LocalRateLimiter::new(), loads: AtomicU32::new(0), bug };
        let violations = rate_limiter(async || (faulty(), ())).await.unwrap_err();
        let found: Vec<_> = violations.iter().map(|(rule, _)| rule).collect();
        assert!(found.contains(&rule), "{bug:?} breaks {rule}, and these were found: {found:?}");
    }
}
