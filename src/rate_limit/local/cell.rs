//! Everything that is counted of one subject.
//!
//! A cell has a [`State`] for each distinct quota under which its subject is or was counted. Each
//! state counts all units taken in the cell, whichever quota admitted them, so no change of quotas
//! makes any of them forget what was taken.
//!
//! # Why no change lets more through
//!
//! Let N(s, t) be the units admitted between s and t, and the *line* of a quota what it allows in
//! an interval of that length. For each state, at any time t and for each s, one of two invariants
//! holds:
//!
//! 1. The state has counted all of N(s, t).
//! 2. A list of quotas was applied, each of which refills at least as fast as this one, and N(s, t)
//!    plus whatever this state alone admits later stays within the lines of all of them.
//!
//! A request that a list of quotas admits is within the lines of that list if the first holds for
//! all of its states, and otherwise within those of another list that was applied.
//!
//! - *A request is admitted.* The admitting states have room, which preserves both invariants. The
//!   other states add the units. They may stop adding once they are used up, if all quotas of the
//!   admitting list refill at least as fast: then the second holds for them. So a slow quota
//!   recovers after a fast one was applied. Lines of sliding windows are stairs, so those states
//!   stop a window later.
//! - *A quota joins*: see [`Inner::join`].
//! - *A state is dropped* when it is full and no key has had its quota for [`RETENTION`]; *a cell
//!   is dropped* when all its states have been full and unused for as long. A quota that joins
//!   later may start full, so one more burst may pass; but not again before that has refilled.

mod entry;
mod quota_change;

use std::{
    num::NonZeroU32,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use smallvec::SmallVec;

pub(super) use self::entry::RETENTION;
use self::entry::{Entry, go_on};
use super::state::{Spec, State};
use crate::rate_limit::{
    Decision,
    measure::{Measure, Rate},
};

/// How many states that are unused but not yet full are kept in a cell. A client whose quotas
/// change more often waits until one of them is full.
const MOST_UNUSED: usize = 64;

pub(super) type States = SmallVec<[Arc<State>; 1]>;

pub(super) struct Cell {
    /// Advanced before any change that lock-free users of the states must notice.
    epoch: AtomicU32,
    inner: Mutex<Inner>,
}

/// The value that stands for no epoch: the states are not alone.
pub(super) const NEVER: u32 = 0;

struct Inner {
    entries: SmallVec<[Entry; 1]>,
    /// No units were taken before this time.
    born: u64,
    /// No units may be taken before this time.
    closed_until: u64,
}

/// A locked cell. Only sets of buckets that are alone with their states still change it.
pub(super) struct Locked<'a> {
    epoch: &'a AtomicU32,
    inner: MutexGuard<'a, Inner>,
}

impl Cell {
    pub(super) fn new(now: u64) -> Self {
        let inner = Inner { entries: SmallVec::new(), born: now, closed_until: 0 };
        Self { epoch: AtomicU32::new(NEVER + 1), inner: Mutex::new(inner) }
    }

    pub(super) fn lock(&self) -> Locked<'_> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        Locked { epoch: &self.epoch, inner }
    }

    pub(super) fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Acquire)
    }
}

impl Locked<'_> {
    /// Brings all states to `now`, and drops unused ones.
    pub(super) fn settle(&mut self, now: u64) {
        for entry in &mut self.inner.entries {
            entry.settle(now);
        }
        self.inner.drop_unused(now);
    }

    /// Drops unused states.
    pub(super) fn tidy_up(&mut self, now: u64) {
        if self.inner.entries.len() > 1 {
            self.settle(now);
        }
    }

    /// The epoch, if `own` are all states of the cell, so that they may be used without the lock.
    pub(super) fn alone(&self, own: &[Arc<State>], now: u64) -> u32 {
        let inner = &*self.inner;
        let is_alone = inner.entries.len() == own.len()
            && inner.closed_until <= now
            && inner.entries.iter().all(Entry::is_simple);
        if is_alone { self.epoch.load(Ordering::Acquire) } else { NEVER }
    }

    /// The decision on `units`, without taking them.
    pub(super) fn look(&self, state: &Arc<State>, units: NonZeroU32, now: u64) -> Decision {
        let Some(entry) = self.inner.entry(state) else { return state.peek(units, now) };
        let mut decision = entry.peek(units, now);
        for guard in entry.guards().iter().filter(|guard| guard.until > now) {
            if let Some(guarding) = self.inner.find(guard.measure) {
                let left = Duration::from_nanos(guard.until - now);
                decision = both(decision, within(guarding.peek(units, now), left));
            }
        }
        match self.inner.closed_until.checked_sub(now) {
            None | Some(0) => decision,
            Some(wait) => both(decision, Decision::deny(Duration::from_nanos(wait))),
        }
    }

    /// Counts units that were taken from all of `own` in the other states.
    pub(super) fn count(&mut self, own: &[Arc<State>], units: NonZeroU32, now: u64) {
        if self.inner.entries.len() == own.len() {
            return;
        }
        let Some(slowest) = own.iter().map(|state| state.measure().rate()).min() else { return };
        for at in 0..self.inner.entries.len() {
            let beyond = self.inner.beyond(at, slowest);
            let Some(entry) = self.inner.entries.get_mut(at) else { return };
            if !own.iter().any(|state| Arc::ptr_eq(state, &entry.state)) {
                entry.add(units, beyond, now, self.epoch);
            }
        }
    }

    pub(super) fn charge(&mut self, units: NonZeroU32, now: u64) {
        self.inner.entries.iter_mut().for_each(|entry| entry.charge(units, now));
    }

    /// Charges all states except `own`.
    pub(super) fn charge_others(&mut self, own: &[Arc<State>], units: NonZeroU32, now: u64) {
        for entry in &mut self.inner.entries {
            if !own.iter().any(|state| Arc::ptr_eq(state, &entry.state)) {
                entry.charge(units, now);
            }
        }
    }

    /// Refunds `own`, and the states that have counted every unit.
    pub(super) fn give_back(&mut self, own: &[Arc<State>], units: NonZeroU32, now: u64) {
        for entry in &mut self.inner.entries {
            let is_own = own.iter().any(|state| Arc::ptr_eq(state, &entry.state));
            if is_own || !entry.is_clipped() {
                entry.give_back(units, now);
            }
        }
    }

    /// Whether the cell is equivalent to a new one.
    pub(super) fn is_forgettable(&self, now: u64) -> bool {
        self.inner.is_forgettable(now)
    }

    #[cfg(test)]
    pub(super) fn states(&self) -> usize {
        self.inner.entries.len()
    }

    /// Adds the states of these quotas, and returns them.
    pub(super) fn join(&mut self, specs: &[Spec], now: u64) -> States {
        self.settle(now);
        let is_new = |spec: &Spec| self.inner.find(spec.measure).is_none();
        if !self.inner.entries.is_empty() && specs.iter().any(is_new) {
            self.go_on();
        }
        self.inner.join(specs, now)
    }

    /// Ends the epoch. A lock-free take happens either before this, and the state includes it, or
    /// after, and then sees that the epoch has ended.
    fn go_on(&self) {
        go_on(self.epoch);
        self.inner.entries.iter().for_each(|entry| entry.state.touch());
    }
}

/// The decision if both must admit.
pub(super) fn both(one: Decision, other: Decision) -> Decision {
    let remaining = one.remaining().min(other.remaining());
    let waits = || one.next_unit_in().max(other.next_unit_in());
    match (one.is_admitted(), other.is_admitted()) {
        (true, true) => {
            let next = match one.remaining().cmp(&other.remaining()) {
                std::cmp::Ordering::Less => one.next_unit_in(),
                std::cmp::Ordering::Equal => waits(),
                std::cmp::Ordering::Greater => other.next_unit_in(),
            };
            Decision::admit(remaining, next)
        }
        (true, false) => Decision::deny_with(remaining, other.next_unit_in()),
        (false, true) => Decision::deny_with(remaining, one.next_unit_in()),
        (false, false) => Decision::deny_with(remaining, waits()),
    }
}

/// Limits the wait of `decision`, which no longer applies after `left`.
fn within(decision: Decision, left: Duration) -> Decision {
    let wait = decision.next_unit_in().min(left);
    if decision.is_admitted() {
        Decision::admit(decision.remaining(), wait)
    } else {
        Decision::deny_with(decision.remaining(), wait)
    }
}

impl Inner {
    fn entry(&self, state: &Arc<State>) -> Option<&Entry> {
        self.entries.iter().find(|entry| Arc::ptr_eq(&entry.state, state))
    }

    fn find(&self, measure: Measure) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.measure() == measure)
    }

    /// How long a state may be counted as used up beyond its size, when a list with the slowest
    /// rate `slowest` admits; `None` if it must count everything.
    fn beyond(&self, at: usize, slowest: Rate) -> Option<u64> {
        let rate = self.entries.get(at)?.measure().rate();
        if slowest < rate {
            return None;
        }
        let others = self.entries.iter().enumerate().filter(|(other, _)| *other != at);
        let faster = others.map(|(_, entry)| entry.measure()).filter(|other| other.rate() >= rate);
        let longest = |longest: u64, other: Measure| {
            let tied = if other.rate() == rate { self.window_of(at) } else { 0 };
            longest.max(other.window()).max(tied)
        };
        Some(faster.fold(0, longest))
    }

    fn window_of(&self, at: usize) -> u64 {
        self.entries.get(at).map_or(0, |entry| entry.measure().window())
    }

    /// Drops the states that are full and that no key or guard has used for a while.
    fn drop_unused(&mut self, now: u64) {
        if self.entries.len() < 2 {
            return;
        }
        for entry in &mut self.entries {
            if !entry.is_in_use() {
                entry.more().unused_since.get_or_insert(now);
            } else if let Some(more) = &mut entry.more {
                more.unused_since = None;
            }
        }
        let guards: SmallVec<[Measure; 8]> =
            self.entries.iter().flat_map(Entry::guards).map(|guard| guard.measure).collect();
        self.entries.retain(|entry| {
            !entry.is_long_unused(now) || !entry.is_full(now) || guards.contains(&entry.measure())
        });
    }

    fn is_forgettable(&self, now: u64) -> bool {
        let is_idle = |entry: &Entry| {
            entry.owed() == 0 && entry.state.full_at().saturating_add(RETENTION) <= now
        };
        self.closed_until <= now && self.entries.iter().all(is_idle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rate_limit::{Quota, local::gcra::Rates};

    const SECOND: Duration = Duration::from_secs(1);

    fn window(limit: u32, seconds: u32) -> Measure {
        Measure::of(&Quota::sliding(limit, SECOND * seconds).unwrap())
    }

    fn gcra(per_second: u32) -> Measure {
        Measure::of(&Quota::per_second(per_second).unwrap())
    }

    /// How many seconds each of these quotas is counted as used up beyond its size, when the slowest
    /// quota of those that admit is `slowest`.
    fn beyond<const N: usize>(quotas: [Measure; N], slowest: Measure) -> [Option<u64>; N] {
        let mut rates = Rates::default();
        let cell = Cell::new(0);
        let mut locked = cell.lock();
        locked.join(&quotas.map(|quota| Spec::new(quota, &mut rates)), 0);
        std::array::from_fn(|at| {
            let nanos = locked.inner.beyond(at, slowest.rate())?;
            Some(nanos / 1_000_000_000)
        })
    }

    #[test]
    fn a_quota_counts_everything_that_a_slower_one_admits() {
        assert_eq!(beyond([window(20, 10), gcra(3)], window(10, 10)), [None, None]);
        assert_eq!(beyond([gcra(1), gcra(3)], gcra(1)), [Some(0), None]);
    }

    #[test]
    fn a_used_up_quota_counts_for_as_long_as_the_longest_window_that_refills_faster() {
        assert_eq!(beyond([gcra(1), window(60, 30), window(20, 10)], gcra(2))[0], Some(30));
        assert_eq!(beyond([window(10, 10), gcra(2)], gcra(2))[0], Some(0), "its own is no stair");
    }

    #[test]
    fn beside_a_quota_that_refills_as_fast_its_own_window_counts_too() {
        let (short, long) = (window(10, 10), window(20, 20));
        assert_eq!(beyond([short, long], short), [Some(20), Some(20)]);
        assert_eq!(beyond([short, gcra(1)], short), [Some(10), Some(10)]);
    }
}
