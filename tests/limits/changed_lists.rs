//! What lists of several quotas leave to those that follow them, and what a pause does.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use tower_api_key::rate_limit::{
    LocalRateLimiter, Quota, RateLimiter, RateLimits,
    port::{Buckets, Check, Subject},
};

use crate::app::SECOND;

pub(crate) const START: Duration = Duration::from_secs(1_000);
const NANO: Duration = Duration::from_nanos(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

/// Of a new key, whose buckets are asked for with one list after the other.
#[derive(Default)]
pub(crate) struct Key(LocalRateLimiter);

impl Key {
    pub(crate) fn load(&self, quotas: &[&Quota], now: Duration) -> Arc<dyn Buckets> {
        let named = |(at, quota): (usize, &&Quota)| (*quota).clone().named(format!("q{at}"));
        let quotas = quotas.iter().enumerate().map(|quota| named(quota).unwrap());
        self.0.buckets(&Subject::of_key("acme", 1), &RateLimits::new(quotas).unwrap(), now)
    }

    /// Loads these quotas, and takes all they leave.
    pub(crate) fn drain(&self, quotas: &[&Quota], now: Duration) -> u32 {
        let buckets = self.load(quotas, now);
        (0..).take_while(|_| admits(&*buckets, 1, now)).count().try_into().unwrap()
    }

    pub(crate) fn take(&self, quotas: &[&Quota], units: u32, now: Duration) {
        assert!(admits(&*self.load(quotas, now), units, now), "{quotas:?} leave {units}");
    }
}

pub(crate) fn admits(buckets: &dyn Buckets, units: u32, now: Duration) -> bool {
    let Check::Ready(decisions) = buckets.take(NonZeroU32::new(units).unwrap(), now) else {
        panic!("it decides at once")
    };
    decisions.is_admitted()
}

/// A quota that has been in use, and a list of a faster one and a slower one that follows it.
///
/// The faster one would have nothing left if it counted what was taken before. With the slower one
/// it need not.
struct Followed {
    key: Key,
    fast: Quota,
    slow: Quota,
}

/// The faster quota refills what was taken before in this time, and one unit more.
const REFILLED: Duration = Duration::from_nanos(21 * 100_278_552);

impl Followed {
    fn new() -> Self {
        let (key, before) = (Key::default(), Quota::per(100, HOUR).unwrap());
        key.take(&[&before], 20, START);
        let (fast, slow) = (Quota::per_second(10).unwrap(), Quota::per(50, DAY).unwrap());
        drop(key.load(&[&fast, &slow], START));
        Self { key, fast, slow }
    }

    /// What the faster quota has left without the slower one.
    fn drain_fast(&self, after: Duration) -> u32 {
        self.key.drain(&[&self.fast], START + after)
    }
}

#[test]
fn a_faster_quota_begins_full_beside_a_slower_one() {
    let Followed { key, fast, slow } = Followed::new();
    assert_eq!(key.drain(&[&fast, &slow], START), 10);
    assert_eq!(key.drain(&[&fast, &slow], START + SECOND), 10);
}

#[test]
fn a_faster_quota_alone_counts_what_it_did_not_beside_a_slower_one() {
    let followed = Followed::new();
    assert_eq!(followed.drain_fast(Duration::ZERO), 0);
    // As if it had lacked twenty units from the beginning.
    let tenths = |tenths| SECOND / 10 * tenths;
    assert_eq!(followed.drain_fast(tenths(11) - NANO), 0);
    assert_eq!(followed.drain_fast(tenths(11)), 1);
    // It counts them once.
    assert_eq!(followed.drain_fast(tenths(21)), 10);
}

#[test]
fn a_faster_quota_that_could_have_refilled_what_it_did_not_count_owes_nothing() {
    assert!(Followed::new().drain_fast(REFILLED - NANO) < 10);
    assert_eq!(Followed::new().drain_fast(REFILLED), 10);
}

#[test]
fn a_quota_that_did_not_count_everything_is_no_evidence_for_a_faster_one() {
    let Followed { key, .. } = Followed::new();
    let faster = Quota::per_second(20).unwrap();
    assert_eq!(key.drain(&[&faster], START), 0);
    assert_eq!(key.drain(&[&faster], START + SECOND / 20), 1);
}

#[test]
fn of_two_quotas_before_it_the_one_that_remembers_longest_decides() {
    let (key, hour) = (Key::default(), Quota::per(100, HOUR).unwrap());
    let day = Quota::per(1_000, DAY).unwrap();
    key.take(&[&hour, &day], 20, START);
    // By now, eleven units of the first are missing, and sixteen of the second.
    let now = START + SECOND * 359;
    let (fast, slow) = (Quota::per_second(10).unwrap(), Quota::per(50, DAY).unwrap());
    drop(key.load(&[&fast, &slow], now));
    assert_eq!(key.drain(&[&fast], now + SECOND * 3 / 2), 0);
}

#[test]
fn a_faster_quota_alone_is_not_held_to_the_slower_one_of_its_list() {
    let (key, before) = (Key::default(), Quota::per(100, HOUR).unwrap());
    let slow = Quota::sliding(30, DAY).unwrap();
    key.take(&[&before, &slow], 20, START);
    let fast = Quota::per_second(10).unwrap();
    drop(key.load(&[&fast, &slow], START));
    for second in 3..9 {
        assert_eq!(key.drain(&[&fast], START + SECOND * second), 10, "after {second} s");
    }
}

#[test]
fn a_refund_of_a_quota_that_did_not_count_everything_is_there_for_the_next() {
    let (key, slow) = (Key::default(), Quota::per(10, HOUR).unwrap());
    drop(key.load(&[&slow], START));
    assert_eq!(key.drain(&[&Quota::per(20, SECOND).unwrap()], START), 20);
    let now = START + MINUTE * 6;
    let buckets = key.load(&[&slow], now);
    assert!(admits(&*buckets, 1, now) && !admits(&*buckets, 1, now));
    buckets.give_back(NonZeroU32::MIN, now);
    assert!(admits(&*buckets, 1, now) && !admits(&*buckets, 1, now));
}

/// Until then, a longer window counts as many units as the shorter one may have let through in it.
#[test]
fn a_bucket_is_forgotten_ten_minutes_after_it_is_full_and_not_sooner() {
    let (short, long) = (Quota::sliding(10, SECOND).unwrap(), Quota::sliding(600, MINUTE).unwrap());
    for (early, left) in [(NANO, 10), (Duration::ZERO, 600)] {
        let key = Key::default();
        let _short = key.load(&[&short], START);
        key.take(&[&short], 1, START);
        let full = START + short.interval();
        assert_eq!(key.drain(&[&long], full + MINUTE * 10 - early), left);
    }
}

/// The rates are so close that the faster quota would stay in force for days.
#[test]
fn a_faster_quota_is_not_in_force_any_more_after_a_pause() {
    let (key, fast) = (Key::default(), Quota::per(100, HOUR).unwrap());
    let slow = Quota::per(99, HOUR).unwrap().burst(500).unwrap();
    let _fast = key.load(&[&fast], START);
    assert_eq!(key.drain(&[&fast], START), 100);
    let _slow = key.load(&[&slow], START);
    let full = START + HOUR;
    assert_eq!(key.drain(&[&slow], full + MINUTE * 10 - NANO), 100);
    assert_eq!(key.drain(&[&slow], full + HOUR * 2), 500);
}

#[test]
fn a_quota_that_owes_still_does_when_the_one_that_let_it_through_is_forgotten() {
    let (key, slow) = (Key::default(), Quota::sliding(10, DAY).unwrap());
    let held = key.load(&[&slow], START);
    assert_eq!(key.drain(&[&Quota::per_second(30).unwrap()], START), 30);
    // Ten units are owed: the faster quota refills evenly, and is over at once.
    let slot = DAY / 32;
    for hour in 0..48 {
        assert!(!admits(&*held, 1, START + HOUR * hour), "after {hour} h");
    }
    assert_eq!(key.drain(&[&slow], START + DAY * 2 + slot * 3), 10);
}

#[test]
fn a_quota_that_is_used_up_still_is_when_it_has_been_out_of_use_for_long() {
    for slow in [Quota::per(10, DAY).unwrap(), Quota::sliding(10, DAY).unwrap()] {
        let key = Key::default();
        assert_eq!(key.drain(&[&slow], START), 10);
        let fast = key.load(&[&Quota::per_second(1).unwrap()], START);
        for minute in 1..40 {
            assert!(admits(&*fast, 1, START + MINUTE * minute));
        }
        assert_eq!(key.drain(&[&slow], START + MINUTE * 40), 0, "{slow:?}");
    }
}

#[test]
fn a_quota_that_is_used_up_still_is_when_another_was_loaded_for_long() {
    for slow in [Quota::per(10, DAY).unwrap(), Quota::sliding(10, DAY).unwrap()] {
        let key = Key::default();
        assert_eq!(key.drain(&[&slow], START), 10);
        let _fast = key.load(&[&Quota::per_second(20).unwrap()], START);
        for minute in 0..40 {
            key.0.sweep(START + MINUTE * minute);
        }
        assert_eq!(key.drain(&[&slow], START + MINUTE * 40), 0, "{slow:?}");
    }
}

/// Such a quota lies behind the earlier one only after years.
#[test]
fn a_list_is_not_held_to_an_earlier_quota_because_of_one_that_it_no_longer_has() {
    let (key, before) = (Key::default(), Quota::sliding(10, DAY).unwrap());
    assert_eq!(key.drain(&[&before], START), 10);
    let slower_by_a_rounding = Quota::per(10, DAY + SECOND / 1_000).unwrap();
    let fast = Quota::sliding(8, HOUR).unwrap();
    drop(key.load(&[&slower_by_a_rounding, &fast], START));
    let (larger, now) = (Quota::per(1_000, DAY).unwrap(), START + DAY * 2);
    assert_eq!(key.drain(&[&fast, &larger], now), 8);
    assert_eq!(key.drain(&[&fast, &larger], now + HOUR * 2), 8);
}
