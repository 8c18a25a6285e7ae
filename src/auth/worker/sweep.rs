//! Sweeps of the rate limiter, which remove the buckets that are full again.

use std::{convert::Infallible, time::Duration};

use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use crate::auth::core::Core;

pub(super) struct LimiterSweep {
    ticks: Interval,
}

impl LimiterSweep {
    /// The first sweep is one interval from now.
    pub(super) fn every(interval: Duration) -> Self {
        let mut ticks = interval_at(Instant::now() + interval, interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { ticks }
    }

    /// Sweeps once per interval. May be called again after a panic of the limiter, without delaying
    /// the next sweep.
    pub(super) async fn run(&mut self, core: &Core) -> Infallible {
        loop {
            self.ticks.tick().await;
            core.limits.meters.limiter.sweep(core.clock.monotonic());
        }
    }
}
