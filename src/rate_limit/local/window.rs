//! One quota counted by a sliding window.

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::fill::Fill;
use crate::rate_limit::{Decision, Quota, quota::SLOTS};

/// The slots that reach into a window: it begins and ends within one.
const LIVE: u64 = SLOTS as u64 + 1;
/// How often a request begins again that others, on their way to be turned away, stood in the way
/// of.
const TRIES: usize = 64;

/// Never more than the limit in any window, by counting what was taken in each of its slots.
///
/// Nobody locks: a request writes itself into the current slot, and *then* adds all of them up. Of
/// those that fit into a window together, the last to add up sees all others, so that together
/// they are no more than the limit. One that sees too many takes itself out again.
pub(super) struct Window {
    limit: u32,
    slot: Duration,
    ring: Arc<Ring>,
}

/// What was taken, by slot. Slots have numbers, from the clock's origin on.
struct Ring {
    /// The number of the latest slot that anybody wrote to. A clock that was read earlier counts as
    /// this late: what its slot would be may have been given to a new one.
    latest: AtomicU64,
    /// Each the lower half of its number, then the units. A slot of an outdated number is empty.
    slots: [AtomicU64; SLOTS as usize + 1],
}

impl Window {
    /// A window of which as much is used up as `fill` says, just now.
    pub(super) fn new(quota: &Quota, fill: Fill, now: Duration) -> Self {
        let ring = Arc::new(Ring::default());
        let window = Self { limit: quota.limit(), slot: quota.slot(), ring };
        let number = window.number(now);
        window.ring.add(number, fill.of_units(quota.limit()));
        window
    }

    /// The same requests under another limit; as good a copy as can be had under another window.
    pub(super) fn under(&self, quota: &Quota, now: Duration) -> Self {
        if quota.slot() == self.slot {
            return Self { limit: quota.limit(), slot: self.slot, ring: Arc::clone(&self.ring) };
        }
        Self::new(quota, self.fill(now), now)
    }

    pub(super) fn take(&self, units: NonZeroU32, now: Duration) -> Decision {
        let units = units.get();
        for _ in 0..TRIES {
            let number = self.number(now);
            let used = self.ring.used(number);
            if used + u64::from(units) > self.limit.into() {
                break;
            }
            self.ring.add(number, units);
            let used = self.ring.used(number);
            if used <= self.limit.into() {
                return Decision::admit(self.left(used), self.wait_for(1, used, number, now));
            }
            self.ring.remove(number, units);
        }
        let number = self.number(now);
        self.deny(units, self.ring.used(number), number, now)
    }

    pub(super) fn peek(&self, units: NonZeroU32, now: Duration) -> Decision {
        let number = self.number(now);
        let used = self.ring.used(number);
        if used + u64::from(units.get()) > self.limit.into() {
            return self.deny(units.get(), used, number, now);
        }
        Decision::admit(self.left(used), self.wait_for(1, used, number, now))
    }

    pub(super) fn charge(&self, units: NonZeroU32, now: Duration) {
        self.ring.add(self.number(now), units.get());
    }

    pub(super) fn give_back(&self, units: NonZeroU32, now: Duration) {
        self.ring.remove(self.number(now), units.get());
    }

    pub(super) fn fill(&self, now: Duration) -> Fill {
        let used = self.ring.used(self.number(now));
        Fill::of_all(used, self.limit.into())
    }

    /// Whether somebody else holds the state, under an earlier quota.
    pub(super) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.ring) > 1
    }

    fn number(&self, now: Duration) -> u64 {
        let number = now.as_nanos() / self.slot.as_nanos();
        self.ring.reach(u64::try_from(number).unwrap_or(u64::MAX))
    }

    fn left(&self, used: u64) -> u32 {
        self.limit.saturating_sub(u32::try_from(used).unwrap_or(u32::MAX))
    }

    fn deny(&self, units: u32, used: u64, number: u64, now: Duration) -> Decision {
        let wait = if units > self.limit {
            Duration::MAX
        } else {
            let missing = (used + u64::from(units)).saturating_sub(self.limit.into());
            self.wait_for(missing.max(1), used, number, now)
        };
        Decision::deny_with(self.left(used), wait)
    }

    /// How long until `units` of those `used` come back: when the slots that hold them have left.
    fn wait_for(&self, units: u64, used: u64, number: u64, now: Duration) -> Duration {
        if used == 0 {
            return Duration::ZERO;
        }
        let mut returned = 0;
        for old in number.saturating_sub(SLOTS.into())..=number {
            returned += u64::from(self.ring.units(old));
            if returned >= units {
                let at = self.slot.as_nanos().saturating_mul((old + LIVE).into());
                return Duration::from_nanos(u64::try_from(at).unwrap_or(u64::MAX))
                    .saturating_sub(now);
            }
        }
        // Others gave theirs back meanwhile.
        Duration::from_nanos(1)
    }
}

impl Default for Ring {
    fn default() -> Self {
        // Not a number that a clock begins with.
        let empty = |_| AtomicU64::new(pack(u32::MAX, 0));
        Self { latest: AtomicU64::new(0), slots: std::array::from_fn(empty) }
    }
}

impl Ring {
    fn reach(&self, number: u64) -> u64 {
        let latest = self.latest.load(Ordering::SeqCst);
        if latest >= number {
            return latest;
        }
        self.latest.fetch_max(number, Ordering::SeqCst).max(number)
    }

    fn used(&self, number: u64) -> u64 {
        (number.saturating_sub(SLOTS.into())..=number).map(|old| u64::from(self.units(old))).sum()
    }

    fn units(&self, number: u64) -> u32 {
        self.slot(number).map_or(0, |slot| units_of(slot.load(Ordering::SeqCst), number))
    }

    fn add(&self, number: u64, units: u32) {
        let Some(slot) = self.slot(number) else { return };
        let added =
            |packed| Some(pack(low(number), units_of(packed, number).saturating_add(units)));
        let _ = slot.fetch_update(Ordering::SeqCst, Ordering::SeqCst, added);
    }

    /// From this slot, and from those before it what it does not hold.
    fn remove(&self, number: u64, units: u32) {
        let mut rest = units;
        for old in (number.saturating_sub(SLOTS.into())..=number).rev() {
            let Some(slot) = self.slot(old) else { return };
            let removed = |packed| {
                let held = units_of(packed, old);
                (held > 0).then(|| pack(low(old), held.saturating_sub(rest)))
            };
            if let Ok(packed) = slot.fetch_update(Ordering::SeqCst, Ordering::SeqCst, removed) {
                rest = rest.saturating_sub(units_of(packed, old));
            }
            if rest == 0 {
                return;
            }
        }
    }

    fn slot(&self, number: u64) -> Option<&AtomicU64> {
        usize::try_from(number % LIVE).ok().and_then(|at| self.slots.get(at))
    }
}

fn pack(number: u32, units: u32) -> u64 {
    u64::from(number) << u32::BITS | u64::from(units)
}

/// The units of a slot; none if it is another's, which has the same place.
fn units_of(packed: u64, number: u64) -> u32 {
    if packed >> u32::BITS == u64::from(low(number)) { low(packed) } else { 0 }
}

fn low(number: u64) -> u32 {
    u32::try_from(number & u64::from(u32::MAX)).unwrap_or_default()
}
