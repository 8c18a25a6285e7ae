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

use super::terms::Terms;
use crate::{
    clock::nanos,
    key::KeyHash,
    rate_limit::Meter,
    record::{KeyId, KeyRecord, KeyStatus, Known, Live, Origin, Validity},
};

/// How often a key in use is noted as such: once in this, and no more, does a hit write. Whoever is
/// told has to tidy up, too, which takes as long as several hits.
const SEEN_EVERY: u64 = 5_000_000_000;

/// What the cache holds of a key: facts, and the live buckets. No verdicts. Consumers are made of
/// it as it is.
pub(super) type Entry = Known<Cached>;

/// What the cache wants to know of a key beside what a consumer is told. Times are
/// [`Clock::monotonic`](crate::clock::Clock::monotonic), those without a unit in nanoseconds.
pub(super) struct Cached {
    pub(super) hash: KeyHash,
    /// When the store was asked.
    pub(super) loaded_at: Duration,
    /// How old what the store said was then: not at all, unless it is a replica that is behind.
    outdated_by: Duration,
    /// Of the cache, when the store was asked.
    pub(super) generation: u64,
    /// What the monotonic clock had missed by then.
    pub(super) missed: u64,
    /// When its use was last reported; see [`usage`](super::usage).
    pub(super) touched_at: AtomicU64,
    /// When it was last noted that it is in use.
    seen_at: AtomicU64,
    /// Reckoned from the store's clock: neither a wrong nor a stepping wall clock of this node
    /// matters.
    validity: Validity<NonZeroU64>,
    pub(super) meter: Meter,
    watch: Weak<dyn Watch>,
}

/// Whoever can tell that a key no longer works.
pub(super) trait Watch: Send + Sync {
    /// Resolves when the key no longer works.
    fn ended(self: Arc<Self>, key: WatchedKey) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// A key that worked when it was last looked up.
#[derive(Clone, Copy)]
pub(super) struct WatchedKey {
    pub(super) id: KeyId,
    pub(super) hash: KeyHash,
    /// When that was.
    pub(super) confirmed_at: Duration,
    /// And how old what was found then.
    pub(super) outdated_by: Duration,
}

impl WatchedKey {
    pub(super) fn confirm(&mut self, entry: &Entry) {
        self.confirmed_at = entry.live.loaded_at;
        self.outdated_by = entry.live.outdated_by;
    }

    pub(super) fn age(&self, now: Duration) -> Duration {
        now.saturating_sub(self.confirmed_at).saturating_add(self.outdated_by)
    }
}

/// When the store was asked.
#[derive(Clone, Copy, Default)]
pub(super) struct Loaded {
    pub(super) loaded_at: Duration,
    /// And when it had answered.
    pub(super) answered_at: Duration,
    /// And how old what it said is.
    pub(super) outdated_by: Duration,
    /// Of the cache, when the store was asked.
    pub(super) generation: u64,
    /// What the monotonic clock had missed by then.
    pub(super) missed: u64,
}

impl Entry {
    /// What the store said of a key.
    pub(super) fn load(
        record: KeyRecord,
        terms: &Terms,
        watch: Weak<dyn Watch>,
        Loaded { loaded_at, answered_at, outdated_by, generation, missed }: Loaded,
    ) -> Self {
        let live = Cached {
            hash: record.key_hash,
            meter: terms.meter(&record, loaded_at),
            seen_at: AtomicU64::new(nanos(loaded_at)),
            loaded_at,
            outdated_by,
            generation,
            missed,
            touched_at: AtomicU64::new(0),
            validity: validity(&record, loaded_at, answered_at),
            watch,
        };
        Self::new(record, live)
    }

    /// Whether the key may be used at `now` of the monotonic clock.
    pub(super) fn status(&self, now: Duration) -> KeyStatus {
        self.live.validity.status(&instant(now))
    }

    /// Whether it is what a replica said that is behind.
    pub(super) fn is_outdated(&self) -> bool {
        !self.live.outdated_by.is_zero()
    }

    /// How long ago this was true.
    pub(super) fn age(&self, now: Duration) -> Duration {
        now.saturating_sub(self.live.loaded_at).saturating_add(self.live.outdated_by)
    }

    /// As [`status`](Self::status), where the monotonic clock has missed a part of the time since
    /// the key was loaded. An end comes early rather than late, and a beginning late.
    #[cold]
    pub(super) fn status_after_gap(&self, now: Duration, missed: Duration) -> KeyStatus {
        match self.status(now) {
            KeyStatus::Active => match self.status(now.saturating_add(missed)) {
                KeyStatus::Expired => KeyStatus::Expired,
                _ => KeyStatus::Active,
            },
            status => status,
        }
    }

    /// How long until the key expires; `None` if it never does.
    pub(super) fn expires_in(&self, now: Duration) -> Option<Duration> {
        let expires_at = self.live.validity.expires_at?;
        Some(Duration::from_nanos(expires_at.get() - 1).saturating_sub(now))
    }

    /// Notes that it is in use. True where that was not noted just now.
    pub(super) fn is_seen_again(&self, now: Duration) -> bool {
        let is_new = self.unseen_for(now) >= SEEN_EVERY;
        if is_new {
            self.live.seen_at.store(nanos(now), Ordering::Relaxed);
        }
        is_new
    }

    /// Whether nobody has used it for a while.
    pub(super) fn is_out_of_use(&self, now: Duration) -> bool {
        self.unseen_for(now) >= 2 * SEEN_EVERY
    }

    fn unseen_for(&self, now: Duration) -> u64 {
        nanos(now).saturating_sub(self.live.seen_at.load(Ordering::Relaxed))
    }
}

/// The store read its clock at some time in between. Reckoned from the beginning of that, an end
/// comes early rather than late; a beginning is reckoned from the end of it. What was over by then
/// has always been over: a request may have read its own clock before the store was asked.
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

/// Nanoseconds from 1 on, so that having none takes no room.
fn instant(time: Duration) -> NonZeroU64 {
    NonZeroU64::MIN.saturating_add(nanos(time))
}

impl Live for Cached {
    fn meter(&self) -> Option<&Meter> {
        Some(&self.meter)
    }

    fn ended(&self, key_id: KeyId) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let (id, hash, outdated_by) = (key_id, self.hash, self.outdated_by);
        let key = WatchedKey { id, hash, confirmed_at: self.loaded_at, outdated_by };
        match self.watch.upgrade() {
            Some(watch) => watch.ended(key),
            None => Box::pin(ready(())),
        }
    }

    fn origin(&self) -> Option<Origin> {
        Some(Origin::of(&self.watch))
    }
}

/// Counts how often what was known of all keys, or of those that do not exist, ceased to hold.
#[derive(Clone, Copy, Default)]
pub(super) struct Generation {
    pub(super) present: u64,
    pub(super) absent: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Looked up from second 10 to second 11 of the monotonic clock, at second 1,000 of the store's.
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
