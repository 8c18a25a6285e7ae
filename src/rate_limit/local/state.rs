#[cfg(feature = "redis")]
use std::sync::atomic::AtomicBool;
use std::{num::NonZeroU32, sync::Arc};

#[cfg(test)]
use super::interleaving::step;
use super::{
    gcra::{self, Gcra, Rates},
    window::{Debt, Window},
};
use crate::rate_limit::{Decision, measure::Measure};

/// The units taken in a cell, as one quota counts them.
pub(in crate::rate_limit) struct State {
    measure: Measure,
    pub(super) counter: Counter,
    /// Whether it has diverged from the shared bucket since it last followed that.
    #[cfg(feature = "redis")]
    pub(super) diverged: AtomicBool,
}

pub(super) enum Counter {
    Gcra(Gcra),
    Window(Window),
}

/// The parameters of a state.
pub(super) struct Spec {
    pub(super) measure: Measure,
    /// For GCRA.
    rate: Option<Arc<gcra::Rate>>,
}

impl Spec {
    pub(super) fn new(measure: Measure, rates: &mut Rates) -> Self {
        let rate = match measure {
            Measure::Gcra { burst, interval } => Some(rates.of(burst, interval)),
            Measure::Window { .. } => None,
        };
        Self { measure, rate }
    }
}

impl State {
    /// A state in which nothing is used up.
    pub(super) fn new(spec: &Spec, now: u64) -> Self {
        let counter = match (spec.measure, &spec.rate) {
            (Measure::Gcra { .. }, Some(rate)) => Counter::Gcra(Gcra::new(Arc::clone(rate), now)),
            (Measure::Gcra { burst, interval }, None) => {
                Counter::Gcra(Gcra::new(Rates::default().of(burst, interval), now))
            }
            (Measure::Window { limit, window }, _) => Counter::Window(Window::new(limit, window)),
        };
        Self {
            measure: spec.measure,
            counter,
            #[cfg(feature = "redis")]
            diverged: AtomicBool::new(false),
        }
    }

    pub(super) fn measure(&self) -> Measure {
        self.measure
    }

    /// Also returns where the units were booked, for [`undo`](Self::undo).
    pub(super) fn take(&self, units: NonZeroU32, now: u64) -> (Decision, u64) {
        #[cfg(test)]
        step();
        match &self.counter {
            Counter::Gcra(gcra) => gcra.take(units, now),
            Counter::Window(window) => window.take(units, now),
        }
    }

    /// Reverts a take that was just made. If other requests have taken from a GCRA bucket
    /// meanwhile, the units stay counted and refill with time.
    pub(super) fn undo(&self, units: NonZeroU32, booked: u64) {
        #[cfg(test)]
        step();
        match &self.counter {
            Counter::Gcra(gcra) => gcra.undo(units, booked),
            Counter::Window(window) => window.undo(units, booked),
        }
    }

    pub(super) fn peek(&self, units: NonZeroU32, now: u64) -> Decision {
        #[cfg(test)]
        step();
        match &self.counter {
            Counter::Gcra(gcra) => gcra.peek(units, now),
            Counter::Window(window) => window.peek(units, now),
        }
    }

    pub(super) fn peek_owing(&self, units: NonZeroU32, debt: &Debt, now: u64) -> Decision {
        match &self.counter {
            Counter::Gcra(gcra) => gcra.peek(units, now),
            Counter::Window(window) => window.peek_owing(units, debt, now),
        }
    }

    /// Counts units that another quota admitted. With `beyond`, it counts at most that many
    /// nanoseconds of refill beyond being used up. Returns whether units were left out for that.
    pub(super) fn add(
        &self,
        units: NonZeroU32,
        debt: &mut Debt,
        beyond: Option<u64>,
        now: u64,
    ) -> bool {
        match &self.counter {
            Counter::Gcra(gcra) => gcra.add(units, now, beyond),
            Counter::Window(window) => {
                let limit = u64::try_from(self.measure.size()).unwrap_or(u64::MAX);
                let most = |beyond| limit.saturating_add(self.measure.rate().units_in(beyond));
                window.add(units, debt, beyond.map(most), now)
            }
        }
    }

    /// Whether `units` can be added without debt.
    pub(super) fn has_room(&self, units: NonZeroU32, now: u64) -> bool {
        match &self.counter {
            Counter::Gcra(_) => true,
            Counter::Window(window) => window.has_room(units, now),
        }
    }

    pub(super) fn charge(&self, units: NonZeroU32, debt: &Debt, now: u64) {
        #[cfg(test)]
        step();
        match &self.counter {
            Counter::Gcra(gcra) => gcra.charge(units, now),
            Counter::Window(window) => window.charge(units, debt, now),
        }
    }

    pub(super) fn give_back(&self, units: NonZeroU32, debt: &mut Debt, now: u64) {
        #[cfg(test)]
        step();
        match &self.counter {
            Counter::Gcra(gcra) => gcra.give_back(units),
            Counter::Window(window) => window.give_back(units, debt, now),
        }
    }

    pub(super) fn settle(&self, debt: &mut Debt, now: u64) {
        if let Counter::Window(window) = &self.counter {
            window.settle(debt, now);
        }
    }

    /// Reads by an atomic update, so that later takes are ordered after it.
    pub(super) fn touch(&self) {
        match &self.counter {
            Counter::Gcra(gcra) => gcra.touch(),
            Counter::Window(window) => window.touch(),
        }
    }

    /// When the state is full, apart from debt. For a window, the latest possible time.
    pub(super) fn full_at(&self) -> u64 {
        match &self.counter {
            Counter::Gcra(gcra) => gcra.full_at(),
            Counter::Window(window) => window.full_at(),
        }
    }

    pub(super) fn is_full(&self, now: u64) -> bool {
        match &self.counter {
            Counter::Gcra(gcra) => gcra.full_at() <= now,
            Counter::Window(window) => window.used(&Debt::default(), now) == 0,
        }
    }

    /// The units used up or owed, rounded up.
    pub(super) fn used(&self, debt: &Debt, now: u64) -> i128 {
        match (&self.counter, self.measure) {
            (Counter::Gcra(gcra), Measure::Gcra { interval, .. }) => {
                gcra.ahead_of(now).div_ceil(interval).into()
            }
            (Counter::Window(window), _) => window.used(debt, now).into(),
            // Unreachable by construction.
            (Counter::Gcra(_), Measure::Window { .. }) => 0,
        }
    }
}
