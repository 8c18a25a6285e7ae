//! What a quota owes for units that others admitted, and what refunds change about it.

use std::{num::NonZeroU32, time::Duration};

use tower_api_key::rate_limit::Quota;

use crate::{
    app::SECOND,
    changed_lists::{Key, START, admits},
};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const NANO: Duration = Duration::from_nanos(1);

fn sliding(limit: u32) -> Quota {
    Quota::sliding(limit, HOUR).unwrap()
}

/// As if each quota had counted it from the beginning.
#[test]
fn what_others_took_and_gave_back_is_not_owed() {
    for slow in [sliding(10), Quota::per_hour(10).unwrap()] {
        let (key, fast) = (Key::default(), Quota::per_second(100).unwrap());
        drop(key.load(&[&slow], START));
        let fast = key.load(&[&fast], START);
        assert!(admits(&*fast, 10, START));
        fast.give_back(NonZeroU32::new(10).unwrap(), START);
        assert_eq!(key.drain(&[&slow], START), 10, "{slow:?}");
    }
}

#[test]
fn a_window_owes_what_others_took_beyond_its_limit_and_did_not_give_back() {
    for (returned, left) in [(1, 6), (4, 9), (5, 10)] {
        let (key, slow) = (Key::default(), sliding(10));
        drop(key.load(&[&slow], START));
        let fast = key.load(&[&Quota::per_second(100).unwrap()], START);
        assert!(admits(&*fast, 15, START));
        fast.give_back(NonZeroU32::new(returned).unwrap(), START);
        assert_eq!(key.drain(&[&slow], START), 0);
        assert_eq!(key.drain(&[&slow], START + slow.interval()), left, "{returned} returned");
    }
}

/// It owes a whole limit at most, and then it does not know what is refunded.
#[test]
fn a_window_that_did_not_count_everything_gives_nothing_for_the_refunds_of_others() {
    let (key, slow) = (Key::default(), sliding(10));
    assert_eq!(key.drain(&[&slow], START), 10);
    let fast = key.load(&[&Quota::per_second(100).unwrap()], START);
    let three = NonZeroU32::new(3).unwrap();
    for _ in 0..10 {
        assert!(admits(&*fast, 3, START));
    }
    for _ in 0..10 {
        fast.give_back(three, START);
    }
    assert_eq!(key.drain(&[&slow], START), 0);
    assert_eq!(key.drain(&[&slow], START + slow.interval()), 0);
    assert_eq!(key.drain(&[&slow], START + slow.interval() * 2), 10);
}

#[test]
fn a_window_that_owes_its_whole_limit_and_no_more_knows_all_that_is_refunded() {
    let (key, slow) = (Key::default(), sliding(10));
    assert_eq!(key.drain(&[&slow], START), 10);
    let fast = key.load(&[&Quota::per_second(100).unwrap()], START);
    assert!(admits(&*fast, 10, START));
    fast.give_back(NonZeroU32::new(10).unwrap(), START);
    assert_eq!(key.drain(&[&slow], START + slow.interval()), 10);
}

/// A slow quota with a large burst may let through more than a window owes for a fast one.
#[test]
fn what_a_window_owes_for_a_slower_quota_is_not_forgotten_for_a_faster_one() {
    let (key, window) = (Key::default(), sliding(10));
    let burst = Quota::per(100, HOUR * 24).unwrap();
    let slower = key.load(&[&burst], START);
    drop(key.load(&[&window], START));
    assert!(admits(&*slower, 100, START));
    key.take(&[&Quota::per_second(200).unwrap()], 1, START);
    for hour in 1..10 {
        assert_eq!(key.drain(&[&window], START + HOUR * hour), 0, "after {hour} h");
    }
    assert_eq!(key.drain(&[&window], START + window.interval() * 11), 10);
}

/// Taken one in each slot, so that they leave the larger window one by one.
#[test]
fn a_window_that_follows_a_larger_one_lets_nothing_through_until_its_own_pace_would_have() {
    let (key, large, small) = (Key::default(), sliding(12), sliding(2));
    let slot = HOUR / 32;
    for number in 0..12 {
        key.take(&[&large], 1, START + slot * number);
    }
    let now = START + slot * 12;
    assert_eq!(key.drain(&[&small], now), 0);
    // Ten are owed, two an hour.
    for hour in 1..5 {
        assert_eq!(key.drain(&[&small], now + HOUR * hour), 0, "after {hour} h");
    }
    assert_eq!(key.drain(&[&small], now + small.interval() * 6), 2);
}

/// While no other quota is counted, it needs no lock, and would not see what is owed.
#[test]
fn a_list_of_quotas_notices_what_one_of_them_owes_for_another() {
    for (is_used_between, units) in [(false, 1), (true, 1), (false, 20), (true, 20)] {
        let (key, small, large) = (Key::default(), sliding(10), sliding(30));
        let list = key.load(&[&small, &large], START);
        let alone = key.load(&[&large], START);
        assert!(admits(&*alone, 10, START));
        assert!(!is_used_between || !admits(&*list, 1, START));
        for _ in 0..20 / units {
            assert!(admits(&*alone, units, START));
        }
        assert!(!admits(&*list, 1, START + small.interval()));
        assert!(admits(&*list, 10, START + small.interval() * 3));
    }
}

/// As many states of earlier quotas are kept.
const MOST: u32 = 64;

#[test]
fn a_key_with_too_many_earlier_quotas_waits_until_one_of_them_is_full() {
    let key = Key::default();
    // Each refills faster than those before, and lacks the unit that was taken.
    let quota = |at| Quota::per(1, HOUR * (200 - at)).unwrap();
    key.take(&[&quota(0)], 1, START);
    let full = |at| START + HOUR * (200 - at);
    for at in 1..=MOST {
        drop(key.load(&[&quota(at)], START));
    }
    // The latest but one is full first.
    let _one_more = key.load(&[&quota(MOST + 1)], START);
    let _another = key.load(&[&quota(MOST + 2)], START);
    assert_eq!(key.drain(&[&quota(MOST + 2)], full(MOST) - NANO), 0);
    assert_eq!(key.drain(&[&quota(MOST + 2)], full(MOST)), 1);
}

#[test]
fn a_key_with_one_earlier_quota_less_does_not_wait() {
    let key = Key::default();
    let quota = |at| Quota::per(1, HOUR * (200 - at)).unwrap();
    key.take(&[&quota(0)], 1, START);
    for at in 1..MOST {
        drop(key.load(&[&quota(at)], START));
    }
    let full = START + HOUR * (200 - MOST);
    let _last = key.load(&[&quota(MOST)], START);
    assert_eq!(key.drain(&[&quota(MOST)], full - NANO), 0);
    assert_eq!(key.drain(&[&quota(MOST)], full), 1);
}

/// All but the slowest are in force for longer, and that one owes two units.
#[test]
fn a_key_with_too_many_earlier_windows_waits_until_one_of_them_owes_nothing() {
    let key = Key::default();
    let window = |minutes| Quota::sliding(1, HOUR + MINUTE * minutes).unwrap();
    let windows: Vec<_> = (0..=MOST).map(|at| key.load(&[&window(at)], START)).collect();
    let fast = key.load(&[&Quota::per_second(3).unwrap()], START);
    assert!(admits(&*fast, 3, START));
    drop(windows);
    let last = Quota::per_second(4).unwrap();
    for minutes in [0, 130, 250, 380] {
        let now = START + MINUTE * minutes;
        assert_eq!(key.drain(&[&last], now), 0, "after {minutes} min");
    }
    assert_eq!(key.drain(&[&last], START + window(MOST).interval() * 3), 4);
}

/// It is full soon, but in force for half an hour beside the one that followed it.
#[test]
fn a_key_with_too_many_earlier_quotas_waits_for_those_that_are_in_force() {
    let key = Key::default();
    let fast = Quota::per_hour(100).unwrap().burst(1).unwrap();
    let slow = |minutes| Quota::per(50, HOUR * 24 - MINUTE * minutes).unwrap();
    key.take(&[&fast], 1, START);
    // Each lacks two units, which refill in 55 minutes.
    for at in [36, 72] {
        key.take(&[&slow(0)], 1, START + SECOND * at);
    }
    let now = START + SECOND * 72;
    for minutes in 1..=MOST {
        drop(key.load(&[&slow(minutes)], now));
    }
    for minutes in [2, 10, 20, 30] {
        let now = START + MINUTE * minutes;
        assert_eq!(key.drain(&[&slow(MOST)], now), 0, "after {minutes} min");
    }
}
