use std::{
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

use crate::clock::nanos;

/// Consecutive failed probes after which Redis counts as down.
pub(super) const THRESHOLD: u32 = 2;
/// How often to probe whether Redis is back; including the probe itself, well within a second.
const COOL_DOWN: Duration = Duration::from_millis(200);

/// A circuit breaker: spares requests the wait for a server that is down.
///
/// It counts probes, which are small and constant, not requests: a request may fail or be slow
/// because of its own cell, which says nothing about the others.
#[derive(Default)]
pub(super) struct Breaker {
    failures: AtomicU32,
    /// In nanoseconds of the monotonic clock.
    probe_at: AtomicU64,
    has_answered: AtomicBool,
}

impl Breaker {
    /// Whether Redis has answered, and the breaker is closed.
    pub(super) fn has_answered(&self) -> bool {
        self.has_answered.load(Ordering::Relaxed) && self.is_closed()
    }

    /// Whether requests may ask Redis.
    pub(super) fn is_closed(&self) -> bool {
        self.failures.load(Ordering::Relaxed) < THRESHOLD
    }

    /// Whether the caller should probe Redis now.
    pub(super) fn is_probe_due(&self, now: Duration) -> bool {
        let probe_at = self.probe_at.load(Ordering::Relaxed);
        let next = nanos(now + COOL_DOWN);
        nanos(now) >= probe_at
            && self
                .probe_at
                .compare_exchange(probe_at, next, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    /// Returns whether this answer is the first one, or ended an outage.
    pub(super) fn answered(&self) -> bool {
        let was_down = self.failures.swap(0, Ordering::Relaxed) >= THRESHOLD;
        !self.has_answered.swap(true, Ordering::Relaxed) || was_down
    }

    /// Returns whether this failed probe began an outage.
    pub(super) fn failed(&self, now: Duration) -> bool {
        let before = self
            .failures
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| Some(n.saturating_add(1)));
        let begins = before == Ok(THRESHOLD - 1);
        if begins {
            self.probe_at.store(nanos(now + COOL_DOWN), Ordering::Relaxed);
        }
        begins
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_after_failures_in_a_row_and_probes_once_at_a_time() {
        let breaker = Breaker::default();
        let mut now = Duration::from_secs(9);
        assert!(breaker.is_closed() && !breaker.has_answered());
        assert!(breaker.answered(), "the first answer");
        for n in 1..=THRESHOLD {
            assert!(breaker.is_closed());
            assert_eq!(breaker.failed(now), n == THRESHOLD);
        }
        assert!(!breaker.is_closed() && !breaker.has_answered());
        assert!(!breaker.is_probe_due(now));

        now += COOL_DOWN;
        assert!(breaker.is_probe_due(now));
        assert!(!breaker.is_probe_due(now), "a second probe at once");
        assert!(!breaker.failed(now), "the outage had begun already");

        now += COOL_DOWN;
        assert!(breaker.is_probe_due(now));
        assert!(breaker.answered());
        assert!(breaker.is_closed() && breaker.has_answered());
        assert!(!breaker.answered(), "the outage was over already");
    }

    #[test]
    fn an_answer_in_between_starts_the_count_again() {
        let breaker = Breaker::default();
        for _ in 0..3 {
            for _ in 1..THRESHOLD {
                assert!(!breaker.failed(Duration::ZERO));
            }
            breaker.answered();
        }
        assert!(breaker.is_closed());
    }
}
