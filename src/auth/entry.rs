use std::{
    sync::{
        Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use super::terms::Terms;
use crate::{
    key::KeyHash,
    record::{Consumer, KeyRecord, KeyStatus, Validity, Watch},
};

/// How often a key in use is noted as such: once in this, and no more, does a hit write.
const SEEN_EVERY: Duration = Duration::from_secs(1);

/// What the cache holds of a key: facts, and, with the consumer, the live buckets. No verdicts.
pub(super) struct Entry {
    pub(super) hash: KeyHash,
    pub(super) consumer: Consumer,
    /// [`Clock::monotonic`](crate::clock::Clock::monotonic) when the store was asked.
    pub(super) loaded_at: Duration,
    /// Of the cache, when the store was asked.
    pub(super) generation: Generation,
    /// When its use was last reported; see [`usage`](super::usage).
    pub(super) touched_at: AtomicU64,
    /// When it was last noted that it is in use.
    seen_at: AtomicU64,
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
            hash: record.key_hash,
            seen_at: AtomicU64::new(nanos(loaded_at)),
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

    /// Notes that it is in use. True where that was not noted just now.
    pub(super) fn is_seen_again(&self, now: Duration) -> bool {
        let is_new = self.unseen_for(now) >= SEEN_EVERY;
        if is_new {
            self.seen_at.store(nanos(now), Ordering::Relaxed);
        }
        is_new
    }

    /// Whether nobody has used it for a while.
    pub(super) fn is_out_of_use(&self, now: Duration) -> bool {
        self.unseen_for(now) >= 2 * SEEN_EVERY
    }

    fn unseen_for(&self, now: Duration) -> Duration {
        now.saturating_sub(Duration::from_nanos(self.seen_at.load(Ordering::Relaxed)))
    }

    /// How long until the key expires; `None` if it never does.
    pub(super) fn expires_in(&self, now: Duration) -> Option<Duration> {
        let lifetime = self.validity.expires_at?.duration_since(self.read_at);
        Some(lifetime.unwrap_or_default().saturating_sub(now.saturating_sub(self.loaded_at)))
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
