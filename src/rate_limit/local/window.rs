//! One quota counted by a sliding window.

mod shaper;

use std::{
    num::{NonZeroU32, NonZeroU64},
    time::Duration,
};

use self::shaper::Shaper;
use super::ring::{self, View};
#[cfg(feature = "redis")]
use crate::rate_limit::bucket_snapshot::BucketSnapshot;
use crate::rate_limit::{Decision, quota::SLOTS};

/// Twice as many places as slots, so that a request may be almost a window late and still be
/// decided by exactly its own window. A power of two makes the division cheap.
type Ring = ring::Ring<{ SLOTS as u64 }, { 2 * SLOTS as usize }>;

/// Never admits more than the limit in any window, by counting the units taken in each slot.
///
/// Units that another quota admitted may exceed the room in the window. The rest becomes
/// [debt](Debt): it moves into the window as room appears, ahead of new requests. So whatever was
/// admitted counts as if it had been paced to fit.
pub(super) struct Window {
    limit: u32,
    slot: NonZeroU64,
    ring: Box<Ring>,
}

/// Units still to be counted in a window. Changes must be serialized.
#[derive(Clone, Copy, Default)]
pub(super) struct Debt {
    pub(super) units: u64,
    /// The slot up to which units were moved.
    at: u64,
}

impl Window {
    /// An empty window.
    pub(super) fn new(limit: u32, window: u64) -> Self {
        let slot = window.div_ceil(SLOTS.into());
        Self { limit, slot: NonZeroU64::new(slot).unwrap_or(NonZeroU64::MIN), ring: Box::default() }
    }

    /// Also returns the slot in which the units were booked.
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

    /// Reverts a take that was just booked in `slot`.
    pub(super) fn undo(&self, units: NonZeroU32, slot: u64) {
        self.ring.undo(slot, units.get());
    }

    /// The units used up or owed.
    pub(super) fn used(&self, debt: &Debt, now: u64) -> u64 {
        self.view(now).used.saturating_add(debt.units)
    }

    /// When the slots that may hold units have left the window.
    pub(super) fn full_at(&self) -> u64 {
        self.ring.latest().saturating_mul(self.slot.get())
    }

    /// Reads by an atomic update, so that later takes are ordered after it.
    pub(super) fn touch(&self) {
        self.ring.touch();
    }

    /// Moves debt into slots that have had room since the last call.
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

    /// Counts `units` that another quota admitted. Those that do not fit become debt, up to `most`.
    /// Returns whether units were left out for that.
    ///
    /// The debt must be [settled](Self::settle), and concurrent requests must know that there is
    /// some.
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

    /// Counts as many units as are missing until at least `units` are used up or owed.
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

    /// Like [`peek`](Self::peek), with debt.
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

    /// Refunds the units taken last: debt first, then slots.
    pub(super) fn give_back(&self, units: NonZeroU32, debt: &mut Debt, now: u64) {
        let forgiven = debt.units.min(units.get().into());
        debt.units -= forgiven;
        let rest = u32::try_from(u64::from(units.get()) - forgiven).unwrap_or_default();
        if rest > 0 {
            self.ring.give_back(self.number(now), rest);
        }
    }

    /// Charges `units`, but only until twice the limit is used up or owed.
    pub(super) fn charge(&self, units: NonZeroU32, debt: &Debt, now: u64) {
        let most = u64::from(self.limit) * 2;
        let most = u32::try_from(most.saturating_sub(debt.units)).unwrap_or(u32::MAX);
        self.ring.fill_up(self.number(now), units.get(), most);
    }

    /// Takes over the slots and the debt of another window of the same length. Units that exceed the
    /// limit of this one become debt, the latest first.
    pub(super) fn copy(&self, other: &Self, debt: &mut Debt, others: &Debt, now: u64) {
        let latest = self.view(now).latest.number.max(other.view(now).latest.number);
        self.ring.view(latest);
        let (mut room, mut owed) = (self.limit, others.units);
        for number in latest.saturating_sub(SLOTS.into())..=latest {
            let units = other.ring.units(number);
            let fits = units.min(room);
            room -= fits;
            owed = owed.saturating_add((units - fits).into());
            if fits > 0 {
                self.ring.add_to(number, fits);
            }
        }
        (debt.units, debt.at) = (owed, latest);
    }

    fn shaper(&self, debt: &Debt, at: u64) -> Shaper {
        let units = |number| self.ring.units(number);
        Shaper::new(units, at, debt.units, self.limit)
    }

    /// Numbers start one window ahead, because a fleet may have taken units before this process's
    /// clock began.
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

    /// The time until `units` are back, that is, until the slots that hold them have left the
    /// window.
    fn until_back(&self, units: u64, view: &View, now: u64) -> Duration {
        let mut back = 0;
        for slot in view.oldest..=view.latest.number {
            back += u64::from(self.ring.units(slot));
            if back >= units {
                return self.until_out(slot, now);
            }
        }
        // Other requests were refunded meanwhile.
        Duration::from_nanos(1)
    }

    #[cfg(feature = "redis")]
    pub(super) fn level(&self, now: u64) -> BucketSnapshot {
        let View { latest, .. } = self.view(now);
        let first = latest.number.saturating_sub(SLOTS.into());
        let slots = (first..=latest.number).rev().map(|number| self.ring.units(number)).collect();
        BucketSnapshot::Window { slot_ends_in: self.until_out(first, now), slots }
    }

    /// Takes over the state of another window: the units taken in each slot, the current one first.
    #[cfg(feature = "redis")]
    pub(super) fn follow(&self, slots: &[u32], now: u64) {
        let slots = slots.iter().copied().chain(std::iter::repeat(0));
        self.ring.set(self.view(now).latest.number, slots);
    }

    /// The time until a slot begins.
    fn until_begun(&self, slot: u64, now: u64) -> Duration {
        self.until_out(slot.saturating_sub(Ring::LIVE), now)
    }

    /// The time until a slot leaves the window.
    fn until_out(&self, slot: u64, now: u64) -> Duration {
        // [`number`](Self::number) is ahead of the clock by exactly as many slots as are live.
        let out = slot.saturating_mul(self.slot.get());
        Duration::from_nanos(out.saturating_sub(now))
    }
}
