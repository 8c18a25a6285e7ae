//! Detects time that the monotonic clock missed: on some systems it stands still while the machine
//! sleeps.

use std::{
    sync::{
        Mutex, TryLockError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use crate::clock::{Clock, nanos};

/// How far the wall clock may run ahead of the monotonic clock. After a shorter sleep, an expired
/// key may work for up to this long.
const BOUND: Duration = Duration::from_secs(1);
/// Tolerated drift, as a divisor of the time passed: 1/1000, twice the fastest rate at which NTP
/// slews a clock. A larger difference means that a clock was stepped.
const DRIFT: u32 = 1_000;
/// If reading the clocks takes longer than this, the reading was interrupted and proves nothing.
const READ_WITHIN: Duration = Duration::from_millis(100);

/// Compares the wall clock with the monotonic clock.
#[derive(Debug, Default)]
pub(super) struct ClockCheck {
    /// A monotonic reading, and the wall clock's expected reading at that time.
    last: Mutex<Option<(Duration, SystemTime)>>,
    missed: AtomicU64,
}

impl ClockCheck {
    /// How far the wall clock has run ahead since the last check, if that is too far. Each step is
    /// reported once; backward steps are ignored.
    pub(super) fn check(&self, clock: &dyn Clock) -> Option<Duration> {
        let mut last = match self.last.try_lock() {
            Ok(last) => last,
            // The clock panicked while it was read.
            Err(TryLockError::Poisoned(last)) => last.into_inner(),
            // Another request is already checking.
            Err(TryLockError::WouldBlock) => return None,
        };
        let (before, wall, now) = (clock.monotonic(), clock.now(), clock.monotonic());
        if now.saturating_sub(before) > READ_WITHIN {
            return None;
        }
        let Some((then, expected)) = *last else {
            *last = Some((now, wall));
            return None;
        };
        let passed = now.saturating_sub(then);
        let ahead = expected.checked_add(passed).map(|expected| wall.duration_since(expected));
        let Some(Ok(ahead)) = ahead else {
            *last = Some((now, wall));
            return None;
        };
        let unexplained = ahead.saturating_sub(passed / DRIFT);
        if unexplained <= BOUND {
            // Small leads are carried over, so that short sleeps add up.
            *last = Some((now, wall.checked_sub(unexplained).unwrap_or(wall)));
            return None;
        }
        *last = Some((now, wall));
        self.missed.fetch_add(nanos(ahead), Ordering::AcqRel);
        Some(ahead)
    }

    /// The total time that the monotonic clock has missed, in nanoseconds.
    pub(super) fn missed(&self) -> u64 {
        self.missed.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    /// Wall and monotonic readings in milliseconds.
    struct Readings(Mutex<(u64, u64)>);

    impl Readings {
        fn pass(&self, wall: i64, monotonic: u64) {
            let mut readings = self.0.lock().unwrap();
            readings.0 = readings.0.saturating_add_signed(wall);
            readings.1 += monotonic;
        }
    }

    impl Clock for Readings {
        fn now(&self) -> SystemTime {
            SystemTime::UNIX_EPOCH + Duration::from_millis(self.0.lock().unwrap().0)
        }

        fn monotonic(&self) -> Duration {
            Duration::from_millis(self.0.lock().unwrap().1)
        }
    }

    fn readings() -> (ClockCheck, Readings) {
        let (check, clock) = (ClockCheck::default(), Readings(Mutex::new((1_000_000_000, 5))));
        assert_eq!(check.check(&clock), None);
        (check, clock)
    }

    #[test]
    fn a_sleep_is_told_once() {
        let (check, clock) = readings();
        clock.pass(3_600_000, 0);
        assert_eq!(check.check(&clock), Some(Duration::from_secs(3600)));
        assert_eq!(check.check(&clock), None);
        clock.pass(60_000, 60_000);
        assert_eq!(check.check(&clock), None);
        assert_eq!(check.missed(), nanos(Duration::from_secs(3600)));
    }

    #[test]
    fn short_sleeps_add_up() {
        let (check, clock) = readings();
        let told: Vec<_> = (0..10)
            .map(|_| {
                clock.pass(1_400, 1_000);
                check.check(&clock).is_some()
            })
            .collect();
        assert_eq!(told.iter().filter(|told| **told).count(), 3, "{told:?}");
    }

    #[test]
    fn slews_and_steps_backwards_are_no_sleep() {
        let (check, clock) = readings();
        // A day at the tolerated drift, twice the fastest NTP slew.
        for _ in 0..86_400 {
            clock.pass(1_001, 1_000);
            assert_eq!(check.check(&clock), None);
        }
        clock.pass(-7_200_000, 0);
        assert_eq!(check.check(&clock), None);
        for _ in 0..100 {
            clock.pass(999, 1_000);
            assert_eq!(check.check(&clock), None);
        }
        // And forward again.
        clock.pass(7_200_000, 0);
        assert!(check.check(&clock).is_some());
        assert_eq!(check.check(&clock), None);
    }

    #[test]
    fn a_clock_that_panicked_is_read_again() {
        struct Broken;

        impl Clock for Broken {
            fn now(&self) -> SystemTime {
                panic!("no time is known")
            }

            fn monotonic(&self) -> Duration {
                Duration::ZERO
            }
        }

        let (check, clock) = readings();
        assert!(std::panic::catch_unwind(|| check.check(&Broken)).is_err());
        clock.pass(3_600_000, 0);
        assert_eq!(check.check(&clock), Some(Duration::from_secs(3600)));
    }

    #[test]
    fn the_clocks_of_this_machine_agree() {
        let (check, clock) = (ClockCheck::default(), SystemClock::new());
        for _ in 0..1_000 {
            assert_eq!(check.check(&clock), None);
        }
    }
}
