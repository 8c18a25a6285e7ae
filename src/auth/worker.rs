use std::{
    convert::Infallible,
    fmt,
    future::{Future, pending},
    sync::Arc,
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval};

use super::{
    FeedHealth,
    feed::{self, ErasedFeed},
    load::Loader,
    usage::UsageWriter,
};

/// How often a store is asked whether it answers, if that is in doubt.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// The work that no request waits for: it hears of [changes](super::Builder::change_feed) made
/// elsewhere, writes when keys were last used, asks a store that is down whether it is back, and
/// tidies up.
///
/// Nothing runs until [`run`](Self::run) is awaited, usually in a task of its own. Who wants none
/// of it drops it instead.
///
/// Uses that cannot be written yet are kept for up to 100,000 keys, as many as are cached by
/// default; beyond that, and when 16,384 wait to be taken up, they are dropped and
/// [observed](super::Event::UsageDropped).
#[must_use = "nothing is recorded or heard of unless the worker runs"]
pub struct Worker {
    loader: Arc<Loader>,
    feed: Option<Box<dyn ErasedFeed>>,
    usage: UsageWriter,
}

impl Worker {
    pub(super) fn new(
        loader: Arc<Loader>,
        feed: Option<Box<dyn ErasedFeed>>,
        usage: UsageWriter,
    ) -> Self {
        Self { loader, feed, usage }
    }

    /// Works until `shutdown` resolves or every [`Authenticator`](super::Authenticator) is gone,
    /// then hears of no more changes, writes what is left and returns.
    ///
    /// Writing what is left takes at most 5 s. The future may be dropped at any time, at the price
    /// of the uses not yet written. From the end of this on, however it comes, keys are
    /// [fresh](super::CachePolicy::fresh_during_gap) as they are during a gap of the feed.
    ///
    /// A store or a feed that panics is taken for one that failed. A pool that is closed before this
    /// has ended costs the uses not yet written.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let Self { loader, feed, mut usage } = self;
        tokio::select! {
            () = usage.write(shutdown) => {}
            never = follow(&loader, feed) => match never {},
            never = probe(&loader) => match never {},
        }
        usage.finish().await;
    }
}

async fn follow(loader: &Loader, feed: Option<Box<dyn ErasedFeed>>) -> Infallible {
    match feed {
        Some(mut feed) => feed::follow(loader, &mut *feed).await,
        None => pending().await,
    }
}

/// Requests would find out by themselves, but there may be none: as long as the node is not ready,
/// and where every key is cached. A feed that is lost makes a store suspect.
async fn probe(loader: &Arc<Loader>) -> Infallible {
    let mut ticks = interval(PROBE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if loader.is_store_up() != Some(true) || loader.feed.health() == FeedHealth::Gap {
            loader.probe().await;
        }
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("pending", &self.usage.pending()).finish_non_exhaustive()
    }
}
