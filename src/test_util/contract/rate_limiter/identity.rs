//! Whose bucket it is, and what it survives.

#![expect(clippy::missing_errors_doc, reason = "each rule fails if it is broken")]

use super::{BEGIN, Key, MINUTE, ONE, decided, kinds, units};
use crate::{
    rate_limit::{Quota, RateLimiter},
    test_util::contract::{
        Violation,
        violation::{equal, expect},
    },
};

/// A key that is loaded again is not a new key.
pub async fn a_bucket_belongs_to_its_subject<L: RateLimiter>(limiter: L) -> Result<(), Violation> {
    for quota in kinds()? {
        let quotas = [quota.clone()];
        let key = Key::new(&limiter, &quotas)?;
        key.drain(BEGIN).await;
        let again = key.ask(&key.subject(1), &quotas)?;
        let why = "buckets of the same subject must be the same bucket";
        expect(!decided(again.take(ONE, BEGIN)).await.is_admitted(), why)?;
        let other = key.ask(&key.subject(2), &quotas)?;
        let why = "another key of the consumer must have a bucket of its own";
        expect(decided(other.take(ONE, BEGIN)).await.is_admitted(), why)?;
    }
    Ok(())
}

/// The cache may evict a key, and a sweep may follow.
pub async fn a_bucket_outlives_what_was_returned<L: RateLimiter>(
    limiter: L,
) -> Result<(), Violation> {
    for quota in kinds()? {
        let quotas = [quota.clone()];
        let mut key = Key::new(&limiter, &quotas)?;
        key.drain(BEGIN).await;
        // Nothing holds the bucket while it is swept.
        key.buckets = key.ask(&key.subject(2), &quotas)?;
        limiter.sweep(BEGIN);
        key.buckets = key.ask(&key.subject(1), &quotas)?;
        let why = "a bucket that is not full must survive a sweep while nothing uses it";
        expect(!key.admits(ONE, BEGIN).await, why)?;
    }
    Ok(())
}

/// A plan that changes refills nothing.
pub async fn a_changed_quota_keeps_what_was_taken<L: RateLimiter>(
    limiter: L,
) -> Result<(), Violation> {
    let small = Quota::per(10, MINUTE)?;
    for changed in [
        small.clone().named("renamed")?,
        Quota::per(10, MINUTE)?.burst(5)?,
        Quota::sliding(10, MINUTE)?,
        Quota::at_most(10, MINUTE)?,
    ] {
        let mut key = Key::new(&limiter, std::slice::from_ref(&small))?;
        equal(&key.drain(BEGIN).await, &10, "a full bucket must admit its burst")?;
        key.buckets = key.ask(&key.subject(1), std::slice::from_ref(&changed))?;
        let why = format!(
            "a bucket that was used up must stay used up when its quota becomes {changed:?}"
        );
        expect(!key.admits(ONE, BEGIN).await, &why)?;
        key.buckets = key.ask(&key.subject(1), std::slice::from_ref(&small))?;
        expect(!key.admits(ONE, BEGIN).await, "and when the earlier quota comes back")?;
    }
    Ok(())
}

/// A second key does not double what a customer may do.
pub async fn keys_of_a_consumer_share_its_quotas<L: RateLimiter>(
    limiter: L,
) -> Result<(), Violation> {
    for quota in kinds()? {
        let quotas = [quota.clone().per_consumer()];
        let key = Key::new(&limiter, &quotas)?;
        let second = key.ask(&key.subject(2), &quotas)?;
        expect(decided(second.take(units(2), BEGIN)).await.is_admitted(), "a full bucket admits")?;
        let rest = u64::from(quota.burst_size().get()) - 2;
        let why = "quotas per consumer must count the requests of all its keys together";
        equal(&key.drain(BEGIN).await, &rest, why)?;
        let other = Key::new(&limiter, &quotas)?;
        let all = u64::from(quota.burst_size().get());
        equal(&other.drain(BEGIN).await, &all, "another consumer must have its own")?;
    }
    Ok(())
}

/// Searches do not use up what is for orders.
pub async fn classes_are_counted_by_themselves<L: RateLimiter>(
    limiter: L,
) -> Result<(), Violation> {
    for quota in kinds()? {
        let quotas = [quota.clone()];
        let key = Key::new(&limiter, &quotas)?;
        key.drain(BEGIN).await;
        for class in ["search", "export"] {
            let buckets = key.ask(&key.subject(1).in_class(class), &quotas)?;
            let why = "each class of routes must have a bucket of its own";
            expect(decided(buckets.take(ONE, BEGIN)).await.is_admitted(), why)?;
            let again = key.ask(&key.subject(1).in_class(class), &quotas)?;
            let left = decided(again.peek(BEGIN)).await.iter().map(|it| it.remaining()).min();
            let why = "the bucket of a class must be the same when it is asked for again";
            equal(&left, &Some(quota.burst_size().get() - 1), why)?;
        }
    }
    Ok(())
}
