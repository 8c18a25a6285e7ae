//! Local copies of buckets that a fleet shares; they take over during an outage.

use std::{num::NonZeroU32, sync::atomic::Ordering, time::Duration};

use super::{BucketSet, State, nanos::nanos, state::Counter};
use crate::rate_limit::{bucket_snapshot::BucketSnapshot, port::Decisions};

impl BucketSet {
    /// The state of each quota, in their order.
    pub(in crate::rate_limit) fn iter(&self) -> impl Iterator<Item = &State> {
        self.homes()
    }

    /// The decision on `units`, without taking them.
    pub(in crate::rate_limit) fn look(&self, units: NonZeroU32, now: Duration) -> Decisions {
        self.peek_all(units, nanos(now))
    }

    /// Takes `units` from all or from none, without the shared buckets.
    pub(in crate::rate_limit) fn take_alone(&self, units: NonZeroU32, now: Duration) -> Decisions {
        self.go_on_alone();
        self.take_all(units, nanos(now))
    }

    /// Marks the states as diverged: the shared buckets do not know what is taken here.
    pub(in crate::rate_limit) fn go_on_alone(&self) {
        self.iter().for_each(|state| state.diverged.store(true, Ordering::Release));
    }
}

impl State {
    /// The current state, by this process's clock.
    pub(in crate::rate_limit) fn level(&self, now: Duration) -> BucketSnapshot {
        match &self.counter {
            Counter::Gcra(gcra) => BucketSnapshot::Gcra(gcra.ahead_of(nanos(now))),
            Counter::Window(window) => window.level(nanos(now)),
        }
    }

    /// Takes over the state of the shared bucket.
    pub(in crate::rate_limit) fn follow(&self, level: &BucketSnapshot, now: Duration) {
        match (&self.counter, level) {
            (Counter::Gcra(gcra), BucketSnapshot::Gcra(missing)) => {
                gcra.follow(*missing, nanos(now))
            }
            (Counter::Window(window), BucketSnapshot::Window { slots, .. }) => {
                window.follow(slots, nanos(now));
            }
            // Unreachable: shared and local state are of the same algorithm.
            _ => return,
        }
        self.diverged.store(false, Ordering::Release);
    }

    /// Whether the state has diverged from the shared bucket.
    pub(in crate::rate_limit) fn diverged(&self) -> bool {
        self.diverged.load(Ordering::Acquire)
    }
}
