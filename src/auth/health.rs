use std::{
    sync::atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering},
    time::Duration,
};

use crate::rate_limit::LimiterHealth;

/// The health of an [`Authenticator`](super::Authenticator), for readiness checks and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Health {
    /// The key store.
    pub store: StoreHealth,
    /// The change feed.
    pub feed: FeedHealth,
    /// The rate limiter.
    pub limiter: LimiterHealth,
    /// How many feed messages were ignored since the start, because they were forged, replayed or
    /// malformed. If this is not 0, find out what else writes to the channel.
    pub ignored_messages: u64,
}

impl Health {
    /// Whether this node is ready for requests: the store has answered at least once.
    ///
    /// A store that goes down later does not count. Cached keys go on working, and if every node
    /// reported itself unready, an outage of the store would become an outage of the service.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.store != StoreHealth::Unknown
    }
}

/// Whether the key store answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreHealth {
    /// It has not answered yet. If the [`Worker`](super::Worker) runs, it probes the store every
    /// second until it answers, and while the feed is not connected.
    Unknown,
    /// The last query succeeded, or too few have failed to count as an outage.
    Up,
    /// Five queries in a row failed. Keys are checked against the cache.
    Down,
}

/// Whether the change feed is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FeedHealth {
    /// There is no [change feed](super::Builder::change_feed).
    Off,
    /// Not connected: not yet, not at the moment, or the [`Worker`](super::Worker) does not run.
    /// Cached records are fresh for [a shorter time](super::CachePolicy::fresh_during_gap).
    Gap,
    /// Connected to a replica that lags by more than [the
    /// maximum](crate::store::PollingChangeFeed::max_lag). This is a gap, and the store confirms
    /// nothing: a key is let in until its record, including the replica's lag, is older than
    /// [`fresh`](super::CachePolicy::fresh) plus
    /// [`stale_if_error`](super::CachePolicy::stale_if_error), and then rejected with 503. A key
    /// that the replica does not have is rejected with 503 as well, since it may have been created
    /// in the meantime.
    Behind {
        /// How old the replica's data is; `None` if unknown.
        lag: Option<Duration>,
    },
    /// Connected.
    Live {
        /// The time from a change until it is reported here, as last measured; `None` before the
        /// first measurement.
        lag: Option<Duration>,
    },
}

impl StoreHealth {
    /// The state's name for logs and metrics, such as `up`. It never changes.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

impl FeedHealth {
    /// The state's name for logs and metrics, such as `live`. It never changes.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Gap => "gap",
            Self::Behind { .. } => "behind",
            Self::Live { .. } => "live",
        }
    }
}

/// [`FeedHealth`], shared between the worker and readers.
pub(super) struct FeedState {
    state: AtomicU8,
    lag_nanos: AtomicU64,
    /// When the store's data was current, in nanoseconds of the monotonic clock; negative if that
    /// was before the clock's start. [`NOW`] unless the data is too old to confirm anything.
    as_of: AtomicI64,
    ignored: AtomicU64,
}

impl Default for FeedState {
    fn default() -> Self {
        Self {
            state: AtomicU8::new(OFF),
            lag_nanos: AtomicU64::new(UNMEASURED),
            as_of: AtomicI64::new(NOW),
            ignored: AtomicU64::new(0),
        }
    }
}

const OFF: u8 = 0;
const GAP: u8 = 1;
const LIVE: u8 = 2;
const BEHIND: u8 = 3;
const UNMEASURED: u64 = u64::MAX;
const NOW: i64 = i64::MAX;

impl FeedState {
    pub(super) fn health(&self) -> FeedHealth {
        match self.state.load(Ordering::Relaxed) {
            OFF => FeedHealth::Off,
            GAP => FeedHealth::Gap,
            BEHIND => FeedHealth::Behind { lag: self.lag() },
            _ => FeedHealth::Live { lag: self.lag() },
        }
    }

    fn lag(&self) -> Option<Duration> {
        let nanos = self.lag_nanos.load(Ordering::Relaxed);
        (nanos != UNMEASURED).then(|| Duration::from_nanos(nanos))
    }

    pub(super) fn set_gap(&self) {
        self.state.store(GAP, Ordering::Relaxed);
    }

    /// The store's data is current.
    pub(super) fn set_current(&self) {
        self.as_of.store(NOW, Ordering::Release);
    }

    /// The store's data was current `lag` ago.
    pub(super) fn set_behind(&self, lag: Duration, now: Duration) {
        self.as_of.store(signed(now).saturating_sub(signed(lag)), Ordering::Release);
        self.set_lag(lag);
        self.state.store(BEHIND, Ordering::Relaxed);
    }

    /// How old the store's data is, if it is too old to confirm anything; otherwise zero.
    pub(super) fn outdated_by(&self, now: Duration) -> Duration {
        let nanos = signed(now).saturating_sub(self.as_of.load(Ordering::Acquire));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or_default())
    }

    pub(super) fn ignore(&self) {
        self.ignored.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn ignored(&self) -> u64 {
        self.ignored.load(Ordering::Relaxed)
    }

    pub(super) fn set_live(&self) {
        self.lag_nanos.store(UNMEASURED, Ordering::Relaxed);
        self.state.store(LIVE, Ordering::Relaxed);
    }

    pub(super) fn set_lag(&self, lag: Duration) {
        let nanos = u64::try_from(lag.as_nanos()).unwrap_or(UNMEASURED);
        self.lag_nanos.store(nanos, Ordering::Relaxed);
    }
}

fn signed(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_older_than_the_process_is_told_by_its_age() {
        const SECOND: Duration = Duration::from_secs(1);
        let feed = FeedState::default();
        assert_eq!(feed.outdated_by(7 * SECOND), Duration::ZERO);
        feed.set_behind(3_600 * SECOND, SECOND);
        assert_eq!(feed.outdated_by(SECOND), 3_600 * SECOND);
        assert_eq!(feed.outdated_by(11 * SECOND), 3_610 * SECOND);
        assert_eq!(feed.health(), FeedHealth::Behind { lag: Some(3_600 * SECOND) });

        feed.set_behind(Duration::MAX, SECOND);
        assert!(feed.outdated_by(SECOND) > 1_000_000_000 * SECOND);
        assert_eq!(feed.health(), FeedHealth::Behind { lag: None });
        feed.set_gap();
        assert!(!feed.outdated_by(SECOND).is_zero(), "the replica is still outdated");
        feed.set_current();
        assert_eq!(feed.outdated_by(Duration::MAX), Duration::ZERO);
    }
}
