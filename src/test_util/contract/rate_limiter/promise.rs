//! What a quota promises over time, to the service and to the client.

#![expect(clippy::missing_errors_doc, reason = "each rule fails if it is broken")]

use std::time::Duration;

use super::{BEGIN, Key, NANO, ONE, decided, kinds, units, wait};
use crate::{
    rate_limit::{Quota, RateLimiter},
    test_util::contract::{
        Violation,
        violation::{equal, expect},
    },
};

/// Pseudo-random numbers, the same in every run: xorshift.
struct Numbers(u64);

impl Numbers {
    /// Less than `end`.
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end.max(1)
    }
}

/// In any window, no more is admitted than [`most_in`](Quota::most_in) says, whatever clients do.
pub async fn no_window_admits_more_than_promised<L: RateLimiter>(
    limiter: L,
) -> Result<(), Violation> {
    for (number, quota) in (1..).zip(kinds()?) {
        for seed in 1..=5 {
            let key = Key::new(&limiter, std::slice::from_ref(&quota))?;
            let mut numbers = Numbers(number * 1_000 + seed);
            let (mut now, mut told) = (BEGIN, Duration::ZERO);
            let mut admitted = Vec::new();
            for _ in 0..60 {
                now += match numbers.below(4) {
                    0 => Duration::ZERO,
                    1 => told,
                    2 => quota.window().mul_f64(numbers.below(1_200) as f64 / 1_000.0),
                    _ => quota.interval().mul_f64(numbers.below(3_000) as f64 / 1_000.0),
                };
                let wanted = if numbers.below(2) == 0 { 1 } else { numbers.below(5) + 1 };
                let wanted = u32::try_from(wanted).unwrap_or(1);
                let decisions = key.take(units(wanted), now).await;
                told =
                    Some(wait(&decisions)).filter(|told| *told < Duration::MAX).unwrap_or_default();
                if decisions.is_admitted() {
                    admitted.push((now, u64::from(wanted)));
                }
            }
            keeps_its_promise(&quota, &admitted)?;
        }
    }
    Ok(())
}

fn keeps_its_promise(quota: &Quota, admitted: &[(Duration, u64)]) -> Result<(), Violation> {
    for (at, (from, _)) in admitted.iter().enumerate() {
        let mut held = 0;
        for (until, units) in admitted.iter().skip(at) {
            held += units;
            let (window, most) = (*until - *from, quota.most_in(*until - *from));
            let why = format!(
                "{quota:?} must admit at most {most} units in any {window:?}, and admitted {held}"
            );
            expect(held <= most, &why)?;
        }
    }
    Ok(())
}

/// A client that waits as told gets as much as the quota is worth.
pub async fn a_client_that_waits_gets_its_quota<L: RateLimiter>(
    limiter: L,
) -> Result<(), Violation> {
    for quota in kinds()? {
        let key = Key::new(&limiter, std::slice::from_ref(&quota))?;
        let (mut now, mut taken) = (BEGIN, 0_u64);
        let end = BEGIN + 10 * quota.window();
        while now <= end {
            let decisions = key.take(ONE, now).await;
            if decisions.is_admitted() {
                taken += 1;
            } else {
                now += wait(&decisions).max(NANO);
            }
        }
        // A sliding window may return units a slot late.
        let least = u64::from(quota.limit()) * 10 * 9 / 10;
        let least = if quota.most_in(quota.window()) < u64::from(quota.limit()) {
            // `at_most` holds its burst back.
            least * 9 / 10
        } else {
            least
        };
        let why = format!(
            "a client that retries as told must get at least {least} units of {quota:?} in ten \
             windows, and got {taken}"
        );
        expect(taken >= least, &why)?;
    }
    Ok(())
}

/// No unit is given to two requests.
pub async fn concurrent_requests_share_what_is_left<L: RateLimiter>(
    limiter: L,
) -> Result<(), Violation> {
    for quota in kinds()? {
        let key = Key::new(&limiter, std::slice::from_ref(&quota))?;
        let requests: Vec<_> = (0..60)
            .map(|_| {
                let buckets = std::sync::Arc::clone(&key.buckets);
                tokio::spawn(async move { decided(buckets.take(ONE, BEGIN)).await.is_admitted() })
            })
            .collect();
        let mut admitted = 0;
        for request in requests {
            admitted += u32::from(request.await?);
        }
        let why = format!("of 60 concurrent requests, {quota:?} must admit exactly its burst");
        equal(&admitted, &quota.burst_size().get(), &why)?;
    }
    Ok(())
}
