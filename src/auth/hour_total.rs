//! What this node has counted in the present hour.

use std::{
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use crate::store::{UsageBucket, port::UseCounts};

/// The counts of all keys in the last hour that the worker has taken counts of.
pub(super) struct HourTotal(Mutex<UsageBucket>);

impl Default for HourTotal {
    fn default() -> Self {
        let nothing = UsageBucket::new(SystemTime::UNIX_EPOCH, UseCounts::default());
        Self(Mutex::new(nothing))
    }
}

impl HourTotal {
    pub(super) fn add(&self, hour: SystemTime, counts: UseCounts) {
        let mut total = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if total.from == hour {
            total.counts = total.counts.plus(counts);
        } else {
            *total = UsageBucket::new(hour, counts);
        }
    }

    /// What was counted in the hour that begins at `hour`.
    pub(super) fn of(&self, hour: SystemTime) -> UsageBucket {
        let total = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if total.from == hour { total } else { UsageBucket::new(hour, UseCounts::default()) }
    }
}
