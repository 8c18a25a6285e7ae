//! One quota counted by a sliding window.

use std::{
    num::{NonZeroU32, NonZeroU64},
    sync::Arc,
    time::Duration,
};

use super::{
    fill::Fill,
    nanos::nanos,
    ring::{self, View},
};
#[cfg(feature = "redis")]
use crate::rate_limit::level::Level;
use crate::rate_limit::{Decision, Quota, quota::SLOTS};

/// Twice as many places as slots: a request may be almost a window late and still be judged by exactly
/// its own. A power of two is divided by quickly.
type Ring = ring::Ring<{ SLOTS as u64 }, { 2 * SLOTS as usize }>;

/// Never more than the limit in any window, by counting what was taken in each of its slots.
pub(super) struct Window {
    limit: u32,
    slot: NonZeroU64,
    ring: Arc<Ring>,
    quota: Box<Quota>,
}

impl Window {
    /// A window of which as much is used up as `fill` says, just now.
    pub(super) fn new(quota: &Quota, fill: Fill, now: u64) -> Self {
        let window = Self::with(quota, Arc::default());
        let used = fill.used_of(quota.limit().into());
        if let Ok(Some(used)) = u32::try_from(used).map(NonZeroU32::new) {
            window.charge(used, now);
        }
        window
    }

    /// The same requests under another limit; as good a copy as can be had under another window.
    pub(super) fn under(&self, quota: &Quota, now: u64) -> Self {
        let same = Self::with(quota, Arc::clone(&self.ring));
        if same.slot == self.slot { same } else { Self::new(quota, self.fill(now), now) }
    }

    fn with(quota: &Quota, ring: Arc<Ring>) -> Self {
        let slot = NonZeroU64::new(nanos(quota.slot())).unwrap_or(NonZeroU64::MIN);
        Self { limit: quota.limit(), slot, ring, quota: Box::new(quota.clone()) }
    }

    pub(super) fn quota(&self) -> &Quota {
        &self.quota
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

    pub(super) fn charge(&self, units: NonZeroU32, now: u64) {
        self.ring.fill_up(self.number(now), units.get(), self.limit.saturating_mul(2));
    }

    pub(super) fn give_back(&self, units: NonZeroU32, now: u64) {
        self.ring.give_back(self.number(now), units.get());
    }

    /// Takes back what was booked in `slot` just now.
    pub(super) fn undo(&self, units: NonZeroU32, slot: u64) {
        self.ring.undo(slot, units.get());
    }

    pub(super) fn fill(&self, now: u64) -> Fill {
        Fill::new(self.view(now).used, self.limit.into())
    }

    /// Whether somebody else holds the state, under an earlier quota.
    pub(super) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.ring) > 1
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

    /// How long until a slot is no longer live.
    fn until_out(&self, slot: u64, now: u64) -> Duration {
        // Numbers are ahead of the clock by as much as it takes.
        let out = slot.saturating_mul(self.slot.get());
        Duration::from_nanos(out.saturating_sub(now))
    }
}
