//! GCRA rate limits in one word of memory each, for built-in limits that are not configured per
//! key.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crate::clock::nanos;

/// A burst, then one unit per interval.
#[derive(Clone, Copy, Debug)]
pub(in crate::auth) struct Rate {
    /// In nanoseconds.
    interval: u64,
    /// The time in which the whole burst refills.
    full: u64,
}

impl Rate {
    pub(in crate::auth) fn new(interval: Duration, burst: u32) -> Self {
        let interval = nanos(interval).max(1);
        Self { interval, full: interval.saturating_mul(u64::from(burst.max(1))) }
    }

    /// Half the burst, rounded down.
    pub(in crate::auth) fn half(self) -> Self {
        Self { full: self.full / self.interval / 2 * self.interval, ..self }
    }

    pub(in crate::auth) fn per_second(units: u32, burst: u32) -> Self {
        Self::new(Duration::from_secs(1) / units.max(1), burst)
    }
}

/// The state of a rate limit: the time at which the burst is full again.
#[derive(Default)]
pub(in crate::auth) struct Used(AtomicU64);

impl Used {
    /// The time until a unit is available.
    pub(in crate::auth) fn wait(&self, rate: Rate, now: Duration) -> Duration {
        let now = nanos(now);
        let next = after_one_more(self.0.load(Ordering::Relaxed), rate, now);
        Duration::from_nanos(next.saturating_sub(now.saturating_add(rate.full)))
    }

    /// Takes a unit if one is available; returns whether it was.
    pub(in crate::auth) fn take(&self, rate: Rate, now: Duration) -> bool {
        let now = nanos(now);
        let take = |used| {
            let next = after_one_more(used, rate, now);
            (next <= now.saturating_add(rate.full)).then_some(next)
        };
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    /// Takes a unit, or less if less is left: the bucket never goes into debt.
    pub(in crate::auth) fn take_saturating(&self, rate: Rate, now: Duration) {
        let now = nanos(now);
        let take_saturating = |used: u64| {
            let most = now.saturating_add(rate.full);
            Some(after_one_more(used, rate, now).min(most).max(used))
        };
        // The closure never declines.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take_saturating);
    }

    pub(in crate::auth) fn give_back(&self, rate: Rate) {
        let give_back = |used: u64| Some(used.saturating_sub(rate.interval));
        // The closure never declines.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, give_back);
    }
}

/// A rate limit and its state.
pub(super) struct Budget {
    rate: Rate,
    used: Used,
}

impl Budget {
    pub(super) fn new(rate: Rate) -> Self {
        Self { rate, used: Used::default() }
    }

    pub(super) fn has_left(&self, now: Duration) -> bool {
        self.used.wait(self.rate, now).is_zero()
    }

    pub(super) fn take(&self, now: Duration) -> bool {
        self.used.take(self.rate, now)
    }

    pub(super) fn give_back(&self) {
        self.used.give_back(self.rate);
    }
}

fn after_one_more(used: u64, rate: Rate, now: u64) -> u64 {
    used.max(now).saturating_add(rate.interval)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const NANO: Duration = Duration::from_nanos(1);

    #[test]
    fn so_many_pass_at_once_and_then_one_each_interval() {
        let (rate, used) = (Rate::new(SECOND, 3), Used::default());
        let mut now = 7 * SECOND;
        for _ in 0..3 {
            assert_eq!(used.wait(rate, now), Duration::ZERO);
            assert!(used.take(rate, now));
        }
        for _ in 0..5 {
            assert!(!used.take(rate, now));
            assert_eq!(used.wait(rate, now), SECOND);
            now += SECOND - NANO;
            assert_eq!(used.wait(rate, now), NANO);
            assert!(!used.take(rate, now));
            now += NANO;
            assert!(used.take(rate, now));
        }
    }

    #[test]
    fn what_is_given_back_can_be_taken_again_and_no_more_than_that() {
        let (rate, used) = (Rate::new(SECOND, 2), Used::default());
        let mut now = SECOND;
        for _ in 0..100 {
            assert!(used.take(rate, now));
            used.give_back(rate);
        }
        assert!(used.take(rate, now) && used.take(rate, now) && !used.take(rate, now));

        now += 100 * SECOND;
        used.give_back(rate);
        assert!(used.take(rate, now) && used.take(rate, now) && !used.take(rate, now));
    }

    #[test]
    fn a_unit_that_is_pressed_out_of_it_is_no_debt() {
        let (rate, used) = (Rate::new(SECOND, 2), Used::default());
        for _ in 0..100 {
            used.take_saturating(rate, SECOND);
        }
        assert_eq!(used.wait(rate, SECOND), SECOND);
        used.take_saturating(rate, Duration::ZERO);
        assert_eq!(used.wait(rate, SECOND), SECOND, "an earlier reading changes nothing");
        assert!(used.take(rate, 2 * SECOND));
    }

    #[test]
    fn half_of_a_rate_is_half_of_its_burst_rounded_down() {
        for (burst, half) in [(20, 10), (7, 3), (2, 1)] {
            let (rate, used) = (Rate::new(2 * SECOND, burst).half(), Used::default());
            let taken = (0..burst).filter(|_| used.take(rate, SECOND)).count();
            assert_eq!(taken, half, "of {burst}");
            assert_eq!(used.wait(rate, SECOND), 2 * SECOND, "the interval stays");
        }
    }

    #[test]
    fn the_end_of_time_is_no_panic() {
        let (rate, used) = (Rate::new(Duration::MAX, u32::MAX), Used::default());
        used.take_saturating(rate, Duration::MAX);
        let _ = (used.take(rate, Duration::MAX), used.wait(rate, Duration::MAX));
        assert!(Used::default().take(Rate::per_second(u32::MAX, 0), Duration::ZERO));
    }

    proptest! {
        #[test]
        fn no_window_lets_more_through_than_the_rate(
            burst in 1_u32..5,
            steps in vec(0_u64..3000, 1..200),
        ) {
            let (rate, used) = (Rate::new(SECOND, burst), Used::default());
            let (mut now, mut taken) = (Duration::ZERO, Vec::new());
            for step in steps {
                now += Duration::from_millis(step);
                if used.take(rate, now) {
                    taken.push(now);
                }
            }
            for (first, begin) in taken.iter().enumerate() {
                for (last, end) in taken.iter().enumerate().skip(first) {
                    let most = u128::from(burst) + (*end - *begin).as_nanos() / SECOND.as_nanos();
                    prop_assert!(((last - first) as u128) < most);
                }
            }
        }
    }
}
