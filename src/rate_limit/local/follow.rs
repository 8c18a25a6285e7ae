//! Following buckets that a fleet shares, and going on where those cannot be had.

use std::{num::NonZeroU32, sync::atomic::Ordering, time::Duration};

use super::{BucketSet, State, nanos::nanos, state::Counter};
use crate::rate_limit::{Decisions, level::Level};

impl BucketSet {
    /// The state of each quota, in their order.
    pub(in crate::rate_limit) fn iter(&self) -> impl Iterator<Item = &State> {
        self.homes()
    }

    /// What is told to one that asks for `units`, and takes none.
    pub(in crate::rate_limit) fn look(&self, units: NonZeroU32, now: Duration) -> Decisions {
        self.peek_all(units, nanos(now))
    }

    /// Takes `units` from all or from none, without the shared ones.
    pub(in crate::rate_limit) fn take_alone(&self, units: NonZeroU32, now: Duration) -> Decisions {
        self.go_on_alone();
        self.take_all(units, nanos(now))
    }

    /// The shared ones do not know of what happens here.
    pub(in crate::rate_limit) fn go_on_alone(&self) {
        self.iter().for_each(|state| state.went_on.store(true, Ordering::Release));
    }
}

impl State {
    /// How it stands. That of a window is by this process's clock.
    pub(in crate::rate_limit) fn level(&self, now: Duration) -> Level {
        match &self.counter {
            Counter::Gcra(gcra) => Level::Gcra(gcra.ahead_of(nanos(now))),
            Counter::Window(window) => window.level(nanos(now)),
        }
    }

    /// Stands as the shared one does.
    pub(in crate::rate_limit) fn follow(&self, level: &Level, now: Duration) {
        match (&self.counter, level) {
            (Counter::Gcra(gcra), Level::Gcra(missing)) => gcra.follow(*missing, nanos(now)),
            (Counter::Window(window), Level::Window { slots, .. }) => {
                window.follow(slots, nanos(now));
            }
            // Never asked for.
            _ => return,
        }
        self.went_on.store(false, Ordering::Release);
    }

    /// Whether it has gone on alone.
    pub(in crate::rate_limit) fn went_on(&self) -> bool {
        self.went_on.load(Ordering::Acquire)
    }
}
