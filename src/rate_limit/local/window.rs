//! One quota counted by a sliding window.

mod shaper;

use std::{
    num::{NonZeroU32, NonZeroU64},
    time::Duration,
};

use self::shaper::Shaper;
use super::ring::{self, View};
#[cfg(feature = "redis")]
use crate::rate_limit::level::Level;
use crate::rate_limit::{Decision, quota::SLOTS};

/// Twice as many places as slots: a request may be almost a window late and still be judged by exactly
/// its own. A power of two is divided by quickly.
type Ring = ring::Ring<{ SLOTS as u64 }, { 2 * SLOTS as usize }>;

/// Never more than the limit in any window, by counting what was taken in each of its slots.
///
/// Units that another quota admitted may be more than the window has room for. The rest is
/// [owed](Debt): it moves into the window as room appears, before anything else does. So whatever was
/// admitted counts as if it had been paced to fit.
pub(super) struct Window {
    limit: u32,
    slot: NonZeroU64,
    ring: Box<Ring>,
}

/// Units that are still to be counted in a window. Only one at a time may change it.
#[derive(Clone, Copy, Default)]
pub(super) struct Debt {
    pub(super) units: u64,
    /// The slot up to which they were moved.
    at: u64,
}

impl Window {
    /// A window in which nothing was taken.
    pub(super) fn new(limit: u32, window: u64) -> Self {
        let slot = window.div_ceil(SLOTS.into());
        Self { limit, slot: NonZeroU64::new(slot).unwrap_or(NonZeroU64::MIN), ring: Box::default() }
    }

    /// Says in which slot it was booked, too.
    pub(super) fn take(&self, units: NonZeroU32, now: u64) -> (Decision, u64) {
        match self.ring.take(self.number(now), units.get(), self.limit) {
            Ok(view) => {
                let left = self.left(view.used).saturating_sub(units.get());
                (Decision::admit(left, self.until_out(view.oldest, now)), view.latest.number)
            }
            Err(view) => (self.deny(units, &view, now), view.latest.number),
        }
    }

    pub(super) fn peek(&self, units: NonZeroU32, now: u64) -> Decision {
        let view = self.view(now);
        if view.used + u64::from(units.get()) > self.limit.into() {
            return self.deny(units, &view, now);
        }
        let next = if view.used == 0 { Duration::ZERO } else { self.until_out(view.oldest, now) };
        Decision::admit(self.left(view.used), next)
    }

    /// Takes back what was booked in `slot` just now.
    pub(super) fn undo(&self, units: NonZeroU32, slot: u64) {
        self.ring.undo(slot, units.get());
    }

    /// All that is used up or owed.
    pub(super) fn used(&self, debt: &Debt, now: u64) -> u64 {
        self.view(now).used.saturating_add(debt.units)
    }

    /// When the slots that may hold anything are out of the window.
    pub(super) fn full_at(&self) -> u64 {
        self.ring.latest().saturating_mul(self.slot.get())
    }

    /// Reads by an update, which whatever is taken later follows.
    pub(super) fn touch(&self) {
        self.ring.touch();
    }

    /// Counts what is owed in the slots in which there was room since.
    pub(super) fn settle(&self, debt: &mut Debt, now: u64) {
        let latest = self.view(now).latest.number;
        if debt.units > 0 && debt.at < latest {
            let mut shaper = self.shaper(debt, debt.at);
            shaper.forward(latest);
            debt.units = shaper.debt;
            for (number, units) in shaper.slots() {
                let missing = units.saturating_sub(self.ring.units(number));
                if missing > 0 {
                    self.ring.add_to(number, missing);
                }
            }
        }
        debt.at = latest;
    }

    /// Counts `units` that another quota admitted, of which some may be owed, but no more than `most`
    /// are. Says whether some were left out for it.
    ///
    /// The debt must be [settled](Self::settle), and others must know that there is some.
    pub(super) fn add(
        &self,
        units: NonZeroU32,
        debt: &mut Debt,
        most: Option<u64>,
        now: u64,
    ) -> bool {
        let fits = if debt.units > 0 { 0 } else { self.limit };
        if debt.units == 0 {
            debt.at = self.view(now).latest.number;
        }
        let taken = self.ring.fill_up(self.number(now), units.get(), fits);
        let owed = debt.units.saturating_add((units.get() - taken).into());
        let most = most.unwrap_or(u64::MAX).max(debt.units);
        debt.units = owed.min(most);
        owed > most
    }

    pub(super) fn has_room(&self, units: NonZeroU32, now: u64) -> bool {
        self.view(now).used + u64::from(units.get()) <= self.limit.into()
    }

    /// Is used up as if `units` had been taken just now, or more.
    pub(super) fn raise(&self, units: u64, debt: &mut Debt, now: u64) {
        let missing = units.saturating_sub(self.used(debt, now));
        let fits = if debt.units > 0 { 0 } else { self.limit };
        let wanted = u32::try_from(missing).unwrap_or(u32::MAX);
        let taken = self.ring.fill_up(self.number(now), wanted, fits);
        if debt.units == 0 {
            debt.at = self.view(now).latest.number;
        }
        debt.units += missing - u64::from(taken);
    }

    /// As [`peek`](Self::peek), where some are owed.
    pub(super) fn peek_owing(&self, units: NonZeroU32, debt: &Debt, now: u64) -> Decision {
        if debt.units == 0 {
            return self.peek(units, now);
        }
        if units.get() > self.limit {
            return Decision::deny(Duration::MAX);
        }
        let mut shaper = self.shaper(debt, self.view(now).latest.number);
        let fits_in = shaper.until_room(units.get());
        Decision::deny(self.until_begun(fits_in, now).max(Duration::from_nanos(1)))
    }

    /// Gives back what was taken last: what is owed comes first.
    pub(super) fn give_back(&self, units: NonZeroU32, debt: &mut Debt, now: u64) {
        let forgiven = debt.units.min(units.get().into());
        debt.units -= forgiven;
        let rest = u32::try_from(u64::from(units.get()) - forgiven).unwrap_or_default();
        if rest > 0 {
            self.ring.give_back(self.number(now), rest);
        }
    }

    /// Charges as many of `units` as it takes until as much is used up or owed as fits twice.
    pub(super) fn charge(&self, units: NonZeroU32, debt: &Debt, now: u64) {
        let most = u64::from(self.limit) * 2;
        let most = u32::try_from(most.saturating_sub(debt.units)).unwrap_or(u32::MAX);
        self.ring.fill_up(self.number(now), units.get(), most);
    }

    /// Takes over what another window of the same length holds and is owed.
    pub(super) fn copy(&self, other: &Self, debt: &mut Debt, others: &Debt, now: u64) {
        let latest = self.view(now).latest.number.max(other.view(now).latest.number);
        self.ring.view(latest);
        for number in latest.saturating_sub(SLOTS.into())..=latest {
            let units = other.ring.units(number);
            if units > 0 {
                self.ring.add_to(number, units);
            }
        }
        (debt.units, debt.at) = (others.units, latest);
    }

    fn shaper(&self, debt: &Debt, at: u64) -> Shaper {
        let units = |number| self.ring.units(number);
        Shaper::new(units, at, debt.units, self.limit)
    }

    /// The window's whole length has slots even at the clock's origin: what a fleet took may be older
    /// than this process's clock.
    fn number(&self, now: u64) -> u64 {
        now / self.slot + Ring::LIVE
    }

    fn view(&self, now: u64) -> View {
        self.ring.view(self.number(now))
    }

    fn left(&self, used: u64) -> u32 {
        self.limit.saturating_sub(u32::try_from(used).unwrap_or(u32::MAX))
    }

    fn deny(&self, units: NonZeroU32, view: &View, now: u64) -> Decision {
        let wait = if units.get() > self.limit {
            Duration::MAX
        } else {
            let missing = view.used + u64::from(units.get()) - u64::from(self.limit);
            self.until_back(missing, view, now)
        };
        Decision::deny_with(self.left(view.used), wait)
    }

    /// How long until so many units are back: when the slots that hold them are out.
    fn until_back(&self, units: u64, view: &View, now: u64) -> Duration {
        let mut back = 0;
        for slot in view.oldest..=view.latest.number {
            back += u64::from(self.ring.units(slot));
            if back >= units {
                return self.until_out(slot, now);
            }
        }
        // Others gave theirs back meanwhile.
        Duration::from_nanos(1)
    }

    #[cfg(feature = "redis")]
    pub(super) fn level(&self, now: u64) -> Level {
        let View { latest, .. } = self.view(now);
        let first = latest.number.saturating_sub(SLOTS.into());
        let slots = (first..=latest.number).rev().map(|number| self.ring.units(number)).collect();
        Level::Window { slot_ends_in: self.until_out(first, now), slots }
    }

    /// Stands as another window does, in which so much was taken in each slot, the current one first.
    #[cfg(feature = "redis")]
    pub(super) fn follow(&self, slots: &[u32], now: u64) {
        let slots = slots.iter().copied().chain(std::iter::repeat(0));
        self.ring.set(self.view(now).latest.number, slots);
    }

    /// How long until a slot begins.
    fn until_begun(&self, slot: u64, now: u64) -> Duration {
        self.until_out(slot.saturating_sub(Ring::LIVE), now)
    }

    /// How long until a slot is no longer live.
    fn until_out(&self, slot: u64, now: u64) -> Duration {
        // Numbers are ahead of the clock by as much as it takes.
        let out = slot.saturating_mul(self.slot.get());
        Duration::from_nanos(out.saturating_sub(now))
    }
}
