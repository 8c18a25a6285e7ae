//! A circuit breaker: spares requests the wait for a server that is down, and the server the
//! requests.

use std::{
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

use crate::clock::nanos;

/// When a [`CircuitBreaker`] opens, and how often it permits a probe while it is open.
#[derive(Clone, Copy)]
pub(crate) struct BreakerConfig {
    /// Consecutive failures after which the server counts as down.
    pub(crate) threshold: u32,
    /// How often a server that is down is probed.
    pub(crate) cool_down: Duration,
    /// Whether every failure starts the cool-down again. Otherwise only a probe does, and the
    /// failure that opens the breaker.
    pub(crate) failures_postpone_probe: bool,
}

/// Opens after several failures in a row. The caller decides what counts as a failure.
pub(crate) struct CircuitBreaker {
    config: BreakerConfig,
    failures: AtomicU32,
    /// In nanoseconds of the monotonic clock.
    probe_at: AtomicU64,
    has_answered: AtomicBool,
}

/// What an answer of the server means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It ended an outage.
    Recovery,
    /// It is the first one.
    First,
    /// The server was up before.
    Routine,
}

impl CircuitBreaker {
    /// Closed, for a server that has not answered yet.
    pub(crate) const fn new(config: BreakerConfig) -> Self {
        Self {
            config,
            failures: AtomicU32::new(0),
            probe_at: AtomicU64::new(0),
            has_answered: AtomicBool::new(false),
        }
    }

    /// Whether the server is up; `None` if it has never answered.
    pub(crate) fn is_up(&self) -> Option<bool> {
        self.has_answered.load(Ordering::Relaxed).then_some(self.is_closed())
    }

    /// Whether the server counts as up.
    pub(crate) fn is_closed(&self) -> bool {
        self.failures.load(Ordering::Relaxed) < self.config.threshold
    }

    /// Whether [`allow`](Self::allow) would permit a request now.
    pub(crate) fn would_allow(&self, now: Duration) -> bool {
        self.is_closed() || self.is_probe_due(now)
    }

    /// Whether to ask the server: always while it is up, otherwise one probe per cool-down.
    pub(crate) fn allow(&self, now: Duration) -> bool {
        self.is_closed() || self.take_probe(now)
    }

    fn is_probe_due(&self, now: Duration) -> bool {
        nanos(now) >= self.probe_at.load(Ordering::Relaxed)
    }

    /// Whether the caller is to probe the server now. The next probe is due after the cool-down.
    pub(crate) fn take_probe(&self, now: Duration) -> bool {
        let probe_at = self.probe_at.load(Ordering::Relaxed);
        nanos(now) >= probe_at
            && self
                .probe_at
                .compare_exchange(probe_at, self.next(now), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    /// Closes the breaker: the server may be back.
    pub(crate) fn reset(&self) {
        self.failures.store(0, Ordering::Relaxed);
    }

    /// The server answered.
    pub(crate) fn answered(&self) -> Answer {
        let was_down = self.failures.swap(0, Ordering::Relaxed) >= self.config.threshold;
        let is_first = !self.has_answered.swap(true, Ordering::Relaxed);
        match (was_down, is_first) {
            (true, _) => Answer::Recovery,
            (false, true) => Answer::First,
            (false, false) => Answer::Routine,
        }
    }

    /// The server failed. Returns whether this began an outage.
    pub(crate) fn failed(&self, now: Duration) -> bool {
        if self.config.failures_postpone_probe {
            self.probe_at.store(self.next(now), Ordering::Relaxed);
        }
        let before = self
            .failures
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| Some(n.saturating_add(1)));
        let opens = before.is_ok_and(|before| before.saturating_add(1) == self.config.threshold);
        if opens {
            self.probe_at.store(self.next(now), Ordering::Relaxed);
        }
        opens
    }

    /// When the next probe is due after one at `now`.
    fn next(&self, now: Duration) -> u64 {
        nanos(now + self.config.cool_down)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COOL_DOWN: Duration = Duration::from_millis(250);

    /// As for the key store, whose queries are the probes, and for Redis, which is probed beside
    /// its requests.
    const CONFIGS: [BreakerConfig; 2] = [
        BreakerConfig { threshold: 5, cool_down: COOL_DOWN, failures_postpone_probe: true },
        BreakerConfig { threshold: 2, cool_down: COOL_DOWN, failures_postpone_probe: false },
    ];

    #[test]
    fn opens_after_failures_in_a_row_and_lets_one_probe_through() {
        for config in CONFIGS {
            let breaker = CircuitBreaker::new(config);
            let mut now = Duration::from_secs(9);
            for n in 1..=config.threshold {
                assert!(breaker.allow(now));
                assert_eq!(breaker.failed(now), n == config.threshold);
            }
            assert!(!breaker.would_allow(now) && !breaker.allow(now));

            now += COOL_DOWN;
            assert!(breaker.would_allow(now) && breaker.allow(now));
            assert!(!breaker.allow(now), "a second probe at once");
            assert!(!breaker.failed(now), "the outage had begun already");

            now += COOL_DOWN;
            assert!(breaker.allow(now));
            assert_eq!(breaker.answered(), Answer::Recovery);
            assert!(breaker.allow(now) && breaker.allow(now));
            assert_eq!(breaker.answered(), Answer::Routine, "the outage was over already");
        }
    }

    #[test]
    fn opens_after_failures_in_a_row_and_probes_once_at_a_time() {
        for config in CONFIGS {
            let breaker = CircuitBreaker::new(config);
            let mut now = Duration::from_secs(9);
            assert!(breaker.is_closed() && breaker.is_up().is_none());
            assert_eq!(breaker.answered(), Answer::First);
            for n in 1..=config.threshold {
                assert!(breaker.is_closed() && breaker.is_up() == Some(true));
                assert_eq!(breaker.failed(now), n == config.threshold);
            }
            assert!(!breaker.is_closed() && breaker.is_up() == Some(false));
            assert!(!breaker.take_probe(now));

            now += COOL_DOWN;
            assert!(breaker.take_probe(now));
            assert!(!breaker.take_probe(now), "a second probe at once");
            assert!(!breaker.failed(now), "the outage had begun already");

            now += COOL_DOWN;
            assert!(breaker.take_probe(now));
            assert_eq!(breaker.answered(), Answer::Recovery);
            assert!(breaker.is_closed() && breaker.is_up() == Some(true));
            assert_eq!(breaker.answered(), Answer::Routine, "the outage was over already");
        }
    }

    #[test]
    fn an_answer_in_between_starts_the_count_again() {
        for config in CONFIGS {
            let breaker = CircuitBreaker::new(config);
            for _ in 0..3 {
                for _ in 1..config.threshold {
                    assert!(!breaker.failed(Duration::ZERO));
                }
                assert_ne!(breaker.answered(), Answer::Recovery);
            }
            assert!(breaker.allow(Duration::ZERO) && breaker.is_closed());
        }
    }

    #[test]
    fn a_failed_probe_postpones_the_next_one_where_it_says_so() {
        for config in CONFIGS {
            let breaker = CircuitBreaker::new(config);
            for _ in 0..config.threshold {
                breaker.failed(Duration::ZERO);
            }
            assert!(breaker.take_probe(COOL_DOWN));
            breaker.failed(COOL_DOWN + COOL_DOWN / 2);
            assert_eq!(breaker.would_allow(2 * COOL_DOWN), !config.failures_postpone_probe);
            assert!(breaker.would_allow(3 * COOL_DOWN));
        }
    }
}
