use std::{
    sync::atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering},
    time::Duration,
};

/// How an [`Authenticator`](super::Authenticator) is doing: for readiness checks and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Health {
    /// The key store.
    pub store: StoreHealth,
    /// The change feed.
    pub feed: FeedHealth,
    /// How many messages of the feed were ignored since the start, because they were forged, sent
    /// before, or made no sense. Anything but 0 is worth a look: who else uses the channel?
    pub ignored_messages: u64,
}

impl Health {
    /// Whether requests should be sent here: the store has answered since the start.
    ///
    /// A store that went away later does not count. Keys that are cached go on working, and nodes
    /// that all call themselves unready make an outage of the store one of the service.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.store != StoreHealth::Unknown
    }
}

/// Whether the key store answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreHealth {
    /// It has not answered yet. Until it does, and while the feed is not connected, it is asked
    /// every second if the [`Worker`](super::Worker) runs.
    Unknown,
    /// It answered when it was last asked, or has not failed often enough to tell.
    Up,
    /// It failed five times in a row. Keys are judged by what is cached.
    Down,
}

/// Whether changes made elsewhere are heard of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FeedHealth {
    /// There is no [change feed](super::Builder::change_feed).
    Off,
    /// It is not connected: not yet, not now, or the [`Worker`](super::Worker) does not run. What is
    /// cached is fresh for [a shorter time](super::CachePolicy::fresh_during_gap).
    Gap,
    /// It is connected to a replica that is further behind than it
    /// [may be](crate::store::PollingChangeFeed::max_lag). This is a gap, and the store confirms
    /// nothing: a key is let in while what is known of it is as old as the replica for no longer
    /// than [`fresh`](super::CachePolicy::fresh) and
    /// [`stale_if_error`](super::CachePolicy::stale_if_error), and then turned away with 503. A key
    /// that the replica does not have is turned away with 503 as well: it may have been created
    /// meanwhile.
    Behind {
        /// How old what the replica says is; `None` where that is unknown.
        lag: Option<Duration>,
    },
    /// It is connected.
    Live {
        /// How long after a change it is heard of, as last measured; `None` before that.
        lag: Option<Duration>,
    },
}

/// [`FeedHealth`], shared between the worker and whoever asks.
pub(super) struct FeedState {
    state: AtomicU8,
    lag_nanos: AtomicU64,
    /// When what is read from the store was true, in nanoseconds of the monotonic clock, before the
    /// beginning of which it may lie. [`NOW`] unless that is too long ago to confirm anything.
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

    /// What is read from the store is true now.
    pub(super) fn set_current(&self) {
        self.as_of.store(NOW, Ordering::Release);
    }

    /// What is read from the store was true `lag` ago.
    pub(super) fn set_behind(&self, lag: Duration, now: Duration) {
        self.as_of.store(signed(now).saturating_sub(signed(lag)), Ordering::Release);
        self.set_lag(lag);
        self.state.store(BEHIND, Ordering::Relaxed);
    }

    /// How old what is read from the store is, if that is too old to confirm anything.
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
        assert!(!feed.outdated_by(SECOND).is_zero(), "a lost feed is no news of the replica");
        feed.set_current();
        assert_eq!(feed.outdated_by(Duration::MAX), Duration::ZERO);
    }
}
