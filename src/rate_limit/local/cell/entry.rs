//! A state of a cell, with what a state alone does not know.

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use crate::rate_limit::{
    Decision,
    local::{nanos::nanos, state::State, window::Debt},
    measure::{Measure, Rate},
};

/// How long a cell in which nothing is used up is kept, in nanoseconds.
pub(crate) const RETENTION: u64 = 600_000_000_000;

pub(super) struct Entry {
    pub(super) state: Arc<State>,
    /// Only for states that are not alone in their cell.
    pub(super) more: Option<Box<More>>,
}

#[derive(Default)]
pub(super) struct More {
    pub(super) debt: Debt,
    /// Whether some units were not counted.
    pub(super) is_clipped: bool,
    pub(super) guards: Vec<Guard>,
    pub(super) relies: Option<Reliance>,
    /// When the state was first found unused by any set of buckets.
    pub(super) unused_since: Option<u64>,
}

/// A state that is enforced together with this one.
#[derive(Clone, Copy)]
pub(super) struct Guard {
    pub(super) measure: Measure,
    pub(super) until: u64,
    /// The rate of the slowest quota of the list, if the guard lasts until that one is behind.
    pub(super) on: Option<Rate>,
}

/// The state started full because a slower quota was applied with it.
#[derive(Clone, Copy)]
pub(super) struct Reliance {
    pub(super) on: Rate,
    pub(super) until: u64,
}

impl Entry {
    pub(super) fn new(state: State) -> Self {
        Self { state: Arc::new(state), more: None }
    }

    pub(super) fn measure(&self) -> Measure {
        self.state.measure()
    }

    pub(super) fn more(&mut self) -> &mut More {
        self.more.get_or_insert_default()
    }

    pub(super) fn guards(&self) -> &[Guard] {
        self.more.as_ref().map_or(&[], |more| &more.guards)
    }

    /// Whether the state, or one of its guards, relies on a quota with such a rate.
    pub(super) fn relies_on(&self, matches: impl Fn(Rate) -> bool) -> bool {
        let relies = self.more.as_ref().and_then(|more| more.relies).map(|reliance| reliance.on);
        relies.into_iter().chain(self.guards().iter().filter_map(|guard| guard.on)).any(matches)
    }

    pub(super) fn owed(&self) -> u64 {
        self.more.as_ref().map_or(0, |more| more.debt.units)
    }

    pub(super) fn is_clipped(&self) -> bool {
        self.more.as_ref().is_some_and(|more| more.is_clipped)
    }

    /// Whether the state alone decides.
    pub(super) fn is_simple(&self) -> bool {
        self.owed() == 0 && self.guards().is_empty()
    }

    pub(super) fn is_in_use(&self) -> bool {
        Arc::strong_count(&self.state) > 1
    }

    pub(super) fn is_long_unused(&self, now: u64) -> bool {
        let since = self.more.as_ref().and_then(|more| more.unused_since);
        !self.is_in_use() && since.is_some_and(|since| since.saturating_add(RETENTION) <= now)
    }

    pub(super) fn is_full(&self, now: u64) -> bool {
        self.owed() == 0 && self.state.is_full(now)
    }

    /// When nothing is used up or owed any more.
    pub(super) fn full_at(&self, now: u64) -> u64 {
        let all = u32::try_from(self.measure().size()).ok().and_then(NonZeroU32::new);
        match all {
            Some(all) if self.owed() > 0 => {
                now.saturating_add(nanos(self.peek(all, now).next_unit_in()))
            }
            _ => self.state.full_at().max(now),
        }
    }

    pub(super) fn settle(&mut self, now: u64) {
        let Some(more) = &mut self.more else { return };
        self.state.settle(&mut more.debt, now);
        more.guards.retain(|guard| guard.until > now);
        more.relies = more.relies.filter(|reliance| reliance.until > now);
        if more.debt.units == 0 && self.state.is_full(now) {
            more.is_clipped = false;
        }
    }

    pub(super) fn peek(&self, units: NonZeroU32, now: u64) -> Decision {
        match &self.more {
            Some(more) => self.state.peek_owing(units, &more.debt, now),
            None => self.state.peek(units, now),
        }
    }

    pub(super) fn add(
        &mut self,
        units: NonZeroU32,
        beyond: Option<u64>,
        now: u64,
        epoch: &AtomicU32,
    ) {
        let state = Arc::clone(&self.state);
        let more = self.more();
        let (owed, has_room) = (more.debt.units, state.has_room(units, now));
        if owed == 0 && !has_room {
            go_on(epoch);
        }
        more.is_clipped |= state.add(units, &mut more.debt, beyond, now);
        if has_room && owed == 0 && more.debt.units > 0 {
            // Other requests were faster.
            go_on(epoch);
            state.touch();
        }
    }

    pub(super) fn charge(&self, units: NonZeroU32, now: u64) {
        let debt = self.more.as_ref().map_or_else(Debt::default, |more| more.debt);
        self.state.charge(units, &debt, now);
    }

    pub(super) fn give_back(&mut self, units: NonZeroU32, now: u64) {
        match &mut self.more {
            Some(more) => self.state.give_back(units, &mut more.debt, now),
            None => self.state.give_back(units, &mut Debt::default(), now),
        }
    }

    /// The units used up or owed.
    pub(super) fn used(&self, now: u64) -> i128 {
        let debt = self.more.as_ref().map_or_else(Debt::default, |more| more.debt);
        self.state.used(&debt, now)
    }

    /// The units left; negative if some are owed.
    pub(super) fn left(&self, now: u64) -> i128 {
        self.measure().size() - self.used(now)
    }
}

/// Ends an epoch, and skips the value that stands for none.
pub(super) fn go_on(epoch: &AtomicU32) {
    if epoch.fetch_add(1, Ordering::AcqRel) == u32::MAX {
        epoch.fetch_add(1, Ordering::AcqRel);
    }
}
