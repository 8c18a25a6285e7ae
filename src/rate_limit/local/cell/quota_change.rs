use std::sync::Arc;

use super::{
    Inner, MOST_UNUSED, States,
    entry::{Entry, Guard, Reliance},
};
use crate::rate_limit::{
    local::{
        state::{Counter, Spec, State},
        window::Debt,
    },
    measure::{Measure, Rate},
};

/// How a new state starts.
enum Start {
    /// As if it had counted from the beginning.
    Counted,
    /// Full, beside existing states that stay enforced for a while.
    Full,
}

impl Inner {
    /// Adds the states that `specs` lack.
    ///
    /// A new state has not counted the units taken before it joined, but existing states have. It
    /// starts in one of two ways:
    ///
    /// - **Counted.** A state that refills no faster has used up at least what the new one would
    ///   have, and the fastest such state gives the tightest bound. A new sliding window counts
    ///   more than what a GCRA state has used up, because GCRA may have let through a window's
    ///   refill on top. A window of the same length has counted in the same slots, which are
    ///   copied.
    /// - **Full.** If the slowest quota of the list refills more slowly than every other state, the
    ///   list stays within the lines of all of them in the end. Until then they are enforced beside
    ///   it, as [guards](Guard). A new state that refills faster than an existing one
    ///   [relies](Reliance) on the slowest quota, and is not sufficient evidence for later states
    ///   while that matters.
    ///
    /// It is counted, unless that leaves no units and starting full is possible.
    pub(super) fn join(&mut self, specs: &[Spec], now: u64) -> States {
        if self.is_forgettable(now) {
            self.begin_again(now);
        }
        let earlier = self.entries.len();
        let mut order: Vec<&Spec> = specs.iter().collect();
        order.sort_by_key(|spec| spec.measure.rate());
        let slowest = order.first().map(|spec| spec.measure);
        for spec in order {
            let Some(slowest) = slowest else { break };
            match self.entries.iter().position(|entry| entry.measure() == spec.measure) {
                Some(at) => self.use_again(at, slowest.rate(), now),
                None => {
                    self.entries.push(Entry::new(State::new(spec, now)));
                    self.begin(earlier, slowest, now);
                    // What it has from a state that it copies may rely on a quota of another list.
                    self.use_again(self.entries.len().saturating_sub(1), slowest.rate(), now);
                }
            }
        }
        let states = specs.iter().filter_map(|spec| self.find(spec.measure));
        let states = states.map(|entry| Arc::clone(&entry.state)).collect();
        self.close(now);
        states
    }

    /// Starts afresh after a long time without takes.
    fn begin_again(&mut self, now: u64) {
        self.entries.retain(|entry| entry.is_in_use());
        self.entries.iter_mut().for_each(|entry| entry.more = None);
        self.born = now;
    }

    /// Decides how the last state starts, given the first `earlier` ones.
    fn begin(&mut self, earlier: usize, slowest: Measure, now: u64) {
        let Some(mut new) = self.entries.pop() else { return };
        let (measure, known) = (new.measure(), self.entries.get(..earlier).unwrap_or_default());
        let keeps_all = known
            .iter()
            .all(|entry| entry.measure() == slowest || slowest.rate() < entry.measure().rate());
        let start = self.count(&mut new, known, keeps_all, now);
        let left = new.left(now);
        let keeper = self.find(slowest).map_or(left, |entry| entry.left(now));
        let mut guards = Vec::new();
        let mut relies: Option<Reliance> = None;
        for entry in known {
            let other = entry.measure();
            let (overtaken, on) = if other.rate() > measure.rate() {
                (time_ahead(entry, (measure, left), now), None)
            } else if matches!(start, Start::Counted) {
                continue;
            } else {
                let until = now.saturating_add(
                    measure.rate().outpaces(other.rate(), entry.used(now).saturating_add(1)),
                );
                let until = until.max(relies.map_or(0, |reliance| reliance.until));
                relies = Some(Reliance { on: slowest.rate(), until });
                if other == slowest {
                    continue;
                }
                (time_ahead(entry, (slowest, keeper), now), Some(slowest.rate()))
            };
            if overtaken > 0 {
                guards.push(Guard { measure: other, until: now.saturating_add(overtaken), on });
            }
        }
        if !guards.is_empty() || relies.is_some() {
            let more = new.more();
            more.guards.extend(guards);
            more.relies = relies.or(more.relies);
        }
        self.entries.push(new);
    }

    /// If the state relies on a slower quota and is now used without it, makes it count as if it
    /// were new, which needs none of the guards that were to last until that quota was overtaken.
    fn use_again(&mut self, at: usize, slowest: Rate, now: u64) {
        let is_without = |on: Rate| on < slowest;
        if !self.entries.get(at).is_some_and(|entry| entry.relies_on(is_without)) {
            return;
        }
        let mut entry = self.entries.remove(at);
        self.raise(&mut entry, &self.entries, now);
        let more = entry.more();
        more.relies = more.relies.filter(|reliance| !is_without(reliance.on));
        more.guards.retain(|guard| !guard.on.is_some_and(is_without));
        self.entries.insert(at, entry);
    }

    /// Starts a new state as if it had counted everything, if that leaves units or is required.
    fn count(&self, new: &mut Entry, known: &[Entry], keeps_all: bool, now: u64) -> Start {
        let rate = new.measure().rate();
        let is_slowest = known.iter().all(|entry| entry.measure().rate() >= rate);
        let twins = known.iter().filter(|entry| is_twin(entry.measure(), new.measure()));
        let size = |entry: &&Entry| entry.measure().size();
        if is_slowest && let Some(twin) = twins.clone().min_by_key(size) {
            copy(twin, new, now);
            new.more().guards.extend_from_slice(twin.guards());
            new.more().relies = twin.more.as_ref().and_then(|more| more.relies);
            // Others that refill as fast may remember more.
            self.raise(new, known, now);
            return Start::Counted;
        }
        let has_witness = known.iter().any(|entry| entry.measure().rate() <= rate);
        if !has_witness {
            return Start::Full;
        }
        let slower =
            known.iter().map(|entry| entry.measure().rate()).filter(|other| *other <= rate);
        let fastest = slower.max();
        let smaller = twins.filter(|twin| Some(twin.measure().rate()) == fastest);
        if let Some(twin) = smaller.max_by_key(size) {
            copy(twin, new, now);
        } else if keeps_all && self.witnessed(new.measure(), known, now).1 >= new.measure().size() {
            return Start::Full;
        }
        self.raise(new, known, now);
        Start::Counted
    }

    /// Raises a state to at least what the states in `known` that refill no faster have counted.
    fn raise(&self, entry: &mut Entry, known: &[Entry], now: u64) {
        let measure = entry.measure();
        let (ahead, units) = self.witnessed(measure, known, now);
        let state = Arc::clone(&entry.state);
        match &state.counter {
            Counter::Gcra(gcra) => gcra.raise(ahead, now),
            Counter::Window(window) => {
                let units = u64::try_from(units).unwrap_or(u64::MAX);
                window.raise(units, &mut entry.more().debt, now);
            }
        }
    }

    /// What `measure` would have used up had it counted from the beginning: in nanoseconds of
    /// refill if it is GCRA, and in units.
    fn witnessed(&self, measure: Measure, known: &[Entry], now: u64) -> (u64, i128) {
        let rate = measure.rate();
        let mut slower: Vec<&Entry> =
            known.iter().filter(|entry| entry.measure().rate() <= rate).collect();
        slower.sort_by_key(|entry| std::cmp::Reverse(entry.measure().rate()));
        let (mut ahead, mut units, mut until) = (0, 0, None);
        for entry in slower {
            let other = entry.measure().rate();
            if until.is_some_and(|until: Rate| other < until) {
                break;
            }
            let (entry_ahead, entry_units) = self.witnessed_by(entry, measure, now);
            (ahead, units) = (ahead.max(entry_ahead), units.max(entry_units));
            let relies = entry.more.as_ref().is_some_and(|more| more.relies.is_some());
            if !relies {
                until = Some(other);
            }
        }
        (ahead, units)
    }

    fn witnessed_by(&self, entry: &Entry, measure: Measure, now: u64) -> (u64, i128) {
        let full_at = match &entry.state.counter {
            Counter::Gcra(gcra) => Some(gcra.full_at()),
            Counter::Window(_) => None,
        };
        match (measure, entry.measure()) {
            (Measure::Gcra { interval, .. }, Measure::Gcra { interval: other, .. }) => {
                let ahead = u128::from(full_at.unwrap_or(now).saturating_sub(now));
                let ahead = (ahead * u128::from(interval)).div_ceil(other.into());
                let ahead = u64::try_from(ahead).unwrap_or(u64::MAX);
                (ahead, ahead.div_ceil(interval).into())
            }
            (Measure::Gcra { interval, .. }, Measure::Window { .. }) => {
                let units = u64::try_from(entry.used(now)).unwrap_or(u64::MAX);
                (units.saturating_mul(interval), units.into())
            }
            (Measure::Window { window, .. }, other) => {
                // What has refilled within the window counts as well.
                let since = window.min(now.saturating_sub(self.born));
                let (used, refilled) = match (other, full_at) {
                    // What has left the other window, at most a whole limit in each of its lengths.
                    (Measure::Window { limit, window: others }, _) => {
                        let windows = since.saturating_sub(others).div_ceil(others);
                        (entry.used(now), i128::from(windows) * i128::from(limit))
                    }
                    (Measure::Gcra { .. }, full_at) => {
                        let span = since.saturating_add(full_at.unwrap_or(now)).saturating_sub(now);
                        (0, other.rate().units_in(span).into())
                    }
                };
                (0, used.saturating_add(refilled))
            }
        }
    }

    /// If there are too many unused states, closes the cell until one of them is full, and drops
    /// that one.
    fn close(&mut self, now: u64) {
        let unused = |entry: &&Entry| !entry.is_in_use();
        while self.entries.iter().filter(unused).count() > MOST_UNUSED {
            let until = |entry: &Entry| {
                let guards = self.entries.iter().flat_map(Entry::guards);
                let guarding = guards.filter(|guard| guard.measure == entry.measure());
                let guarded = guarding.map(|guard| guard.until).max().unwrap_or(0);
                guarded.max(entry.full_at(now))
            };
            let all = self.entries.iter().enumerate().filter(|(_, entry)| !entry.is_in_use());
            let first = all.map(|(at, entry)| (until(entry), at)).min();
            let Some((until, at)) = first else { return };
            self.closed_until = self.closed_until.max(until);
            self.entries.remove(at);
        }
    }
}

/// The time until the line of the state `of` lies above everything that a quota with `left` units
/// can let through.
fn time_ahead(of: &Entry, (measure, left): (Measure, i128), now: u64) -> u64 {
    let stair = if of.measure().window() > 0 { of.measure().size() } else { 0 };
    let units = left.saturating_sub(of.left(now)).saturating_add(stair);
    of.measure().rate().outpaces(measure.rate(), units)
}

fn is_twin(one: Measure, other: Measure) -> bool {
    one.window() > 0 && one.window() == other.window()
}

fn copy(twin: &Entry, new: &mut Entry, now: u64) {
    if let (Counter::Window(from), Counter::Window(to)) =
        (&twin.state.counter, &Arc::clone(&new.state).counter)
    {
        let debt = twin.more.as_ref().map_or_else(Debt::default, |more| more.debt);
        to.copy(from, &mut new.more().debt, &debt, now);
    }
}
