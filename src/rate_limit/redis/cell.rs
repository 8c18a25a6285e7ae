//! Cells as Redis returns them, and their decisions.

use std::time::Duration;

use smallvec::SmallVec;

use crate::rate_limit::{
    Algorithm, Decision, Quota, bucket_snapshot::BucketSnapshot, quota::SLOTS,
};

const VERSION: &str = "1";
const BILLION: u64 = 1_000_000_000;
/// The nanoseconds in a slot per millisecond of its window.
const TICK: u64 = 31_250;
const LIVE: usize = SLOTS as usize + 1;

/// All states of a cell at the time of Redis' answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cell {
    pub(super) states: Vec<State>,
}

/// The units taken in a cell, as one quota counts them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct State {
    burst: u64,
    measure: Measure,
    guards: SmallVec<[Guard; 1]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Measure {
    /// In nanoseconds; `missing` is the time until the state is full.
    Gcra { interval: u64, missing: u64 },
    /// `slots` starts with the current one, which ends in `ends_in` nanoseconds.
    Window { millis: u64, ends_in: u64, slots: Box<[u64]>, debt: u64 },
}

/// A state that is enforced together with another one for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Guard {
    state: usize,
    lasts: u64,
}

/// The answer of a state to a request for some units.
#[derive(Clone, Copy)]
struct Look {
    left: u64,
    /// Nanoseconds until the request fits: zero if it does.
    wait: u64,
    /// Nanoseconds until one more unit is available.
    next: u64,
}

impl Cell {
    /// `None` if the text is not a cell.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        (words.next()? == VERSION).then_some(())?;
        let mut words = Words(words);
        let now = u128::from(words.nanos()?);
        let _lost = words.number()?;
        let count = words.number()?;
        let states =
            (0..count).map(|_| State::parse(&mut words, now)).collect::<Option<Vec<_>>>()?;
        let is_there = |guard: &Guard| guard.state < states.len();
        let is_whole = states.iter().all(|state| state.guards.iter().all(is_there));
        (is_whole && words.0.next().is_none()).then_some(Self { states })
    }

    /// The decision on `units` of `quota`. `None` if the quota has no state here.
    pub(super) fn look(&self, quota: &Quota, units: u64) -> Option<Decision> {
        let state = self.states.iter().find(|state| state.is_of(quota))?;
        let mut look = state.look(units);
        for guard in &state.guards {
            let Some(beside) = self.states.get(guard.state) else { continue };
            let beside = beside.look(units);
            let (wait, next) = (beside.wait.min(guard.lasts), beside.next.min(guard.lasts));
            look = look.and(Look { left: beside.left, wait, next });
        }
        Some(look.decision())
    }
}

impl Cell {
    /// The state of a quota, without guards. `None` if it has no state here.
    pub(super) fn level(&self, quota: &Quota) -> Option<BucketSnapshot> {
        let state = self.states.iter().find(|state| state.is_of(quota))?;
        Some(match &state.measure {
            Measure::Gcra { missing, .. } => BucketSnapshot::Gcra(*missing),
            Measure::Window { ends_in, slots, debt, .. } => {
                let mut held: SmallVec<[u64; LIVE]> = slots.iter().copied().collect();
                if held.is_empty() {
                    held.push(0);
                }
                // Debt counts as if it were charged.
                let room = (2 * state.burst).saturating_sub(held.iter().sum());
                if let Some(current) = held.first_mut() {
                    *current += room.min(*debt);
                }
                let units = |units| u32::try_from(units).unwrap_or(u32::MAX);
                BucketSnapshot::Window {
                    slot_ends_in: Duration::from_nanos(*ends_in),
                    slots: held.into_iter().map(units).collect(),
                }
            }
        })
    }
}

impl State {
    fn parse<'t>(words: &mut Words<impl Iterator<Item = &'t str>>, now: u128) -> Option<Self> {
        let (kind, burst) = (words.0.next()?, words.number()?);
        let measure = match kind {
            "g" => {
                let (interval, missing) = (words.nanos()?, words.nanos()?);
                let _full_for = words.0.next()?;
                (interval > 0).then_some(Measure::Gcra { interval, missing })?
            }
            "w" => {
                let (millis, number, debt) = (words.number()?, words.number()?, words.number()?);
                let _full_for = words.0.next()?;
                let held = usize::try_from(words.number()?).ok().filter(|held| *held <= LIVE)?;
                let slots = (0..held).map(|_| words.number()).collect::<Option<_>>()?;
                let ends = u128::from(number + 1) * u128::from(millis) * u128::from(TICK);
                let ends_in = u64::try_from(ends.saturating_sub(now)).ok()?;
                (millis > 0).then_some(Measure::Window { millis, ends_in, slots, debt })?
            }
            _ => return None,
        };
        let guard = |words: &mut Words<_>| {
            let state = usize::try_from(words.number()?).ok()?.checked_sub(1)?;
            Some(Guard { state, lasts: words.number()?.saturating_mul(1_000_000) })
        };
        let guards = (0..words.number()?).map(|_| guard(words)).collect::<Option<_>>()?;
        Some(Self { burst: Some(burst).filter(|burst| *burst > 0)?, measure, guards })
    }

    fn is_of(&self, quota: &Quota) -> bool {
        self.burst == u64::from(quota.burst_size().get())
            && match (&self.measure, quota.algorithm()) {
                (Measure::Gcra { interval, .. }, Algorithm::Gcra) => {
                    u128::from(*interval) == quota.interval().as_nanos()
                }
                (Measure::Window { millis, .. }, Algorithm::SlidingWindow) => {
                    u128::from(*millis) == quota.window().as_millis()
                }
                _ => false,
            }
    }

    fn look(&self, units: u64) -> Look {
        let fits_at_all = units <= self.burst;
        match &self.measure {
            Measure::Gcra { interval, missing } => {
                let capacity = interval.saturating_mul(self.burst);
                let left = capacity.saturating_sub(*missing) / interval;
                let wait = missing.saturating_add(interval.saturating_mul(units));
                let wait = if fits_at_all { wait.saturating_sub(capacity) } else { u64::MAX };
                let all_but_one = capacity.saturating_sub(*interval);
                let next = if *missing > all_but_one {
                    missing - all_but_one
                } else {
                    // 0 for a full bucket, otherwise 1 ns to one interval.
                    missing.checked_sub(1).map_or(0, |missing| missing % interval + 1)
                };
                Look { left, wait, next }
            }
            Measure::Window { slots, debt, .. } => {
                let used = slots.iter().sum::<u64>() + debt;
                let after = |units: u64| {
                    let too_many = (used + units).saturating_sub(self.burst);
                    if too_many == 0 { 0 } else { self.until_back(too_many) }
                };
                let left = self.burst.saturating_sub(used);
                let next = if left > 0 { self.until_back(1) } else { after(1) };
                Look { left, wait: if fits_at_all { after(units) } else { u64::MAX }, next }
            }
        }
    }

    /// The time until `units` of a window are back. Debt takes up the room that appears first.
    fn until_back(&self, units: u64) -> u64 {
        let Measure::Window { millis, ends_in, slots, debt } = &self.measure else { return 0 };
        let mut held = [0; LIVE];
        for (age, units) in held.iter_mut().zip(slots) {
            *age = *units;
        }
        let (mut total, mut debt) = (held.iter().sum::<u64>(), *debt);
        let Some(target) = (total + debt).checked_sub(units) else { return 0 };
        if units == 0 {
            return 0;
        }
        let (slot, mut passed) = (millis.saturating_mul(TICK), 0_u64);
        // After one turn of all slots, each slot takes in exactly what leaves it.
        for turn in 0..4 {
            for _ in 0..LIVE {
                held.rotate_right(1);
                let [current, ..] = &mut held;
                total -= *current;
                *current = debt.min(self.burst.saturating_sub(total));
                (total, debt) = (total + *current, debt - *current);
                if total + debt <= target {
                    return ends_in.saturating_add(slot.saturating_mul(passed));
                }
                passed += 1;
            }
            if turn == 0 {
                // Skips turns that only pay off debt and do not reach the target.
                let turns = debt.min((total + debt).saturating_sub(target + 1)) / self.burst;
                debt -= turns.saturating_mul(self.burst);
                passed = passed.saturating_add(turns.saturating_mul(LIVE as u64));
            }
        }
        ends_in.saturating_add(slot.saturating_mul(passed))
    }
}

impl Look {
    /// The answer if both must admit.
    fn and(self, other: Self) -> Self {
        let next = match self.left.cmp(&other.left) {
            std::cmp::Ordering::Less => self.next,
            std::cmp::Ordering::Equal => self.next.max(other.next),
            std::cmp::Ordering::Greater => other.next,
        };
        Self { left: self.left.min(other.left), wait: self.wait.max(other.wait), next }
    }

    fn decision(self) -> Decision {
        let left = u32::try_from(self.left).unwrap_or(u32::MAX);
        let duration =
            |nanos| if nanos == u64::MAX { Duration::MAX } else { Duration::from_nanos(nanos) };
        if self.wait == 0 {
            Decision::admit(left, duration(self.next))
        } else {
            Decision::deny_with(left, duration(self.wait))
        }
    }
}

/// Parses the numbers of a cell's text.
struct Words<W>(W);

impl<'t, W: Iterator<Item = &'t str>> Words<W> {
    fn number(&mut self) -> Option<u64> {
        self.0.next()?.parse().ok()
    }

    /// Billions of nanoseconds, then the remainder.
    fn nanos(&mut self) -> Option<u64> {
        self.number()?.checked_mul(BILLION)?.checked_add(self.number()?)
    }
}

/// The decision if two cells must admit a request.
pub(super) fn both(one: Decision, other: Decision) -> Decision {
    let (left, wait) =
        (one.remaining().min(other.remaining()), one.next_unit_in().max(other.next_unit_in()));
    match (one.is_admitted(), other.is_admitted()) {
        (true, true) if one.remaining() < other.remaining() => one,
        (true, true) if one.remaining() > other.remaining() => other,
        (true, true) => Decision::admit(left, wait),
        (false, false) => Decision::deny_with(left, wait),
        (false, true) => Decision::deny_with(left, one.next_unit_in()),
        (true, false) => Decision::deny_with(left, other.next_unit_in()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    fn look(text: &str, quota: &Quota) -> Decision {
        Cell::parse(text).unwrap().look(quota, 1).unwrap()
    }

    #[test]
    fn what_is_owed_takes_up_the_room_that_appears() {
        let quota = Quota::sliding(10, 320 * MILLI).unwrap();
        // A slot is 10 ms, and a unit is back 33 slots after it was taken.
        for (debt, turns) in [(0, 1), (5, 1), (10, 2), (25, 3), (1_000_000, 100_001)] {
            let text = format!("1 1000 0 0 1 w 10 320 100000 {debt} 0 1 10 0");
            assert_eq!(look(&text, &quota), Decision::deny(turns * 330 * MILLI), "{debt}");
        }
    }

    #[test]
    fn a_guard_is_enforced_for_as_long_as_it_lasts() {
        let quota = Quota::per(10, 10 * MILLI).unwrap();
        for (lasts, wait) in [(500, 330), (100, 100)] {
            let guard = "w 1 320 100000 0 0 1 1 0";
            let text = format!("1 1000 0 0 2 g 10 0 1000000 0 0 0 1 2 {lasts} {guard}");
            assert_eq!(look(&text, &quota), Decision::deny(wait * MILLI));
        }
    }

    #[test]
    fn what_is_no_text_of_a_cell_is_refused() {
        let whole = "1 1000 0 0 1 g 10 0 1000000 0 5 -1 0";
        assert!(Cell::parse(whole).is_some());
        for (at, _) in whole.match_indices(' ') {
            assert!(Cell::parse(&whole[..at]).is_none(), "{}", &whole[..at]);
        }
        for text in
            ["2 1000 0 0 0", "1 1000 0 0 1 g 0 0 1 0 0 0 0", "1 1000 0 0 1 g 1 0 1 0 0 0 1 2 5"]
        {
            assert!(Cell::parse(text).is_none(), "{text}");
        }
    }
}
