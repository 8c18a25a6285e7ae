use std::num::NonZeroU32;

use super::*;
use crate::rate_limit::{Decision, Quota};

fn take(bucket: &BucketSet, now: Duration) -> Decision {
    bucket.take_all(NonZeroU32::MIN, nanos(now))[0]
}

fn bucket_of(limiter: &LocalRateLimiter, key: u128, quota: &Quota, now: Duration) -> BucketSet {
    limiter.set(&Subject::of_key("acme", key), &quota.clone().into(), now)
}

const START: Duration = Duration::from_secs(1000);

#[test]
fn the_burst_passes_then_one_per_interval() {
    let limiter = LocalRateLimiter::new();
    let quota = Quota::per_minute(10).unwrap().burst(3).unwrap();
    let bucket = bucket_of(&limiter, 1, &quota, START);
    for remaining in [2, 1, 0] {
        let decision = take(&bucket, START);
        assert!(decision.is_admitted());
        assert_eq!(decision.remaining(), remaining);
        assert_eq!(decision.next_unit_in(), Duration::from_secs(6));
    }
    let denied = take(&bucket, START + Duration::from_secs(1));
    assert_eq!(denied, Decision::deny(Duration::from_secs(5)));
    assert!(take(&bucket, START + Duration::from_secs(6)).is_admitted());
}

#[test]
fn a_changed_quota_applies_at_once_and_does_not_refill() {
    let limiter = LocalRateLimiter::new();
    let small = Quota::per_minute(5).unwrap();
    let bucket = bucket_of(&limiter, 1, &small, START);
    while take(&bucket, START).is_admitted() {}

    let large = Quota::per_minute(600).unwrap();
    let bucket = bucket_of(&limiter, 1, &large, START);
    assert_eq!(take(&bucket, START).remaining(), 594, "the five that were taken count");
}

#[test]
fn a_bucket_whose_state_is_in_use_under_another_quota_is_never_swept() {
    let limiter = LocalRateLimiter::new();
    let (old, new) = (Quota::per_minute(10).unwrap(), Quota::per_minute(20).unwrap());
    let held = bucket_of(&limiter, 1, &old, START);
    drop(bucket_of(&limiter, 1, &new, START));
    limiter.sweep(START);
    let again = bucket_of(&limiter, 1, &new, START);
    let mut admitted = 0;
    for bucket in [again, held] {
        while take(&bucket, START).is_admitted() {
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
    let mut admitted = 0;
    for quota in quotas.iter().cycle().take(20) {
        let bucket = bucket_of(&limiter, 1, quota, START);
        while take(&bucket, START).is_admitted() {
            admitted += 1;
        }
    }
    assert_eq!(admitted, 100);
}

#[test]
fn a_bucket_outlives_its_users_until_it_is_full_again() {
    let limiter = LocalRateLimiter::new();
    let quota = Quota::per_minute(1).unwrap();
    let first = take(&bucket_of(&limiter, 1, &quota, START), START);
    assert!(first.is_admitted());
    limiter.sweep(START + Duration::from_secs(59));
    let again = take(&bucket_of(&limiter, 1, &quota, START), START);
    assert!(!again.is_admitted(), "asking for the bucket again refilled it");

    limiter.sweep(
        START + Duration::from_secs(60) + Duration::from_nanos(cell::RETENTION)
            - Duration::from_nanos(1),
    );
    assert!(!limiter.is_empty(), "full for less than ten minutes");
    limiter.sweep(START + Duration::from_secs(60) + Duration::from_nanos(cell::RETENTION));
    assert!(limiter.is_empty());
}

#[test]
fn a_bucket_in_use_is_never_swept() {
    let limiter = LocalRateLimiter::new();
    let quota = Quota::per_minute(1).unwrap();
    let held = bucket_of(&limiter, 1, &quota, START);
    limiter.sweep(START);
    assert!(take(&held, START).is_admitted());
    assert!(!take(&bucket_of(&limiter, 1, &quota, START), START).is_admitted());
}

#[test]
fn idle_buckets_do_not_pile_up() {
    let limiter = LocalRateLimiter::new();
    let quota = Quota::per_second(1).unwrap();
    let mut now = START;
    for id in 0..100_000 {
        now += Duration::from_millis(600);
        assert!(take(&bucket_of(&limiter, id, &quota, now), now).is_admitted());
    }
    assert!(limiter.len() < 2 * (1000 + SHARDS * SWEEP_FROM), "{}", limiter.len());
}
