use std::{
    future::{Future, ready},
    num::NonZeroU64,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use super::limit_resolver::LimitResolver;
use crate::{
    auth::{client::Places, rate_limit_status::Notice},
    clock::nanos,
    key::KeyHash,
    rate_limit::Meter,
    record::{
        Consumer, KeyExtension, KeyId, KeyKind, KeyRecord, KeyStatus, LookedUpKey, Origin,
        UseCounters, Validity,
    },
};

/// A cache hit marks the key as in use at most once per this interval. Marking it reads from moka,
/// whose housekeeping costs as much as several hits.
const SEEN_EVERY: u64 = 5_000_000_000;

/// The last 7 days of a key, in nanoseconds, plus the 1 of [`instant`].
const SOON: u64 = 7 * 86_400 * 1_000_000_000 + 1;

/// A cached key: its record and live buckets, never a decision. Consumers are made from it without
/// a copy.
pub(in crate::auth) type Entry = LookedUpKey<Cached>;

/// Cache data of a key, beside what consumers see. Times are
/// [`Clock::monotonic`](crate::clock::Clock::monotonic); integers are nanoseconds.
pub(in crate::auth) struct Cached {
    pub(in crate::auth) hash: KeyHash,
    /// When the query began.
    pub(in crate::auth) loaded_at: Duration,
    /// How old the store's data was by then: zero, unless the store is a replica that is too far
    /// behind.
    outdated_by: Duration,
    /// The cache generation when the query began.
    pub(in crate::auth) generation: u64,
    /// The time that the monotonic clock had missed when the query began.
    pub(in crate::auth) missed: u64,
    pub(in crate::auth) uses: UseCounters,
    /// When a cache hit last marked the key as in use.
    seen_at: AtomicU64,
    /// Measured from the store's clock, so a wrong or stepped wall clock of this node has no
    /// effect.
    validity: Validity<NonZeroU64>,
    pub(in crate::auth) meter: Meter,
    /// Where the key works from; `None`: from anywhere.
    pub(in crate::auth) places: Option<Box<Places>>,
    owner: Weak<dyn EntryOwner>,
}

/// The authenticator, to the consumers of its keys.
pub(in crate::auth) trait EntryOwner: Send + Sync {
    /// Resolves when the key stops working.
    fn ended(self: Arc<Self>, key: WatchedKey) -> Pin<Box<dyn Future<Output = ()> + Send>>;

    /// Tells the worker that the counts of `key` are not zero.
    fn tell_use(&self, key: Consumer);
}

/// A key that worked when it was last looked up.
#[derive(Clone, Copy)]
pub(in crate::auth) struct WatchedKey {
    pub(in crate::auth) id: KeyId,
    pub(in crate::auth) hash: KeyHash,
    /// When that look-up began.
    pub(in crate::auth) confirmed_at: Duration,
    /// How old the store's data was by then.
    pub(in crate::auth) outdated_by: Duration,
}

impl WatchedKey {
    pub(in crate::auth) fn confirm(&mut self, entry: &Entry) {
        self.confirmed_at = entry.ext.loaded_at;
        self.outdated_by = entry.ext.outdated_by;
    }

    pub(in crate::auth) fn age(&self, now: Duration) -> Duration {
        now.saturating_sub(self.confirmed_at).saturating_add(self.outdated_by)
    }
}

/// When a record was loaded.
#[derive(Clone, Copy, Default)]
pub(in crate::auth) struct Loaded {
    pub(in crate::auth) loaded_at: Duration,
    /// When the store had answered.
    pub(in crate::auth) answered_at: Duration,
    /// How old the store's data was.
    pub(in crate::auth) outdated_by: Duration,
    /// The cache generation when the query began.
    pub(in crate::auth) generation: u64,
    /// The time that the monotonic clock had missed when the query began.
    pub(in crate::auth) missed: u64,
}

impl Entry {
    /// Makes an entry from a record.
    pub(in crate::auth) fn load(
        record: KeyRecord,
        limits: &LimitResolver,
        owner: Weak<dyn EntryOwner>,
        Loaded { loaded_at, answered_at, outdated_by, generation, missed }: Loaded,
    ) -> Self {
        let ext = Cached {
            hash: record.key_hash,
            meter: limits.meter(&record, loaded_at),
            places: Places::of(&record),
            seen_at: AtomicU64::new(nanos(loaded_at)),
            loaded_at,
            outdated_by,
            generation,
            missed,
            uses: UseCounters::default(),
            validity: validity(&record, loaded_at, answered_at),
            owner,
        };
        Self::new(record, ext)
    }

    /// The status of the key at `now` of the monotonic clock.
    pub(in crate::auth) fn status(&self, now: Duration) -> KeyStatus {
        self.ext.validity.status(&instant(now))
    }

    /// Whether the record comes from a replica that is too far behind.
    pub(in crate::auth) fn is_outdated(&self) -> bool {
        !self.ext.outdated_by.is_zero()
    }

    /// The age of the record, including the replica's lag.
    pub(in crate::auth) fn age(&self, now: Duration) -> Duration {
        now.saturating_sub(self.ext.loaded_at).saturating_add(self.ext.outdated_by)
    }

    /// Like [`status`](Self::status), after the monotonic clock has missed some time since the
    /// load. The key expires early rather than late and activates late rather than early.
    #[cold]
    pub(in crate::auth) fn status_after_gap(&self, now: Duration, missed: Duration) -> KeyStatus {
        match self.status(now) {
            KeyStatus::Active => match self.status(now.saturating_add(missed)) {
                KeyStatus::Expired => KeyStatus::Expired,
                _ => KeyStatus::Active,
            },
            status => status,
        }
    }

    /// What responses tell about the key at `now` of the monotonic clock.
    pub(in crate::auth) fn notice(&self, now: Duration) -> Notice {
        let soon = nanos(now).saturating_add(SOON);
        Notice {
            expires_soon: self.ext.validity.expires_at.is_some_and(|end| end.get() <= soon),
            is_publishable: self.kind() == KeyKind::Publishable,
        }
    }

    /// The time until the key expires; `None` if it never does.
    pub(in crate::auth) fn expires_in(&self, now: Duration) -> Option<Duration> {
        let expires_at = self.ext.validity.expires_at?;
        Some(Duration::from_nanos(expires_at.get() - 1).saturating_sub(now))
    }

    /// Marks the key as in use, unless that was done within [`SEEN_EVERY`]; returns whether it was
    /// marked.
    pub(in crate::auth) fn is_seen_again(&self, now: Duration) -> bool {
        let is_new = self.unseen_for(now) >= SEEN_EVERY;
        if is_new {
            self.ext.seen_at.store(nanos(now), Ordering::Relaxed);
        }
        is_new
    }

    /// Whether the key has not been used for a while.
    pub(in crate::auth) fn is_out_of_use(&self, now: Duration) -> bool {
        self.unseen_for(now) >= 2 * SEEN_EVERY
    }

    fn unseen_for(&self, now: Duration) -> u64 {
        nanos(now).saturating_sub(self.ext.seen_at.load(Ordering::Relaxed))
    }
}

/// The store read its clock between `loaded_at` and `answered_at`. Expiry is measured from the
/// earlier instant and activation from the later, so a key is never valid for too long. Times that
/// had passed by then map to zero, because a request may have read its own clock before the query
/// began.
fn validity(
    record: &KeyRecord,
    loaded_at: Duration,
    answered_at: Duration,
) -> Validity<NonZeroU64> {
    let validity = record.validity();
    let on = |time: SystemTime, read_at: Duration| match time.duration_since(record.read_at) {
        Ok(until) if !until.is_zero() => instant(read_at.saturating_add(until)),
        _ => instant(Duration::ZERO),
    };
    let not_before = validity.not_before.map(|begin| on(begin, answered_at));
    let expires_at = validity.expires_at.map(|end| on(end, loaded_at));
    validity.on(not_before, expires_at)
}

/// Nanoseconds starting at 1, so that `Option` needs no extra space.
fn instant(time: Duration) -> NonZeroU64 {
    NonZeroU64::MIN.saturating_add(nanos(time))
}

impl KeyExtension for Cached {
    fn meter(&self) -> Option<&Meter> {
        Some(&self.meter)
    }

    fn ended(&self, key_id: KeyId) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let (id, hash, outdated_by) = (key_id, self.hash, self.outdated_by);
        let key = WatchedKey { id, hash, confirmed_at: self.loaded_at, outdated_by };
        match self.owner.upgrade() {
            Some(owner) => owner.ended(key),
            None => Box::pin(ready(())),
        }
    }

    fn origin(&self) -> Option<Origin> {
        Some(Origin::of(&self.owner))
    }

    fn use_counters(&self) -> Option<&UseCounters> {
        Some(&self.uses)
    }

    fn tell_use(&self, key: Consumer) {
        if let Some(owner) = self.owner.upgrade() {
            owner.tell_use(key);
        }
    }
}

/// Counts how often all records, or all absences, were invalidated.
#[derive(Clone, Copy, Default)]
pub(in crate::auth) struct Generation {
    pub(in crate::auth) present: u64,
    pub(in crate::auth) absent: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Looked up from second 10 to second 11 of the monotonic clock, at second 1,000 of the store's
    /// clock.
    fn status(not_before: Option<u64>, expires_at: Option<u64>, now: Duration) -> KeyStatus {
        let at = |seconds| SystemTime::UNIX_EPOCH + SECOND * u32::try_from(seconds).unwrap();
        let (id, hash) = (KeyId::from_bytes([1; 16]), KeyHash::from_bytes([2; 32]));
        let mut record = KeyRecord::new(id, hash, "acme", at(1_000));
        record.not_before = not_before.map(at);
        record.expires_at = expires_at.map(at);
        validity(&record, 10 * SECOND, 11 * SECOND).status(&instant(now))
    }

    #[test]
    fn an_end_comes_early_rather_than_late_and_a_beginning_late() {
        assert_eq!(
            status(None, Some(1_005), 15 * SECOND - Duration::from_nanos(1)),
            KeyStatus::Active
        );
        assert_eq!(status(None, Some(1_005), 15 * SECOND), KeyStatus::Expired);
        let before = 16 * SECOND - Duration::from_nanos(1);
        assert_eq!(status(Some(1_005), None, before), KeyStatus::NotYetActive);
        assert_eq!(status(Some(1_005), None, 16 * SECOND), KeyStatus::Active);
    }

    #[test]
    fn what_is_over_is_over_for_who_read_the_clock_before_the_store_was_asked() {
        for now in [Duration::ZERO, 9 * SECOND, 10 * SECOND, Duration::MAX] {
            for past in [0, 999, 1_000] {
                assert_eq!(status(None, Some(past), now), KeyStatus::Expired, "{past} at {now:?}");
                assert_eq!(status(Some(past), None, now), KeyStatus::Active, "{past} at {now:?}");
            }
        }
        assert_eq!(status(None, Some(1_001), Duration::ZERO), KeyStatus::Active);
        assert_eq!(status(Some(1_001), None, Duration::ZERO), KeyStatus::NotYetActive);
    }
}
