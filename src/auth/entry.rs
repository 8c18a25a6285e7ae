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
    record::{KeyId, KeyRecord, KeyStatus, Known, Live, Validity},
};

/// How often a key in use is noted as such: once in this, and no more, does a hit write. Whoever is
/// told has to tidy up, too, which takes as long as several hits.
const SEEN_EVERY: u64 = 5_000_000_000;

/// What the cache holds of a key: facts, and the live buckets. No verdicts. Consumers are made of
/// it as it is.
pub(super) type Entry = Known<Cached>;

/// What the cache wants to know of a key beside what a consumer is told. Times are in nanoseconds
/// of [`Clock::monotonic`](crate::clock::Clock::monotonic).
pub(super) struct Cached {
    pub(super) hash: KeyHash,
    /// When the store was asked.
    pub(super) loaded_at: Duration,
    /// Of the cache, when the store was asked.
    pub(super) generation: u64,
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
}

impl Entry {
    /// What the store said of a key between `loaded_at` and `answered_at`.
    pub(super) fn load(
        record: KeyRecord,
        terms: &Terms,
        watch: Weak<dyn Watch>,
        loaded_at: Duration,
        answered_at: Duration,
        generation: u64,
    ) -> Self {
        let live = Cached {
            hash: record.key_hash,
            meter: terms.meter(&record, loaded_at),
            seen_at: AtomicU64::new(nanos(loaded_at)),
            loaded_at,
            generation,
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
/// comes early rather than late; a beginning is reckoned from the end of it.
fn validity(
    record: &KeyRecord,
    loaded_at: Duration,
    answered_at: Duration,
) -> Validity<NonZeroU64> {
    let validity = record.validity();
    let after = |time: SystemTime| time.duration_since(record.read_at).unwrap_or_default();
    let expires_at = validity.expires_at.map(|end| instant(loaded_at.saturating_add(after(end))));
    let not_before = validity.not_before.map(|begin| {
        let is_over = begin <= record.read_at;
        instant(if is_over { loaded_at } else { answered_at.saturating_add(after(begin)) })
    });
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
        let key = WatchedKey { id: key_id, hash: self.hash, confirmed_at: self.loaded_at };
        match self.watch.upgrade() {
            Some(watch) => watch.ended(key),
            None => Box::pin(ready(())),
        }
    }
}

/// Counts how often what was known of all keys, or of those that do not exist, ceased to hold.
#[derive(Clone, Copy, Default)]
pub(super) struct Generation {
    pub(super) present: u64,
    pub(super) absent: u64,
}
