use std::{
    sync::atomic::{AtomicU8, AtomicU64, Ordering},
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
    /// It is connected.
    Live {
        /// How long after a change it is heard of, as last measured; `None` before that.
        lag: Option<Duration>,
    },
}

/// [`FeedHealth`], shared between the worker and whoever asks.
#[derive(Default)]
pub(super) struct FeedState {
    state: AtomicU8,
    lag_nanos: AtomicU64,
}

const OFF: u8 = 0;
const GAP: u8 = 1;
const LIVE: u8 = 2;
const UNMEASURED: u64 = u64::MAX;

impl FeedState {
    pub(super) fn health(&self) -> FeedHealth {
        match self.state.load(Ordering::Relaxed) {
            OFF => FeedHealth::Off,
            GAP => FeedHealth::Gap,
            _ => {
                let nanos = self.lag_nanos.load(Ordering::Relaxed);
                let lag = (nanos != UNMEASURED).then(|| Duration::from_nanos(nanos));
                FeedHealth::Live { lag }
            }
        }
    }

    pub(super) fn set_gap(&self) {
        self.state.store(GAP, Ordering::Relaxed);
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
