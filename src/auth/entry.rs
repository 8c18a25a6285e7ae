use std::{
    sync::{Weak, atomic::AtomicU64},
    time::{Duration, SystemTime},
};

use super::terms::Terms;
use crate::record::{Consumer, KeyRecord, KeyStatus, Validity, Watch};

/// What the cache holds of a key: facts, and, with the consumer, the live buckets. No verdicts.
pub(super) struct Entry {
    pub(super) consumer: Consumer,
    /// [`Clock::monotonic`](crate::clock::Clock::monotonic) when the store was asked.
    pub(super) loaded_at: Duration,
    /// Of the cache, when the store was asked.
    pub(super) generation: Generation,
    /// When its use was last reported; see [`usage`](super::usage).
    pub(super) touched_at: AtomicU64,
    validity: Validity,
    read_at: SystemTime,
}

/// Counts how often what was known of all keys, or of those that do not exist, ceased to hold.
#[derive(Clone, Copy, Default)]
pub(super) struct Generation {
    pub(super) present: u64,
    pub(super) absent: u64,
}

impl Entry {
    pub(super) fn new(
        record: KeyRecord,
        terms: &Terms,
        watch: Weak<dyn Watch>,
        loaded_at: Duration,
        answered_at: Duration,
        generation: Generation,
    ) -> Self {
        let meter = terms.meter(&record, loaded_at);
        Self {
            loaded_at,
            generation,
            touched_at: AtomicU64::new(0),
            // The store read its clock at some time in between. Reckoned from the beginning of that,
            // an end comes early rather than late; so would a beginning.
            validity: record
                .validity()
                .begin_later(record.read_at, answered_at.saturating_sub(loaded_at)),
            read_at: record.read_at,
            consumer: Consumer::watched_by(record, Some(meter), watch, loaded_at),
        }
    }

    /// Whether the key may be used at `now` of the monotonic clock, reckoned from the store's
    /// clock: neither a wrong nor a stepping wall clock of this node matters.
    pub(super) fn status(&self, now: Duration) -> KeyStatus {
        match self.read_at.checked_add(now.saturating_sub(self.loaded_at)) {
            Some(now) => self.validity.status(now),
            // Beyond the end of time every deadline has passed.
            None => KeyStatus::Expired,
        }
    }

    /// How long until the key expires; `None` if it never does.
    pub(super) fn expires_in(&self, now: Duration) -> Option<Duration> {
        let lifetime = self.validity.expires_at?.duration_since(self.read_at);
        Some(lifetime.unwrap_or_default().saturating_sub(now.saturating_sub(self.loaded_at)))
    }
}
