use std::{num::NonZeroU32, time::Duration};

use super::Decision;

/// The arithmetic of a bucket that refills evenly. `missing` is what the bucket lacks, as the
/// nanoseconds in which it refills.
#[derive(Clone, Copy)]
pub(super) struct GcraMath {
    interval: u64,
    burst: NonZeroU32,
}

impl GcraMath {
    pub(super) fn new(burst: NonZeroU32, interval: u64) -> Self {
        Self { interval, burst }
    }

    pub(super) fn interval(self) -> u64 {
        self.interval
    }

    pub(super) fn burst(self) -> NonZeroU32 {
        self.burst
    }

    /// The time in which an empty bucket fills.
    pub(super) fn capacity(self) -> u64 {
        self.needed(self.burst)
    }

    /// The time in which `units` refill.
    pub(super) fn needed(self, units: NonZeroU32) -> u64 {
        self.interval.saturating_mul(u64::from(units.get()))
    }

    /// The decision on `units`, without taking them.
    pub(super) fn look(self, units: NonZeroU32, missing: u64) -> Decision {
        let left = self.left(missing);
        if units.get() <= left {
            Decision::admit(left, self.next_unit_in(missing))
        } else {
            self.deny(units, missing)
        }
    }

    pub(super) fn deny(self, units: NonZeroU32, missing: u64) -> Decision {
        let wait = if units <= self.burst {
            let wait = missing.saturating_add(self.needed(units)).saturating_sub(self.capacity());
            // It would be zero if other requests were refunded meanwhile.
            Duration::from_nanos(wait.max(1))
        } else {
            Duration::MAX
        };
        Decision::deny_with(self.left(missing), wait)
    }

    fn left(self, missing: u64) -> u32 {
        let left = self.capacity().saturating_sub(missing).checked_div(self.interval);
        left.and_then(|left| u32::try_from(left).ok()).unwrap_or_default()
    }

    /// The time until one more unit is back, including the time to pay off debt.
    pub(super) fn next_unit_in(self, missing: u64) -> Duration {
        let all_but_one = self.capacity().saturating_sub(self.interval);
        Duration::from_nanos(if missing > all_but_one {
            missing - all_but_one
        } else {
            // 0 for a full bucket, otherwise 1 ns to one interval.
            missing.checked_sub(1).map_or(0, |missing| missing % self.interval.max(1) + 1)
        })
    }
}
