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
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const RETENTION: Duration = Duration::from_nanos(cell::RETENTION);

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

    limiter.sweep(START + MINUTE + RETENTION - Duration::from_nanos(1));
    assert!(!limiter.is_empty(), "full for less than ten minutes");
    limiter.sweep(START + MINUTE + RETENTION);
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

/// Sweeps, and returns how many states the only cell has.
fn swept(limiter: &LocalRateLimiter, now: Duration) -> usize {
    limiter.sweep(now);
    let cells = |shard| lock(shard).cells.values().map(|cell| cell.lock().states()).sum::<usize>();
    limiter.shards.iter().map(cells).sum()
}

#[test]
fn the_state_of_an_earlier_quota_is_kept_until_it_was_unused_for_ten_minutes() {
    let limiter = LocalRateLimiter::new();
    let old = Quota::per_minute(10).unwrap();
    assert!(take(&bucket_of(&limiter, 1, &old, START), START).is_admitted());
    let _new = bucket_of(&limiter, 1, &Quota::per_minute(20).unwrap(), START);
    let nano = Duration::from_nanos(1);
    assert_eq!(swept(&limiter, START + RETENTION - nano), 2);

    // Used again, and unused again.
    let again = START + RETENTION - nano;
    let held = bucket_of(&limiter, 1, &old, again);
    assert_eq!(swept(&limiter, again + RETENTION), 2);
    drop(held);
    let unused = again + RETENTION * 2;
    assert_eq!(swept(&limiter, unused), 2);
    assert_eq!(swept(&limiter, unused + RETENTION - nano), 2);
    assert_eq!(swept(&limiter, unused + RETENTION), 1);
}

#[test]
fn the_state_of_an_earlier_quota_is_kept_until_it_is_full() {
    let limiter = LocalRateLimiter::new();
    let (slow, fast) = (Quota::per_hour(1).unwrap(), Quota::per_minute(20).unwrap());
    assert!(take(&bucket_of(&limiter, 1, &slow, START), START).is_admitted());
    let _fast = bucket_of(&limiter, 1, &fast, START);
    assert_eq!(swept(&limiter, START), 2);
    assert_eq!(swept(&limiter, START + HOUR - Duration::from_nanos(1)), 2);
    assert_eq!(swept(&limiter, START + HOUR), 1);
}

/// Full soon, but with so small a burst that it matters for long.
#[test]
fn the_state_of_an_earlier_quota_is_kept_while_it_is_in_force_beside_a_later_one() {
    let limiter = LocalRateLimiter::new();
    let fast = Quota::per_hour(100).unwrap().burst(1).unwrap();
    assert!(take(&bucket_of(&limiter, 1, &fast, START), START).is_admitted());
    let slow = bucket_of(&limiter, 1, &Quota::per(50, 24 * HOUR).unwrap(), START);
    assert_eq!(swept(&limiter, START), 2);
    assert_eq!(swept(&limiter, START + 30 * MINUTE), 2);
    let admitted = || take(&slow, START + 30 * MINUTE).is_admitted();
    assert!(admitted() && !admitted());
    // 50 units, at one in 36 seconds instead of one in 1,728.
    assert_eq!(swept(&limiter, START + 32 * MINUTE), 1);
}
