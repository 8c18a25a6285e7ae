use std::time::Duration;

use smallvec::SmallVec;

use super::quota::SLOTS;

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
    pub(super) fn is_full(&self) -> bool {
        match self {
            Self::Gcra(missing) => *missing == 0,
            Self::Window { slots, .. } => slots.iter().all(|units| *units == 0),
        }
    }
}
