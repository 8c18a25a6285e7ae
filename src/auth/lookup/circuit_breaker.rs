use std::{
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

use crate::clock::nanos;

/// Consecutive failures after which the store counts as down.
const THRESHOLD: u32 = 5;
/// How often a store that is down is probed. A recovered store must be noticed well within a
/// second.
const COOL_DOWN: Duration = Duration::from_millis(250);

/// A circuit breaker: spares requests the wait for a store that is down, and the store the
/// requests.
#[derive(Default)]
pub(super) struct Breaker {
    failures: AtomicU32,
    /// In nanoseconds of the monotonic clock.
    closed_until_probe_at: AtomicU64,
    has_answered: AtomicBool,
}

impl Breaker {
    /// Whether the store is up; `None` if it has never answered.
    pub(super) fn is_up(&self) -> Option<bool> {
        let is_up = self.failures.load(Ordering::Relaxed) < THRESHOLD;
        self.has_answered.load(Ordering::Relaxed).then_some(is_up)
    }

    /// Whether [`allow`](Self::allow) would permit a query now.
    pub(super) fn would_allow(&self, now: Duration) -> bool {
        self.failures.load(Ordering::Relaxed) < THRESHOLD
            || nanos(now) >= self.closed_until_probe_at.load(Ordering::Relaxed)
    }

    /// Whether to query the store: always while it is up, otherwise one probe per [`COOL_DOWN`].
    pub(super) fn allow(&self, now: Duration) -> bool {
        if self.failures.load(Ordering::Relaxed) < THRESHOLD {
            return true;
        }
        let probe_at = self.closed_until_probe_at.load(Ordering::Relaxed);
        nanos(now) >= probe_at
            && self
                .closed_until_probe_at
                .compare_exchange(
                    probe_at,
                    nanos(now + COOL_DOWN),
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                )
                .is_ok()
    }

    /// Closes the breaker: the store may be back.
    pub(super) fn reset(&self) {
        self.failures.store(0, Ordering::Relaxed);
    }

    /// Returns whether this answer ended an outage.
    pub(super) fn answered(&self) -> bool {
        self.has_answered.store(true, Ordering::Relaxed);
        self.failures.swap(0, Ordering::Relaxed) >= THRESHOLD
    }

    /// Returns whether this failure began an outage.
    pub(super) fn failed(&self, now: Duration) -> bool {
        self.closed_until_probe_at.store(nanos(now + COOL_DOWN), Ordering::Relaxed);
        let before = self
            .failures
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| Some(n.saturating_add(1)));
        before == Ok(THRESHOLD - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_after_failures_in_a_row_and_lets_one_probe_through() {
        let breaker = Breaker::default();
        let mut now = Duration::from_secs(9);
        for n in 1..=THRESHOLD {
            assert!(breaker.allow(now));
            assert_eq!(breaker.failed(now), n == THRESHOLD);
        }
        assert!(!breaker.would_allow(now) && !breaker.allow(now));

        now += COOL_DOWN;
        assert!(breaker.would_allow(now) && breaker.allow(now));
        assert!(!breaker.allow(now), "a second probe at once");
        assert!(!breaker.failed(now), "the outage had begun already");

        now += COOL_DOWN;
        assert!(breaker.allow(now));
        assert!(breaker.answered());
        assert!(breaker.allow(now) && breaker.allow(now));
        assert!(!breaker.answered(), "the outage was over already");
    }

    #[test]
    fn an_answer_in_between_starts_the_count_again() {
        let breaker = Breaker::default();
        for _ in 0..3 {
            for _ in 1..THRESHOLD {
                assert!(!breaker.failed(Duration::ZERO));
            }
            assert!(!breaker.answered());
        }
        assert!(breaker.allow(Duration::ZERO));
    }
}
