use super::*;

fn take(bucket: &Bucket, now: Duration) -> Decision {
    bucket.take_one(NonZeroU32::MIN, nanos(now)).0
}

fn minute(id: u128) -> BucketId {
    BucketId::of_key("acme", id, "minute")
}

const START: Duration = Duration::from_secs(1000);

#[test]
fn the_burst_passes_then_one_per_interval() {
    let limiter = LocalRateLimiter::new();
    let quota = Quota::per_minute(10).unwrap().burst(3).unwrap();
    let bucket = limiter.bucket(&minute(1), &quota, nanos(START));
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
    let bucket = limiter.bucket(&minute(1), &small, nanos(START));
    while take(&bucket, START).is_admitted() {}

    let large = Quota::per_minute(600).unwrap();
    let bucket = limiter.bucket(&minute(1), &large, nanos(START));
    assert!(!take(&bucket, START).is_admitted(), "an empty bucket stays empty");
    assert!(take(&bucket, START + Duration::from_millis(100)).is_admitted());
    assert!(!take(&bucket, START + Duration::from_millis(199)).is_admitted());
}

#[test]
fn a_bucket_whose_state_is_in_use_under_another_quota_is_never_swept() {
    let limiter = LocalRateLimiter::new();
    let (old, new) = (Quota::per_minute(10).unwrap(), Quota::per_minute(20).unwrap());
    let held = limiter.bucket(&minute(1), &old, nanos(START));
    drop(limiter.bucket(&minute(1), &new, nanos(START)));
    limiter.sweep(START);
    let again = limiter.bucket(&minute(1), &new, nanos(START));
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
    let id = minute(1);
    let bucket = limiter.bucket(&id, &quotas[0], nanos(START));
    while take(&bucket, START).is_admitted() {}
    for quota in quotas.iter().cycle().take(20) {
        let bucket = limiter.bucket(&id, quota, nanos(START));
        assert!(!take(&bucket, START).is_admitted(), "{quota:?}");
        let wait = take(&bucket, START).next_unit_in();
        assert!(wait <= quota.interval() + Duration::from_micros(1), "{wait:?} of {quota:?}");
    }
}

#[test]
fn half_a_bucket_stays_half_a_bucket() {
    let limiter = LocalRateLimiter::new();
    let small = Quota::per_minute(10).unwrap();
    let bucket = limiter.bucket(&minute(1), &small, nanos(START));
    for _ in 0..5 {
        assert!(take(&bucket, START).is_admitted());
    }
    let large = Quota::per(1000, Duration::from_secs(3600)).unwrap();
    let bucket = limiter.bucket(&minute(1), &large, nanos(START));
    assert_eq!(take(&bucket, START).remaining(), 499);
}

#[test]
fn a_bucket_outlives_its_users_until_it_is_full_again() {
    let limiter = LocalRateLimiter::new();
    let quota = Quota::per_minute(1).unwrap();
    let first = take(&limiter.bucket(&minute(1), &quota, nanos(START)), START);
    assert!(first.is_admitted());
    limiter.sweep(START + Duration::from_secs(59));
    let again = take(&limiter.bucket(&minute(1), &quota, nanos(START)), START);
    assert!(!again.is_admitted(), "asking for the bucket again refilled it");

    limiter.sweep(START + Duration::from_secs(60));
    assert!(limiter.is_empty());
}

#[test]
fn a_bucket_in_use_is_never_swept() {
    let limiter = LocalRateLimiter::new();
    let quota = Quota::per_minute(1).unwrap();
    let held = limiter.bucket(&minute(1), &quota, nanos(START));
    limiter.sweep(START);
    assert!(take(&held, START).is_admitted());
    assert!(!take(&limiter.bucket(&minute(1), &quota, nanos(START)), START).is_admitted());
}

#[test]
fn idle_buckets_do_not_pile_up() {
    let limiter = LocalRateLimiter::new();
    let quota = Quota::per_second(1).unwrap();
    let mut now = START;
    for id in 0..100_000 {
        now += Duration::from_millis(1);
        assert!(take(&limiter.bucket(&minute(id), &quota, nanos(now)), now).is_admitted());
    }
    assert!(limiter.len() < 2 * (1000 + SHARDS * SWEEP_FROM), "{}", limiter.len());
}
