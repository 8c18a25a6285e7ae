//! Changes of quotas, names, owners and plans of a key let no more through than the most generous
//! of them allows.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use tower_api_key::{
    Authenticator,
    auth::Attempt,
    manage::{Expiry, Issued, NewKey},
    rate_limit::{
        LocalRateLimiter, Plans, Quota, RateLimiter, RateLimits,
        port::{Buckets, Check, Subject},
    },
};

use crate::app::{Keys, SECOND, text};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
const ONE: NonZeroU32 = NonZeroU32::MIN;

fn admits(buckets: &dyn Buckets, now: Duration) -> bool {
    let Check::Ready(decisions) = buckets.take(ONE, now) else { panic!("it decides at once") };
    decisions.is_admitted()
}

fn drain(buckets: &dyn Buckets, now: Duration) -> u64 {
    (0..).take_while(|_| admits(buckets, now)).count() as u64
}

fn buckets(
    limiter: &LocalRateLimiter,
    key: u128,
    limits: impl Into<RateLimits>,
    now: Duration,
) -> Arc<dyn Buckets> {
    limiter.buckets(&Subject::of_key("acme", key), &limits.into(), now)
}

/// One key sends 40 requests a minute, the other one; both are reloaded each minute, as by a cache.
#[test]
fn two_keys_that_disagree_about_a_shared_quota_do_not_refill_each_other() {
    let limiter = LocalRateLimiter::new();
    let day = Quota::per(1_000, DAY).unwrap().named("day").unwrap().per_consumer();
    let brief = day.clone().burst(10).unwrap();
    let (mut now, mut admitted) = (Duration::ZERO, 0_u64);
    for minute in 0..1_440 {
        let wide = buckets(&limiter, 1, day.clone(), MINUTE * minute);
        for turn in 0..40 {
            now = MINUTE * minute + SECOND * turn;
            admitted += u64::from(admits(&*wide, now));
        }
        let narrow = buckets(&limiter, 2, brief.clone(), now);
        admitted += u64::from(admits(&*narrow, now));
    }
    assert!(admitted <= 2_000, "{admitted}");
    assert!(admitted >= 1_900, "{admitted}");
}

#[test]
fn siblings_with_windows_of_slightly_different_length_share_one_budget() {
    let limiter = LocalRateLimiter::new();
    let keys: Vec<_> = (0..19_u32)
        .map(|at| {
            let window = HOUR + Duration::from_millis(64) * at;
            let quota = Quota::sliding(100, window).unwrap().per_consumer();
            buckets(&limiter, at.into(), quota, Duration::ZERO)
        })
        .collect();
    let mut admitted = 0;
    for second in 0..3_600 {
        admitted += keys.iter().filter(|key| admits(&***key, SECOND * second)).count();
    }
    assert_eq!(admitted, 100);
}

#[test]
fn windows_of_24_and_25_hours_share_one_budget() {
    let limiter = LocalRateLimiter::new();
    let window = |hours| Quota::sliding(1_000, HOUR * hours).unwrap().per_consumer();
    let keys = [
        buckets(&limiter, 1, window(24), Duration::ZERO),
        buckets(&limiter, 2, window(25), Duration::ZERO),
    ];
    let mut admitted = 0;
    for minute in 0..1_440 {
        for key in &keys {
            admitted += u64::from(admits(&**key, MINUTE * minute));
        }
    }
    assert_eq!(admitted, 1_000);
    // It comes back.
    assert!(admits(&*keys[0], DAY * 4));
    assert!(admits(&*keys[1], DAY * 8));
}

#[test]
fn a_window_that_grows_and_shrinks_is_not_refilled() {
    let limiter = LocalRateLimiter::new();
    let mut admitted = 0;
    for turn in 0..50 {
        let quota = Quota::sliding(10, HOUR + MINUTE * (turn % 7)).unwrap();
        admitted += drain(&*buckets(&limiter, 1, quota, SECOND), SECOND);
    }
    assert_eq!(admitted, 10);
}

/// What has just left a window is still inside a longer one, all of it at once.
#[test]
fn a_window_that_grows_counts_what_has_just_left_the_shorter_one() {
    let sliding = |limit, millis| Quota::sliding(limit, Duration::from_millis(millis)).unwrap();
    for (short, long, rounds) in [
        (sliding(6, 100), sliding(29, 120), 1),
        (sliding(6, 100), sliding(18, 240), 2),
        (sliding(1, 100), sliding(10, 900), 8),
    ] {
        let limiter = LocalRateLimiter::new();
        let before = buckets(&limiter, 1, short.clone(), SECOND);
        let (mut now, mut admitted) = (SECOND, 0);
        for _ in 0..rounds {
            admitted += drain(&*before, now);
            // Until the shorter window has just become empty.
            while remaining(&*before, now) < short.limit() {
                now += Duration::from_micros(100);
            }
        }
        assert!(now <= SECOND + long.window(), "{short:?} takes longer than {long:?}");
        admitted += drain(&*buckets(&limiter, 1, long.clone(), now), now);
        assert!(admitted <= long.limit().into(), "{admitted} of {long:?}");
    }
}

/// Windows of the same length have the same slots, whatever their limits.
#[test]
fn a_limit_that_grows_and_shrinks_within_its_window_counts_the_same_units() {
    let limiter = LocalRateLimiter::new();
    let of = |limit, now| buckets(&limiter, 1, Quota::sliding(limit, HOUR).unwrap(), now);
    let half = SECOND + HOUR / 2;
    assert_eq!(drain(&*of(10, SECOND), SECOND), 10);
    assert_eq!(drain(&*of(15, half), half), 5);
    assert_eq!(drain(&*of(10, half), half), 0);
    assert_eq!(drain(&*of(12, half), half), 0);
    // The first ten have left the window, the other five have not.
    let later = SECOND + HOUR + HOUR / 8;
    assert_eq!(drain(&*of(12, later), later), 7);
    assert_eq!(drain(&*of(20, later), later), 8);
    // The smaller limit owes what the larger one let through.
    let end = later + HOUR * 3;
    assert_eq!(drain(&*of(10, end), end), 10);
}

/// A list admits no more than each of its quotas, so neither does what follows it.
#[test]
fn a_window_that_copies_a_larger_one_counts_what_the_rest_of_its_list_remembers() {
    let sliding = |limit, millis| Quota::sliding(limit, Duration::from_millis(millis)).unwrap();
    let list = || {
        let named = |quota: Quota, name: &str| quota.named(name).unwrap();
        RateLimits::new([named(sliding(2, 200), "long"), named(sliding(2, 100), "short")]).unwrap()
    };
    for joined_after in [0, 50, 99, 150] {
        let limiter = LocalRateLimiter::new();
        let before = buckets(&limiter, 1, list(), SECOND);
        assert_eq!(drain(&*before, SECOND), 2);
        let joined = SECOND + Duration::from_millis(joined_after);
        let after = buckets(&limiter, 1, sliding(1, 100), joined);
        for millis in (joined_after..200).step_by(7) {
            let now = SECOND + Duration::from_millis(millis);
            assert!(!admits(&*after, now), "joined after {joined_after}, asked after {millis} ms");
        }
        assert!(admits(&*after, joined + Duration::from_millis(210)));
    }
}

/// Those of the faster quota, which the slower one owes.
#[test]
fn what_a_larger_window_of_the_same_length_let_through_is_owed_by_a_smaller_one() {
    let limiter = LocalRateLimiter::new();
    let of = |limit, now| buckets(&limiter, 1, Quota::sliding(limit, HOUR).unwrap(), now);
    let (small, large) = (of(10, SECOND), of(30, SECOND));
    assert_eq!(drain(&*small, SECOND), 10);
    assert_eq!(drain(&*large, SECOND), 20);
    // As if the thirty had been taken at the pace of ten an hour.
    let at = |eighths| SECOND + HOUR * eighths / 8;
    for hour in [9, 17] {
        assert_eq!(drain(&*small, at(hour)), 0, "after {hour} eighths of an hour");
    }
    assert_eq!(drain(&*of(5, at(9)), at(9)), 0);
    assert_eq!(drain(&*small, at(26)), 10);
}

#[test]
fn what_is_charged_or_given_back_counts_for_every_quota_of_the_key() {
    let gcra = |limit| Quota::per(limit, HOUR).unwrap();
    let sliding = |limit, hours| Quota::sliding(limit, HOUR * hours).unwrap();
    for [small, large] in [
        [gcra(10), gcra(20)],
        [sliding(10, 1), sliding(20, 1)],
        [sliding(10, 2), sliding(20, 1)],
        [sliding(10, 1), gcra(20)],
        [gcra(10), sliding(20, 1)],
    ] {
        let limiter = LocalRateLimiter::new();
        let keys = [&small, &large].map(|quota| buckets(&limiter, 1, quota.clone(), SECOND));
        let left = || [&keys[0], &keys[1]].map(|key| remaining(&**key, SECOND));
        let units = |units| NonZeroU32::new(units).unwrap();
        assert_eq!(left(), [10, 20], "{small:?} and {large:?}");
        keys[0].charge(units(4), SECOND);
        assert_eq!(left(), [6, 16], "{small:?} and {large:?}");
        keys[1].charge(units(3), SECOND);
        assert_eq!(left(), [3, 13], "{small:?} and {large:?}");
        assert!(admits(&*keys[0], SECOND) && admits(&*keys[1], SECOND));
        assert_eq!(left(), [1, 11], "{small:?} and {large:?}");
        keys[0].give_back(ONE, SECOND);
        assert_eq!(left(), [2, 12], "{small:?} and {large:?}");
        keys[1].give_back(ONE, SECOND);
        assert_eq!(left(), [3, 13], "{small:?} and {large:?}");
    }
}

fn remaining(buckets: &dyn Buckets, now: Duration) -> u32 {
    let Check::Ready(decisions) = buckets.peek(now) else { panic!("it decides at once") };
    decisions.iter().map(|decision| decision.remaining()).min().unwrap_or(u32::MAX)
}

#[test]
fn no_algorithm_refills_what_another_has_counted() {
    let limiter = LocalRateLimiter::new();
    let quotas = [
        Quota::per(10, HOUR).unwrap(),
        Quota::sliding(10, HOUR).unwrap(),
        Quota::at_most(10, HOUR).unwrap(),
        Quota::per(10, HOUR).unwrap().burst(3).unwrap(),
    ];
    let mut admitted = 0;
    for quota in quotas.iter().cycle().take(40) {
        admitted += drain(&*buckets(&limiter, 1, quota.clone(), SECOND), SECOND);
    }
    assert_eq!(admitted, 10);
}

#[test]
fn a_key_that_is_counted_by_itself_and_with_its_consumer_in_turn_gains_nothing() {
    let own = Quota::per(10, HOUR).unwrap();
    for [first, second] in
        [[own.clone(), own.clone().per_consumer()], [own.clone().per_consumer(), own]]
    {
        let limiter = LocalRateLimiter::new();
        // Another key keeps the consumer's bucket alive.
        let sibling = Quota::per(10, HOUR).unwrap().per_consumer();
        let _sibling = buckets(&limiter, 2, sibling, SECOND);
        let mut admitted = 0;
        for quota in [first, second].iter().cycle().take(40) {
            admitted += drain(&*buckets(&limiter, 1, quota.clone(), SECOND), SECOND);
        }
        assert_eq!(admitted, 10);
    }
}

#[test]
fn a_new_key_does_not_pay_for_what_its_siblings_took() {
    let limiter = LocalRateLimiter::new();
    let limits = || {
        let day = Quota::per(50_000, DAY).unwrap().named("day").unwrap().per_consumer();
        RateLimits::new([Quota::per_second(20).unwrap(), day]).unwrap()
    };
    let busy = buckets(&limiter, 1, limits(), Duration::ZERO);
    for second in 0..2_000 {
        assert_eq!(drain(&*busy, SECOND * second), 20);
    }
    assert_eq!(drain(&*buckets(&limiter, 2, limits(), SECOND * 2_000), SECOND * 2_000), 20);
}

#[test]
fn names_are_labels_and_quotas_per_consumer_count_the_same_requests() {
    let limiter = LocalRateLimiter::new();
    let named =
        |name: &'static str| Quota::per_hour(10).unwrap().named(name).unwrap().per_consumer();
    let first = buckets(&limiter, 1, named("a"), SECOND);
    let second = buckets(&limiter, 2, named("b"), SECOND);
    assert_eq!(drain(&*first, SECOND) + drain(&*second, SECOND), 10);
}

/// Neither line ever gets ahead of the other, so a guard would stay for ever.
#[test]
fn a_quota_that_follows_one_of_the_same_rate_gives_its_whole_limit_within_three_windows() {
    let bucket = Quota::per(10, SECOND).unwrap();
    for (before, after) in [
        (bucket.clone(), Quota::sliding(600, MINUTE).unwrap()),
        (bucket.clone(), Quota::per(600, MINUTE).unwrap()),
        (bucket, Quota::at_most(600, MINUTE).unwrap()),
        (Quota::sliding(10, SECOND).unwrap(), Quota::sliding(600, MINUTE).unwrap()),
        (Quota::sliding(10, SECOND).unwrap(), Quota::per(600, MINUTE).unwrap()),
    ] {
        let limiter = LocalRateLimiter::new();
        let old = buckets(&limiter, 1, before.clone(), SECOND);
        for second in 1..=40 {
            assert_eq!(drain(&*old, SECOND * second * 2), 10);
        }
        let new = buckets(&limiter, 1, after.clone(), SECOND * 80);
        let size = u64::from(after.burst_size().get());
        assert_eq!(drain(&*new, SECOND * 80 + MINUTE * 3), size, "{after:?} after {before:?}");
    }
}

#[test]
fn a_slow_quota_starts_full_after_a_fast_one_which_stays_for_a_while() {
    let limiter = LocalRateLimiter::new();
    let fast = buckets(&limiter, 1, Quota::per_second(100).unwrap(), SECOND);
    assert_eq!(drain(&*fast, SECOND), 100);
    let slow = buckets(&limiter, 1, Quota::per(50_000, DAY).unwrap(), SECOND);
    assert_eq!(drain(&*slow, SECOND), 0);
    assert_eq!(drain(&*slow, SECOND * 2), 100);
    // By then as much has passed as the fast quota would have let through.
    let later = SECOND * 900;
    assert!(drain(&*slow, later) > 40_000);
}

#[test]
fn a_slow_quota_comes_back_soon_after_a_fast_one_was_used_for_long() {
    let limiter = LocalRateLimiter::new();
    let slow = buckets(&limiter, 1, Quota::per_hour(10).unwrap(), Duration::ZERO);
    assert!(admits(&*slow, Duration::ZERO));
    let fast = buckets(&limiter, 1, Quota::per_second(10).unwrap(), Duration::ZERO);
    for second in 1..3_600 {
        assert_eq!(drain(&*fast, SECOND * second), 10);
    }
    assert!(!admits(&*slow, HOUR));
    assert!(admits(&*slow, HOUR + MINUTE * 6));
}

#[test]
fn what_one_gives_back_another_has_not_lost() {
    let limiter = LocalRateLimiter::new();
    let slow = buckets(&limiter, 1, Quota::per_hour(10).unwrap(), SECOND);
    assert_eq!(drain(&*slow, SECOND), 10);
    let fast = buckets(&limiter, 1, Quota::per_second(100).unwrap(), SECOND);
    for _ in 0..50 {
        assert!(admits(&*fast, SECOND));
        fast.give_back(ONE, SECOND);
    }
    assert_eq!(drain(&*slow, SECOND), 0);
}

#[test]
fn a_key_whose_quotas_change_all_the_time_takes_no_more_memory_or_requests() {
    let limiter = LocalRateLimiter::new();
    let mut admitted = 0;
    for turn in 0..1_000 {
        let quota = Quota::per(1_000_000 - turn, DAY * 30).unwrap().burst(10).unwrap();
        admitted += drain(&*buckets(&limiter, 1, quota, SECOND), SECOND);
    }
    assert_eq!(admitted, 10);
    assert_eq!(limiter.len(), 1);
    assert!(admits(&*buckets(&limiter, 1, Quota::per_minute(5).unwrap(), DAY * 300), DAY * 300));
}

async fn drained(auth: &Authenticator, key: &str) -> usize {
    auth.check(key.as_bytes()).await.ok().map_or(0, |_| {
        let is_admitted = || matches!(auth.check(key.as_bytes()).try_now(), Attempt::Admit(_));
        1 + std::iter::repeat_with(is_admitted).take_while(|admitted| *admitted).count()
    })
}

async fn change(keys: &Keys, auth: &Authenticator, issued: &Issued, quota: Quota) {
    keys.change(issued, |record| record.rate_limits = Some(quota.into())).await;
    auth.invalidate(&issued.record.key_hash);
}

#[tokio::test]
async fn a_key_that_renames_its_quota_again_and_again_has_one_bucket() {
    let keys = Keys::new();
    let auth = keys.auth();
    let quota = Quota::per_hour(10).unwrap();
    let issued = keys.issue(NewKey::new("acme", Expiry::Never).rate_limits(quota.clone())).await;
    let key = text(&issued);
    let mut admitted = drained(&auth, &key).await;
    for turn in 0..45 {
        change(&keys, &auth, &issued, quota.clone().named(format!("n{turn}")).unwrap()).await;
        admitted += drained(&auth, &key).await;
    }
    assert_eq!(admitted, 10);
}

#[tokio::test]
async fn siblings_whose_shared_quota_is_changed_in_turn_have_one_bucket() {
    let keys = Keys::new();
    let auth = keys.auth();
    let quota = Quota::per_hour(100).unwrap().per_consumer();
    let new = || NewKey::new("acme", Expiry::Never).rate_limits(quota.clone());
    let siblings = [keys.issue(new()).await, keys.issue(new()).await];
    let mut admitted = 0;
    for turn in 0..20 {
        let issued = &siblings[turn % 2];
        let burst = [100, 10, 50][turn % 3];
        change(&keys, &auth, issued, quota.clone().burst(burst).unwrap()).await;
        for sibling in &siblings {
            admitted += drained(&auth, &text(sibling)).await;
        }
    }
    assert_eq!(admitted, 100);
}

#[tokio::test]
async fn another_plan_carries_the_use_over_whatever_its_quotas_are_called() {
    let keys = Keys::new();
    let named = |limit, name: &'static str| Quota::per_hour(limit).unwrap().named(name).unwrap();
    let plans = Plans::new().plan("free", named(10, "free")).unwrap();
    let plans = plans.plan("pro", named(1_000, "pro")).unwrap();
    let (auth, _) = keys.builder().plans(plans).build();
    let issued = keys.issue(NewKey::new("acme", Expiry::Never).plan("free")).await;
    let key = text(&issued);
    let mut admitted = drained(&auth, &key).await;
    assert_eq!(admitted, 10);
    for plan in ["pro", "free", "pro", "free", "pro"] {
        keys.change(&issued, |record| record.plan = Some(plan.into())).await;
        auth.invalidate(&issued.record.key_hash);
        admitted += drained(&auth, &key).await;
    }
    assert_eq!(admitted, 1_000);
}
