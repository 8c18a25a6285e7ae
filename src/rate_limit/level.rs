use std::{num::NonZeroU32, time::Duration};

use smallvec::SmallVec;

use super::{Decision, Quota, quota::SLOTS, refill::Refill};

/// How a bucket stands, by a clock that is not this process's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// Of GCRA, what is missing in it, by the nanoseconds in which that comes back.
    Gcra(u64),
    /// Of a sliding window, what was taken in each slot, the current one first.
    Window { slot_ends_in: Duration, slots: Slots },
}

pub(super) type Slots = SmallVec<[u32; SLOTS as usize + 1]>;

impl Level {
    /// What is told to one that asks for `units` of `quota`, and takes none.
    pub(super) fn look(&self, quota: &Quota, units: NonZeroU32) -> Decision {
        match self {
            Self::Gcra(missing) => Refill::of(quota).look(units, *missing),
            Self::Window { slot_ends_in, slots } => {
                let (used, limit) = (total(slots), u64::from(quota.limit()));
                let left = u32::try_from(limit.saturating_sub(used)).unwrap_or(u32::MAX);
                let after = |back| wait_for(back, slots, *slot_ends_in, quota.slot());
                let wanted = u64::from(units.get());
                match (used + wanted).checked_sub(limit) {
                    None | Some(0) => Decision::admit(left, after(1)),
                    Some(_) if wanted > limit => Decision::deny_with(left, Duration::MAX),
                    Some(missing) => Decision::deny_with(left, after(missing)),
                }
            }
        }
    }

    /// What is told to one that has just taken its units.
    pub(super) fn after_taking(&self, quota: &Quota) -> Decision {
        let next = self.look(quota, NonZeroU32::MIN);
        Decision::admit(next.remaining(), next.next_unit_in())
    }
}

fn total(slots: &[u32]) -> u64 {
    slots.iter().copied().map(u64::from).sum()
}

/// How long until `units` are back. The oldest slot leaves with the current one's end, the others a
/// slot after each other.
fn wait_for(units: u64, slots: &[u32], slot_ends_in: Duration, slot: Duration) -> Duration {
    let mut returned = 0;
    for (age, held) in (0..SLOTS + 1).zip(slots).rev() {
        returned += u64::from(*held);
        if returned >= units {
            return slot_ends_in.saturating_add(slot.saturating_mul(SLOTS - age));
        }
    }
    Duration::ZERO
}
