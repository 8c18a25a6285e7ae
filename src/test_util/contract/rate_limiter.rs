//! The rules of a [`RateLimiter`], one function for each, which fails if the rule is broken.
//!
//! They check the decisions at times that they make up, so the limiter must decide by the `now` of
//! each call, as [`Buckets`] says. Decisions may be pending; what takes effect later is waited for.

mod bucket;
mod identity;
mod promise;

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval, timeout};

pub use self::{bucket::*, identity::*, promise::*};
use super::{Violation, suite::suite};
use crate::rate_limit::{
    Decision, Quota, RateLimiter, RateLimits,
    port::{Buckets, Check, Decisions, Subject},
};

suite! {
    $
    /// Checks the rules of a [`RateLimiter`].
    fn rate_limiter<L: RateLimiter>(limiter: L) from rate_limiter;
    /// Makes a `#[tokio::test]` of each rule of a
    /// [`RateLimiter`](crate::rate_limit::RateLimiter), in a module.
    ///
    /// Its arguments are the name of the module, and an async closure that makes a new limiter, and a
    /// guard that lives as long: `rate_limiter_contract!(my_limiter, async || (MyLimiter::new(), ()));`
    macro rate_limiter_contract;
    an_unused_bucket_is_full
    a_denied_request_is_admitted_after_its_wait
    a_denied_request_takes_nothing
    a_request_takes_from_all_quotas_or_none
    a_peek_takes_nothing
    more_units_than_fit_are_never_admitted
    a_charge_becomes_debt
    debt_is_capped
    a_refund_undoes_a_take
    a_refund_fills_at_most_the_bucket
    no_window_admits_more_than_promised
    a_client_that_waits_gets_its_quota
    concurrent_requests_share_what_is_left
    a_bucket_belongs_to_its_subject
    a_bucket_outlives_what_was_returned
    a_changed_quota_keeps_what_was_taken
    keys_of_a_consumer_share_its_quotas
    classes_are_counted_by_themselves
}

/// When the rules begin. Limiters must not rely on a time near zero.
const BEGIN: Duration = Duration::from_secs(1_000_000);
const NANO: Duration = Duration::from_nanos(1);
const MINUTE: Duration = Duration::from_secs(60);
const ONE: NonZeroU32 = NonZeroU32::MIN;

/// One quota of each kind.
fn kinds() -> Result<Vec<Quota>, Violation> {
    Ok(vec![
        Quota::per(6, MINUTE)?,
        Quota::per(60, MINUTE)?.burst(7)?,
        Quota::at_most(50, MINUTE)?,
        Quota::sliding(9, MINUTE)?,
    ])
}

fn units(units: u32) -> NonZeroU32 {
    NonZeroU32::new(units).unwrap_or(ONE)
}

/// The buckets of a consumer that no other rule uses.
struct Key<'a, L> {
    limiter: &'a L,
    consumer: String,
    buckets: Arc<dyn Buckets>,
}

impl<'a, L: RateLimiter> Key<'a, L> {
    fn new(limiter: &'a L, quotas: &[Quota]) -> Result<Self, Violation> {
        static CONSUMERS: AtomicU32 = AtomicU32::new(0);
        let number = CONSUMERS.fetch_add(1, Ordering::Relaxed);
        let consumer = format!("contract-{}-{number}", std::process::id());
        let limits = RateLimits::new(quotas.iter().cloned())?;
        let buckets = limiter.buckets(&Subject::of_key(&consumer, 1), &limits, BEGIN);
        Ok(Self { limiter, consumer, buckets })
    }

    fn subject(&self, root: u128) -> Subject<'_> {
        Subject::of_key(&self.consumer, root)
    }

    /// Asks the limiter for the buckets of the subject.
    fn ask(&self, subject: &Subject<'_>, quotas: &[Quota]) -> Result<Arc<dyn Buckets>, Violation> {
        let limits = RateLimits::new(quotas.iter().cloned())?;
        Ok(self.limiter.buckets(subject, &limits, BEGIN))
    }

    async fn take(&self, units: NonZeroU32, now: Duration) -> Decisions {
        decided(self.buckets.take(units, now)).await
    }

    async fn admits(&self, units: NonZeroU32, now: Duration) -> bool {
        self.take(units, now).await.is_admitted()
    }

    async fn peek(&self, now: Duration) -> Decisions {
        decided(self.buckets.peek(now)).await
    }

    async fn remaining(&self, now: Duration) -> u32 {
        remaining(&self.peek(now).await)
    }

    /// Takes single units until one is denied, and returns how many were admitted.
    async fn drain(&self, now: Duration) -> u64 {
        let mut taken = 0;
        while taken < 10_000 && self.admits(ONE, now).await {
            taken += 1;
        }
        taken
    }

    /// Charges and refunds may take effect soon rather than at once.
    async fn settles_at(&self, expected: u32, now: Duration, why: &str) -> Result<(), Violation> {
        let mut ticks = interval(Duration::from_millis(5));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = 0;
        let waiting = async {
            loop {
                last = self.remaining(now).await;
                if last == expected {
                    return;
                }
                ticks.tick().await;
            }
        };
        let settled = timeout(Duration::from_secs(5), waiting).await;
        settled.map_err(|_| {
            Violation::new(format!("{why}\n  expected: {expected} units left\n     found: {last}"))
        })
    }
}

async fn decided(check: Check) -> Decisions {
    match check {
        Check::Ready(decisions) => decisions,
        Check::Pending(decisions) => decisions.await,
    }
}

fn remaining(decisions: &Decisions) -> u32 {
    decisions.iter().map(Decision::remaining).min().unwrap_or_default()
}

/// The wait until every denied quota admits again.
fn wait(decisions: &Decisions) -> Duration {
    let denied = decisions.iter().filter(|decision| !decision.is_admitted());
    denied.map(Decision::next_unit_in).max().unwrap_or_default()
}
