use crate::rate_limit::quota::SLOTS;

/// The slots that overlap a window.
const LIVE: usize = SLOTS as usize + 1;

/// Simulates a window over time: each slot pays off as much of the debt as it has room for.
pub(super) struct Shaper {
    /// Indexed by slot number, modulo the number of live slots.
    held: [u32; LIVE],
    used: u64,
    at: u64,
    limit: u32,
    pub(super) debt: u64,
}

impl Shaper {
    pub(super) fn new(units: impl Fn(u64) -> u32, at: u64, debt: u64, limit: u32) -> Self {
        let mut shaper = Self { held: [0; LIVE], used: 0, at, limit, debt };
        for number in shaper.numbers() {
            let units = units(number);
            *shaper.held(number) = units;
            shaper.used += u64::from(units);
        }
        shaper
    }

    /// Advances to slot `to`.
    pub(super) fn forward(&mut self, to: u64) {
        self.steps(to);
        // From here on, each slot takes in exactly what leaves it.
        let periods = to.saturating_sub(self.at) / LIVE as u64;
        self.skip(periods);
        self.steps(to);
        self.steps(to);
        if self.at < to {
            // The debt is paid off, and every slot has left the window.
            (self.at, self.used, self.held) = (to, 0, [0; LIVE]);
        }
    }

    /// The first slot in which the debt is paid off and `units` fit.
    pub(super) fn until_room(&mut self, units: u32) -> u64 {
        for round in 0..4 {
            for _ in 0..LIVE {
                if self.debt == 0 && self.used + u64::from(units) <= self.limit.into() {
                    return self.at;
                }
                self.step();
            }
            if round == 0 {
                self.skip(u64::MAX);
            }
        }
        self.at
    }

    /// The live slots and their units.
    pub(super) fn slots(mut self) -> impl Iterator<Item = (u64, u32)> {
        self.numbers().map(move |number| (number, *self.held(number)))
    }

    /// Advances by at most as many slots as are live.
    fn steps(&mut self, to: u64) {
        let to = to.min(self.at.saturating_add(LIVE as u64));
        while self.at < to {
            self.step();
        }
    }

    fn step(&mut self) {
        self.at += 1;
        let (used, limit, debt) = (self.used, u64::from(self.limit), self.debt);
        let held = self.held(self.at);
        let used = used - u64::from(*held);
        let moved = u32::try_from(debt.min(limit.saturating_sub(used))).unwrap_or_default();
        *held = moved;
        self.used = used + u64::from(moved);
        self.debt -= u64::from(moved);
    }

    /// Skips whole windows, each of which pays off a full limit.
    fn skip(&mut self, most: u64) {
        let periods = most.min(self.debt / u64::from(self.limit.max(1)));
        self.at = self.at.saturating_add(periods.saturating_mul(LIVE as u64));
        self.debt -= periods.saturating_mul(self.limit.into());
    }

    fn numbers(&self) -> std::ops::RangeInclusive<u64> {
        self.at.saturating_sub(SLOTS.into())..=self.at
    }

    fn held(&mut self, number: u64) -> &mut u32 {
        #[expect(clippy::indexing_slicing, reason = "a remainder is less than the divisor")]
        #[expect(clippy::cast_possible_truncation, reason = "and so is a small number")]
        &mut self.held[(number % LIVE as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn skipping_windows_ends_where_going_slot_by_slot_does(
            held in proptest::collection::vec(0..5_u32, LIVE),
            debt in 0..200_u64,
            limit in 1..20_u32,
            slots in 0..1_000_u64,
        ) {
            let from = 1_000;
            let units = |number: u64| held[usize::try_from(number % LIVE as u64).unwrap()];
            let [mut steps, mut skips] =
                [(); 2].map(|()| Shaper::new(units, from, debt, limit));
            for _ in 0..slots {
                steps.step();
            }
            skips.forward(from + slots);
            prop_assert_eq!((steps.at, steps.used, steps.debt), (skips.at, skips.used, skips.debt));
            prop_assert!(steps.slots().eq(skips.slots()));
        }

        #[test]
        fn the_slot_with_room_is_the_first_one(
            held in proptest::collection::vec(0..5_u32, LIVE),
            debt in 0..200_u64,
            limit in 1..20_u32,
            units in 1..20_u32,
        ) {
            let units = units.min(limit);
            let in_slot = |number: u64| held[usize::try_from(number % LIVE as u64).unwrap()];
            let [mut steps, mut skips] = [(); 2].map(|()| Shaper::new(in_slot, 100, debt, limit));
            while steps.debt > 0 || steps.used + u64::from(units) > u64::from(limit) {
                steps.step();
            }
            prop_assert_eq!(skips.until_room(units), steps.at);
        }
    }
}
