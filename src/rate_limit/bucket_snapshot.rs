use std::time::Duration;

use smallvec::SmallVec;

use super::quota::SLOTS;

/// The state of a bucket, by a clock other than this process's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum BucketSnapshot {
    /// GCRA: what is missing, as the nanoseconds in which it refills.
    Gcra(u64),
    /// Sliding window: the units taken in each slot, the current one first.
    Window { slot_ends_in: Duration, slots: Slots },
}

pub(super) type Slots = SmallVec<[u32; SLOTS as usize + 1]>;

impl BucketSnapshot {
    pub(super) fn is_full(&self) -> bool {
        match self {
            Self::Gcra(missing) => *missing == 0,
            Self::Window { slots, .. } => slots.iter().all(|units| *units == 0),
        }
    }
}
