mod backoff;
mod canaries;
mod feed;
mod sweep;
mod usage;

use std::{
    convert::Infallible,
    fmt,
    future::{Future, pending},
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use self::{
    backoff::{Backoff, LONGEST as LONGEST_BACKOFF},
    sweep::LimiterSweep,
};
pub(super) use self::{canaries::CanaryWriter, feed::DynFeed, usage::UsageWriter};
use super::{
    Event, FeedHealth,
    catch_panic::{Panicked, Throttle, catch_panic},
    core::Core,
    metrics::Metrics,
};
use crate::{key::SystemEntropy, trace};

/// How often the store is probed while its health is in doubt.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// How often the clocks are compared. This bounds how long an expired key works after a sleep.
const CLOCK_INTERVAL: Duration = Duration::from_secs(1);
/// How often gauges are set. Prometheus reads them less often by default.
const METRICS_INTERVAL: Duration = Duration::from_secs(1);
/// How often the keys are counted that still have legacy hashes.
const LEGACY_INTERVAL: Duration = Duration::from_secs(60);
/// How far the authenticator's clock may run ahead of tokio's timers before streams are woken to
/// check their keys again.
const TIMER_BOUND: Duration = Duration::from_secs(1);

/// Background work: follows the [change feed](super::Builder::change_feed), writes when and how
/// often keys were used, and uses of [canary](crate::record::KeyKind::Canary) keys, probes a store that is down, detects clocks that were stepped or stood still, and sweeps
/// the rate limiter.
///
/// Nothing runs until [`run`](Self::run) is awaited, usually in a task of its own. Drop the worker
/// if you need none of this. A worker that is dropped without being run logs a warning, because
/// `let (auth, _) = builder.build()` is usually a mistake.
///
/// Uses that cannot be written yet are kept for up to 100,000 keys, the default cache capacity, and
/// counts for as many pairs of a key and an hour. Beyond that, or when 16,384 keys are queued for the
/// worker, they are dropped and [reported](super::Event::UsageDropped).
#[must_use = "nothing is recorded or heard of unless the worker runs"]
pub struct Worker {
    core: Arc<Core>,
    feed: Option<Box<dyn DynFeed>>,
    usage: UsageWriter,
    canaries: CanaryWriter,
    sweep_interval: Duration,
    unrun: UnrunWarning,
}

/// Logs, when it is dropped, that the worker was not run.
struct UnrunWarning {
    is_due: bool,
}

impl Drop for UnrunWarning {
    fn drop(&mut self) {
        if self.is_due {
            trace::warn!(
                consequences = "uses of keys are not written; changes made elsewhere are noticed \
                                late; a store that is down is not probed; the rate limiter is not \
                                swept",
                "worker dropped without being run"
            );
        }
    }
}

impl Worker {
    pub(super) fn new(
        core: Arc<Core>,
        feed: Option<Box<dyn DynFeed>>,
        usage: UsageWriter,
        canaries: CanaryWriter,
        sweep_interval: Duration,
    ) -> Self {
        let unrun = UnrunWarning { is_due: true };
        Self { core, feed, usage, canaries, sweep_interval, unrun }
    }

    /// Runs until `shutdown` resolves or every [`Authenticator`](super::Authenticator) is dropped,
    /// then stops following the feed, writes the remaining uses and returns.
    ///
    /// The final write takes at most 5 s. The future may be dropped at any time; uses not yet
    /// written are then lost. Once it has ended, in whatever way, records are fresh only for [as
    /// long as during a gap](super::CachePolicy::fresh_during_gap) of the feed.
    ///
    /// A store or a feed that panics counts as failed. Any other panic, such as in a limiter during
    /// its sweep, pauses that duty for 50 ms to 5 s and affects no other: it is
    /// [reported](super::Event::DutyPanicked), and logged at most once a minute. A `shutdown` that
    /// panics counts as resolved. Close database pools only after this has returned, or the uses
    /// not yet written are lost.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let Self { core, feed, mut usage, mut canaries, sweep_interval, mut unrun } = self;
        unrun.is_due = false;
        tokio::select! {
            _ = catch_panic(shutdown) => {}
            () = write_usage(&core, &mut usage) => {}
            never = follow(&core, feed) => match never {},
            never = probe(&core) => match never {},
            never = sweep(&core, sweep_interval) => match never {},
            never = check_clocks(&core) => match never {},
            never = count_legacy_keys(&core) => match never {},
            never = refresh_metrics(&core) => match never {},
            never = write_canary_uses(&core, &mut canaries) => match never {},
        }
        tokio::join!(usage.finish(), canaries.finish());
    }
}

#[cfg(feature = "test-util")]
impl Worker {
    /// Dropped without being run, as a test does, it logs nothing.
    pub(crate) fn run_by_hand(mut self) -> Self {
        self.unrun.is_due = false;
        self
    }

    /// Takes the uses that were reported so far, to write them later.
    pub(crate) fn collect_usage(&mut self) {
        self.usage.collect();
    }

    /// Writes the uses that were reported so far, also those of canary keys.
    pub(crate) async fn write_usage_now(&mut self) {
        self.usage.write_now().await;
        self.canaries.write_now().await;
    }
}

/// One concurrent duty of the worker. It is restarted after a panic.
struct Duty<'a> {
    name: &'static str,
    core: &'a Core,
    begun: Instant,
    backoff: Backoff,
    warnings: Throttle,
}

impl<'a> Duty<'a> {
    fn new(name: &'static str, core: &'a Core) -> Self {
        let (begun, backoff) = (Instant::now(), Backoff::default());
        Self { name, core, begun, backoff, warnings: Throttle::new() }
    }

    /// Waits out the backoff before a restart.
    async fn panicked(&mut self, Panicked: Panicked) {
        if self.warnings.is_due() {
            trace::warn!(duty = self.name, "worker duty panicked; restarting");
        }
        self.core.observe(&Event::DutyPanicked { duty: self.name });
        if self.begun.elapsed() >= LONGEST_BACKOFF {
            self.backoff.reset();
        }
        sleep_until(Instant::now() + self.backoff.wait(&SystemEntropy)).await;
        self.begun = Instant::now();
    }
}

async fn write_usage(core: &Core, usage: &mut UsageWriter) {
    let mut duty = Duty::new("usage", core);
    while let Err(panicked) = catch_panic(usage.write()).await {
        duty.panicked(panicked).await;
    }
}

async fn write_canary_uses(core: &Core, canaries: &mut CanaryWriter) -> Infallible {
    let mut duty = Duty::new("canary uses", core);
    loop {
        match catch_panic(canaries.write()).await {
            Ok(never) => match never {},
            Err(panicked) => duty.panicked(panicked).await,
        }
    }
}

async fn follow(core: &Core, feed: Option<Box<dyn DynFeed>>) -> Infallible {
    let Some(mut feed) = feed else { return pending().await };
    let mut duty = Duty::new("change feed", core);
    loop {
        match catch_panic(feed::follow(core, &mut *feed)).await {
            Ok(never) => match never {},
            Err(panicked) => duty.panicked(panicked).await,
        }
    }
}

/// Requests alone do not suffice: a node that is not ready gets none, and cached keys make no
/// queries. A lost feed puts the store in doubt as well.
async fn probe(core: &Arc<Core>) -> Infallible {
    let mut duty = Duty::new("store probe", core);
    let mut ticks = interval(PROBE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let is_in_doubt =
            core.lookup.is_store_up() != Some(true) || core.feed.health() == FeedHealth::Gap;
        if is_in_doubt && let Err(panicked) = catch_panic(core.probe()).await {
            duty.panicked(panicked).await;
        }
    }
}

async fn sweep(core: &Core, interval: Duration) -> Infallible {
    let mut duty = Duty::new("limiter sweep", core);
    let mut sweep = LimiterSweep::every(interval);
    loop {
        match catch_panic(sweep.run(core)).await {
            Ok(never) => match never {},
            Err(panicked) => duty.panicked(panicked).await,
        }
    }
}

async fn check_clocks(core: &Core) -> Infallible {
    let mut duty = Duty::new("clock check", core);
    let mut ticks = interval(CLOCK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = None;
    loop {
        ticks.tick().await;
        let checked = catch_panic(async {
            core.check_clocks();
            let now = (Instant::now(), core.clock.monotonic());
            // If the timers stood still, streams may have slept past an expiry.
            if let Some((timers, clock)) = last.replace(now)
                && now.1.saturating_sub(clock) > (now.0 - timers) + TIMER_BOUND
            {
                core.wake_watchers();
            }
        });
        if let Err(panicked) = checked.await {
            duty.panicked(panicked).await;
        }
    }
}

async fn count_legacy_keys(core: &Core) -> Infallible {
    let Some(legacy) = &core.legacy else { return pending().await };
    let mut duty = Duty::new("legacy hashes", core);
    let mut ticks = interval(LEGACY_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let counted = catch_panic(async { legacy.count(core.clock.monotonic()).await });
        if let Err(panicked) = counted.await {
            duty.panicked(panicked).await;
        }
    }
}

async fn refresh_metrics(core: &Core) -> Infallible {
    if !Metrics::IS_ON {
        return pending().await;
    }
    let mut duty = Duty::new("metrics", core);
    let mut ticks = interval(METRICS_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let refreshed = catch_panic(async { core.refresh_metrics() });
        if let Err(panicked) = refreshed.await {
            duty.panicked(panicked).await;
        }
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("pending", &self.usage.pending()).finish_non_exhaustive()
    }
}
