//! A lock-free ring of units taken per slot.

use std::ops::RangeInclusive;

use super::atomic::{AtomicU64, Ordering};

/// The units taken in each slot; `SLOTS` slots are as long as a window. Slots are numbered from the
/// clock's origin.
///
/// Only the latest slot accepts units, and it is closed for good before a later one begins. A take
/// finds the latest slot open, sums the slots before it, and then changes the latest slot by
/// compare-and-swap. If units had been taken or a later slot begun meanwhile, the swap would fail;
/// so the sum was true at the moment of the decision. Refunds may lower any slot, which only leaves
/// more room than was seen.
///
/// Lock-free: a change fails only because another one succeeded, and a take that finds the latest
/// slot closed begins the next.
///
/// A request may be late, if it is delayed after reading the clock. It is booked in the latest slot
/// all the same, and must fit with everything in its own window and after it. A request too late
/// for the ring's `PLACES` is treated as being exactly that late.
pub(super) struct Ring<const SLOTS: u64, const PLACES: usize> {
    latest: AtomicU64,
    /// Each place is shared by slots in turn, belongs to the latest of them, and is empty to the
    /// others.
    places: [AtomicU64; PLACES],
}

/// The latest slot, and the sum of it and those before it.
pub(super) struct View {
    pub(super) latest: Slot,
    pub(super) used: u64,
    /// The first slot that holds any units; the latest if none does.
    pub(super) oldest: u64,
}

/// A slot as it was read.
pub(super) struct Slot {
    pub(super) number: u64,
    units: u32,
    is_closed: bool,
    found: u64,
}

impl<const SLOTS: u64, const PLACES: usize> Default for Ring<SLOTS, PLACES> {
    fn default() -> Self {
        Self { latest: AtomicU64::new(0), places: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

impl<const SLOTS: u64, const PLACES: usize> Ring<SLOTS, PLACES> {
    /// The slots that overlap a window, which begins and ends within one.
    pub(super) const LIVE: u64 = SLOTS + 1;
    const LAP: u64 = PLACES as u64;

    /// Takes `units` unless that would use up more than `most`. Returns what was found before.
    pub(super) fn take(&self, number: u64, units: u32, most: u32) -> Result<View, View> {
        loop {
            let view = self.view(number);
            if view.used + u64::from(units) > most.into() {
                return Err(view);
            }
            if self.add(&view, units) {
                return Ok(view);
            }
        }
    }

    /// Takes as many of `units` as fit under `most`. Returns how many that is.
    pub(super) fn fill_up(&self, number: u64, units: u32, most: u32) -> u32 {
        loop {
            let view = self.view(number);
            let room = u64::from(most).saturating_sub(view.used);
            let units = u32::try_from(room).map_or(units, |room| units.min(room));
            if self.add(&view, units) {
                return units;
            }
        }
    }

    /// Adds to a slot that may be closed. A concurrent take that has already summed the earlier
    /// slots misses these units.
    pub(super) fn add_to(&self, number: u64, units: u32) {
        loop {
            let slot = self.slot(number);
            let is_closed = slot.is_closed || number < self.latest.load(Ordering::Acquire);
            if self.change(&slot, slot.units.saturating_add(units), is_closed) {
                return;
            }
        }
    }

    /// Reads by an atomic update, so that later takes are ordered after it.
    pub(super) fn touch(&self) {
        let number = self.latest();
        self.fill_up(number, 0, 0);
    }

    /// The number of the latest slot.
    pub(super) fn latest(&self) -> u64 {
        self.latest.load(Ordering::Acquire)
    }

    /// The units in the window that ends with slot `number`, and in later slots. From here on, no
    /// earlier slot accepts units.
    pub(super) fn view(&self, number: u64) -> View {
        let latest = self.open(number);
        let (mut used, mut oldest) = (u64::from(latest.units), latest.number);
        for number in (Self::first(number, latest.number)..latest.number).rev() {
            let units = self.units(number);
            if units > 0 {
                used += u64::from(units);
                oldest = number;
            }
        }
        View { latest, used, oldest }
    }

    /// Adds to the latest slot, unless it has changed since.
    fn add(&self, view: &View, units: u32) -> bool {
        self.change(&view.latest, view.latest.units.saturating_add(units), false)
    }

    /// Refunds units to requests at slot `number` or later: from the latest slot first, then from
    /// those before it. Concurrent requests may see one slot lowered before the next.
    pub(super) fn give_back(&self, number: u64, units: u32) {
        let latest = self.open(number).number;
        self.remove(Self::first(number, latest)..=latest, units);
    }

    /// Refunds what was just taken in `slot`. If another refund took those units instead of its
    /// own, its own are in an earlier slot.
    pub(super) fn undo(&self, slot: u64, units: u32) {
        self.remove(slot.saturating_sub(SLOTS)..=slot, units);
    }

    fn remove(&self, slots: RangeInclusive<u64>, units: u32) {
        let mut rest = units;
        for number in slots.rev() {
            rest -= self.remove_from(number, rest);
            if rest == 0 {
                return;
            }
        }
    }

    fn remove_from(&self, number: u64, most: u32) -> u32 {
        loop {
            let slot = self.slot(number);
            let removed = slot.units.min(most);
            if removed == 0 || self.change(&slot, slot.units - removed, slot.is_closed) {
                return removed;
            }
        }
    }

    pub(super) fn units(&self, number: u64) -> u32 {
        self.slot(number).units
    }

    /// The latest slot, which is open and not before `number`.
    fn open(&self, number: u64) -> Slot {
        loop {
            let latest = self.latest.load(Ordering::Acquire);
            let slot = self.slot(latest);
            // Otherwise its place may already belong to a later slot, which must not be
            // overwritten.
            if self.latest.load(Ordering::Acquire) != latest {
                continue;
            }
            if latest >= number && !slot.is_closed {
                return slot;
            }
            if slot.is_closed || self.change(&slot, slot.units, true) {
                // The closed slot accepts no units, so the next is later even if `number` is not.
                // If this fails, another request has begun a slot.
                let next = number.max(latest + 1);
                let (ok, err) = (Ordering::AcqRel, Ordering::Acquire);
                let _ = self.latest.compare_exchange(latest, next, ok, err);
            }
        }
    }

    /// The first slot that counts for a request at slot `number`.
    fn first(number: u64, latest: u64) -> u64 {
        number.saturating_sub(SLOTS).max((latest + 1).saturating_sub(Self::LAP))
    }

    fn slot(&self, number: u64) -> Slot {
        let found = self.place(number).load(Ordering::Acquire);
        if found & LAPS != Self::lap(number) {
            return Slot { number, units: 0, is_closed: false, found };
        }
        #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
        Slot { number, units: found as u32, is_closed: found & CLOSED != 0, found }
    }

    fn change(&self, slot: &Slot, units: u32, is_closed: bool) -> bool {
        let changed = Self::lap(slot.number) | u64::from(is_closed) << u32::BITS | u64::from(units);
        let (ok, err) = (Ordering::AcqRel, Ordering::Acquire);
        self.place(slot.number).compare_exchange(slot.found, changed, ok, err).is_ok()
    }

    fn place(&self, number: u64) -> &AtomicU64 {
        #[expect(clippy::indexing_slicing, reason = "a remainder is less than the divisor")]
        #[expect(clippy::cast_possible_truncation, reason = "and so is a small number")]
        &self.places[(number % Self::LAP) as usize]
    }

    /// Sets the slots up to `number`, the latest of all, to `units`, latest first. Concurrent takes
    /// may be lost.
    #[cfg(feature = "redis")]
    pub(super) fn set(&self, number: u64, units: impl Iterator<Item = u32>) {
        for (slot, units) in (number.saturating_sub(SLOTS)..=number).rev().zip(units) {
            let closed = if slot < number { CLOSED } else { 0 };
            let held = Self::lap(slot) | closed | u64::from(units);
            self.place(slot).store(held, Ordering::Release);
        }
    }

    /// Distinguishes the slots that share a place.
    fn lap(number: u64) -> u64 {
        (number / Self::LAP) << LAPS.trailing_zeros()
    }
}

/// A place holds 32 bits of units, one bit for a closed slot, and 31 bits of its lap.
const CLOSED: u64 = 1 << u32::BITS;
const LAPS: u64 = u64::MAX << (u32::BITS + 1);
