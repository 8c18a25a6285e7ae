//! What single operations of a bucket do.

#![expect(clippy::missing_errors_doc, reason = "each rule fails if it is broken")]

use std::time::Duration;

use super::{BEGIN, Key, MINUTE, NANO, ONE, kinds, units, wait};
use crate::{
    rate_limit::{Decision, Quota, RateLimiter},
    test_util::contract::{
        Violation,
        violation::{equal, expect},
    },
};

/// A new key may use its whole burst at once, and no more.
pub async fn an_unused_bucket_is_full<L: RateLimiter>(limiter: L) -> Result<(), Violation> {
    for quota in kinds()? {
        let key = Key::new(&limiter, std::slice::from_ref(&quota))?;
        let all = quota.burst_size().get();
        let found = key.peek(BEGIN).await.to_vec();
        let why = "an unused bucket must be full, with nothing to wait for";
        equal(&found, &vec![Decision::admit(all, Duration::ZERO)], why)?;
        let why = format!("a full bucket of {quota:?} must admit its burst and then deny");
        equal(&key.drain(BEGIN).await, &u64::from(all), &why)?;
    }
    Ok(())
}

/// `Retry-After` is neither too early nor too late.
pub async fn a_denied_request_is_admitted_after_its_wait<L: RateLimiter>(
    limiter: L,
) -> Result<(), Violation> {
    for quota in kinds()? {
        for wanted in [1, 3] {
            let key = Key::new(&limiter, std::slice::from_ref(&quota))?;
            key.drain(BEGIN).await;
            let denied = wait(&key.take(units(wanted), BEGIN).await);
            expect(!denied.is_zero(), "a denied request must have a wait")?;
            let why = format!(
                "{wanted} units of {quota:?} must be denied until their wait of {denied:?} is over"
            );
            expect(!key.admits(units(wanted), BEGIN + denied - NANO).await, &why)?;
            let why = format!("{wanted} units of {quota:?} must be admitted after {denied:?}");
            expect(key.admits(units(wanted), BEGIN + denied).await, &why)?;
        }
    }
    Ok(())
}

/// A client that retries too early does not wait longer.
pub async fn a_denied_request_takes_nothing<L: RateLimiter>(limiter: L) -> Result<(), Violation> {
    for quota in kinds()? {
        let key = Key::new(&limiter, std::slice::from_ref(&quota))?;
        expect(key.admits(units(2), BEGIN).await, "a full bucket must admit two units")?;
        let before = key.peek(BEGIN).await;
        for _ in 0..5 {
            let denied = key.take(quota.burst_size(), BEGIN).await;
            expect(!denied.is_admitted(), "more units than are left must be denied")?;
        }
        equal(&key.peek(BEGIN).await, &before, "a denied request must take nothing")?;
    }
    Ok(())
}

/// One quota that denies keeps the others full.
pub async fn a_request_takes_from_all_quotas_or_none<L: RateLimiter>(
    limiter: L,
) -> Result<(), Violation> {
    let strict = Quota::per(1, MINUTE)?.named("strict")?;
    let sliding = Quota::sliding(100, MINUTE)?.named("sliding")?;
    let generous = Quota::per(10, MINUTE)?.named("generous")?;
    let key = Key::new(&limiter, &[strict.clone(), sliding.clone(), generous.clone()])?;
    // In the order of the limits, which is that of the decisions.
    let limits = crate::rate_limit::RateLimits::new([strict, sliding, generous])?;
    let names: Vec<_> = limits.iter().map(|quota| quota.name().to_owned()).collect();
    let left = |decisions: &crate::rate_limit::port::Decisions| -> Vec<(String, u32)> {
        names.iter().cloned().zip(decisions.iter().map(Decision::remaining)).collect()
    };
    let expected = |strict, sliding, generous| -> Vec<(String, u32)> {
        let of = |name: &String| match &**name {
            "strict" => strict,
            "sliding" => sliding,
            _ => generous,
        };
        names.iter().map(|name| (name.clone(), of(name))).collect()
    };
    let first = key.take(ONE, BEGIN).await;
    let why = "an admitted request must take from every quota, and decisions come in the order of the \
        quotas";
    expect(first.is_admitted(), "full buckets must admit a unit")?;
    equal(&left(&first), &expected(0, 99, 9), why)?;
    let second = key.take(ONE, BEGIN).await;
    expect(!second.is_admitted(), "one quota that denies must deny the request")?;
    let why = "a request that one quota denies must take from none";
    equal(&left(&key.peek(BEGIN).await), &expected(0, 99, 9), why)
}

/// Clients may read what is left without spending it.
pub async fn a_peek_takes_nothing<L: RateLimiter>(limiter: L) -> Result<(), Violation> {
    for quota in kinds()? {
        let key = Key::new(&limiter, std::slice::from_ref(&quota))?;
        expect(key.admits(ONE, BEGIN).await, "a full bucket must admit a unit")?;
        let first = key.peek(BEGIN).await;
        for _ in 0..20 {
            equal(&key.peek(BEGIN).await, &first, "`peek` must take nothing")?;
        }
        let rest = u64::from(quota.burst_size().get()) - 1;
        equal(&key.drain(BEGIN).await, &rest, "`peek` must take nothing")?;
        let empty = key.peek(BEGIN).await;
        expect(!empty.is_admitted(), "`peek` must deny if no unit is left")?;
    }
    Ok(())
}

/// There is no wait after which such a request would fit.
pub async fn more_units_than_fit_are_never_admitted<L: RateLimiter>(
    limiter: L,
) -> Result<(), Violation> {
    for quota in kinds()? {
        let key = Key::new(&limiter, std::slice::from_ref(&quota))?;
        let Some(more) = quota.burst_size().checked_add(1) else { continue };
        let denied = key.take(more, BEGIN).await;
        let why = format!("more units than {quota:?} holds must be denied, with the longest wait");
        equal(&wait(&denied), &Duration::MAX, &why)?;
        let all = quota.burst_size();
        expect(key.admits(all, BEGIN).await, "a denied request must take nothing")?;
    }
    Ok(())
}

/// Work that is done is counted, also beyond the quota.
pub async fn a_charge_becomes_debt<L: RateLimiter>(limiter: L) -> Result<(), Violation> {
    let quota = Quota::per(10, MINUTE)?;
    let key = Key::new(&limiter, std::slice::from_ref(&quota))?;
    key.buckets.charge(units(4), BEGIN);
    key.settles_at(6, BEGIN, "a charge must take its units").await?;
    key.buckets.charge(units(9), BEGIN);
    key.settles_at(0, BEGIN, "a charge must take its units even if there are fewer").await?;
    let owed = quota.interval() * 4;
    let why = "three units of debt must be paid off before a unit is admitted";
    expect(!key.admits(ONE, BEGIN + owed - NANO).await, why)?;
    expect(key.admits(ONE, BEGIN + owed).await, "after the debt is paid, a unit must be admitted")
}

/// No single charge shuts a key out for longer than it takes to refill the bucket.
pub async fn debt_is_capped<L: RateLimiter>(limiter: L) -> Result<(), Violation> {
    for quota in kinds()? {
        let key = Key::new(&limiter, std::slice::from_ref(&quota))?;
        key.buckets.charge(std::num::NonZeroU32::MAX, BEGIN);
        key.settles_at(0, BEGIN, "a charge must take its units").await?;
        // A sliding window forgets a debt as it forgets units.
        let longest = 2 * (quota.refill_time().max(quota.window()) + quota.interval());
        let why = format!("after a huge charge, {quota:?} must admit again within {longest:?}");
        expect(key.admits(ONE, BEGIN + longest).await, &why)?;
    }
    Ok(())
}

/// A request that costs nothing after all leaves no trace.
pub async fn a_refund_undoes_a_take<L: RateLimiter>(limiter: L) -> Result<(), Violation> {
    for quota in kinds()? {
        let key = Key::new(&limiter, std::slice::from_ref(&quota))?;
        let all = quota.burst_size().get();
        expect(key.admits(units(2), BEGIN).await, "a full bucket must admit two units")?;
        key.buckets.give_back(units(2), BEGIN);
        key.settles_at(all, BEGIN, "a refund must undo the take").await?;
        let why = "after the refund, the bucket must hold its burst and no more";
        equal(&key.drain(BEGIN).await, &u64::from(all), why)?;
    }
    Ok(())
}

/// Refunds save nothing up.
pub async fn a_refund_fills_at_most_the_bucket<L: RateLimiter>(
    limiter: L,
) -> Result<(), Violation> {
    for quota in kinds()? {
        let key = Key::new(&limiter, std::slice::from_ref(&quota))?;
        let all = quota.burst_size().get();
        expect(key.admits(ONE, BEGIN).await, "a full bucket must admit a unit")?;
        key.buckets.give_back(units(100), BEGIN);
        key.settles_at(all, BEGIN, "a refund must fill the bucket at most").await?;
        let why = "a refund of more than was taken must not admit more than the burst";
        equal(&key.drain(BEGIN).await, &u64::from(all), why)?;
    }
    Ok(())
}
