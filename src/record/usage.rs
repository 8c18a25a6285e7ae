//! Counted use of keys, as the ledger keeps it.

use std::time::SystemTime;

use super::{BucketWidth, KeyId, UsageCounts};

/// What was counted in an hour or a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UsageBucket {
    /// Its beginning.
    pub from: SystemTime,
    /// What was counted.
    pub counts: UsageCounts,
}

impl UsageBucket {
    /// `counts` of the bucket that begins at `from`.
    #[must_use]
    pub const fn new(from: SystemTime, counts: UsageCounts) -> Self {
        Self { from, counts }
    }
}

/// The use of one key in one hour: a line of the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyHour {
    /// The key.
    pub key_id: KeyId,
    /// The consumer that the key had at the time.
    pub consumer_id: String,
    /// The beginning of the hour.
    pub hour: SystemTime,
    /// What was counted.
    pub counts: UsageCounts,
}

impl KeyHour {
    /// What was counted of a key in the hour that begins at `hour`.
    #[must_use]
    pub fn new(
        key_id: KeyId,
        consumer_id: impl Into<String>,
        hour: SystemTime,
        counts: UsageCounts,
    ) -> Self {
        Self { key_id, consumer_id: consumer_id.into(), hour, counts }
    }

    /// The end of the hour.
    #[must_use]
    pub fn end(&self) -> SystemTime {
        self.hour.checked_add(BucketWidth::Hour.duration()).unwrap_or(self.hour)
    }
}
