use std::{
    convert::Infallible,
    fmt,
    future::{Future, pending},
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior, interval, interval_at, sleep_until};

use super::{
    Event, FeedHealth,
    caught::{Panicked, Throttle, catch_panic},
    feed::{self, Backoff, ErasedFeed},
    load::Loader,
    usage::UsageWriter,
};
use crate::{key::SystemEntropy, trace};

/// How often a store is asked whether it answers, if that is in doubt.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// How often clocks are compared. It bounds how long an expired key works after the machine slept.
const CLOCK_INTERVAL: Duration = Duration::from_secs(1);
/// By how much the authenticator's clock may run ahead of that of timers before streams look at it
/// again.
const TIMER_BOUND: Duration = Duration::from_secs(1);

/// The work that no request waits for: it hears of [changes](super::Builder::change_feed) made
/// elsewhere, writes when keys were last used, asks a store that is down whether it is back, notices
/// when a clock was stepped or stood still, and tidies up.
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
    /// A store or a feed that panics is taken for one that failed. Whatever else panics, such as a
    /// limiter that is swept, costs its duty a pause of 50 ms to 5 s and no other duty anything: it is
    /// [observed](super::Event::DutyPanicked), and logged once a minute at most. A `shutdown` that
    /// panics has resolved. A pool that is closed before this has ended costs the uses not yet
    /// written.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let Self { loader, feed, mut usage } = self;
        let sweep_interval = usage.interval();
        tokio::select! {
            _ = catch_panic(shutdown) => {}
            () = write_usage(&loader, &mut usage) => {}
            never = follow(&loader, feed) => match never {},
            never = probe(&loader) => match never {},
            never = sweep(&loader, sweep_interval) => match never {},
            never = check_clocks(&loader) => match never {},
        }
        usage.finish().await;
    }
}

/// One of the things that the worker does side by side. It begins again after it panicked.
struct Duty<'a> {
    name: &'static str,
    loader: &'a Loader,
    begun: Instant,
    backoff: Backoff,
    warnings: Throttle,
}

impl<'a> Duty<'a> {
    fn new(name: &'static str, loader: &'a Loader) -> Self {
        let (begun, backoff) = (Instant::now(), Backoff::default());
        Self { name, loader, begun, backoff, warnings: Throttle::new() }
    }

    /// To be awaited before it begins again.
    async fn panicked(&mut self, Panicked: Panicked) {
        if self.warnings.is_due() {
            trace::warn!(duty = self.name, "worker duty panicked; it begins again");
        }
        self.loader.observe(&Event::DutyPanicked { duty: self.name });
        if self.begun.elapsed() >= feed::LONGEST_BACKOFF {
            self.backoff.reset();
        }
        sleep_until(Instant::now() + self.backoff.wait(&SystemEntropy)).await;
        self.begun = Instant::now();
    }
}

async fn write_usage(loader: &Loader, usage: &mut UsageWriter) {
    let mut duty = Duty::new("usage", loader);
    while let Err(panicked) = catch_panic(usage.write()).await {
        duty.panicked(panicked).await;
    }
}

async fn follow(loader: &Loader, feed: Option<Box<dyn ErasedFeed>>) -> Infallible {
    let Some(mut feed) = feed else { return pending().await };
    let mut duty = Duty::new("change feed", loader);
    loop {
        match catch_panic(feed::follow(loader, &mut *feed)).await {
            Ok(never) => match never {},
            Err(panicked) => duty.panicked(panicked).await,
        }
    }
}

/// Requests would find out by themselves, but there may be none: as long as the node is not ready,
/// and where every key is cached. A feed that is lost makes a store suspect.
async fn probe(loader: &Arc<Loader>) -> Infallible {
    let mut duty = Duty::new("store probe", loader);
    let mut ticks = interval(PROBE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let is_in_doubt =
            loader.is_store_up() != Some(true) || loader.feed.health() == FeedHealth::Gap;
        if is_in_doubt && let Err(panicked) = catch_panic(loader.probe()).await {
            duty.panicked(panicked).await;
        }
    }
}

async fn sweep(loader: &Loader, every: Duration) -> Infallible {
    let mut duty = Duty::new("limiter sweep", loader);
    let mut ticks = interval_at(Instant::now() + every, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let swept = catch_panic(async {
            loader.terms.meters.limiter.sweep(loader.clock.monotonic());
        });
        if let Err(panicked) = swept.await {
            duty.panicked(panicked).await;
        }
    }
}

async fn check_clocks(loader: &Loader) -> Infallible {
    let mut duty = Duty::new("clock check", loader);
    let mut ticks = interval(CLOCK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = None;
    loop {
        ticks.tick().await;
        let checked = catch_panic(async {
            loader.check_clocks();
            let now = (Instant::now(), loader.clock.monotonic());
            // Where it is the timers that stood still, streams may have slept past an expiry.
            if let Some((timers, clock)) = last.replace(now)
                && now.1.saturating_sub(clock) > (now.0 - timers) + TIMER_BOUND
            {
                loader.wake_watchers();
            }
        });
        if let Err(panicked) = checked.await {
            duty.panicked(panicked).await;
        }
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("pending", &self.usage.pending()).finish_non_exhaustive()
    }
}
