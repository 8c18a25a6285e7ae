mod entry;
mod hot_table;
mod interner;
mod limit_resolver;
mod policy;

use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use moka::sync::Cache;

use self::hot_table::HotTable;
pub use self::policy::{CachePolicy, InvalidCachePolicy};
pub(super) use self::{
    entry::{Entry, EntryOwner, Generation, Loaded, WatchedKey},
    interner::Interner,
    limit_resolver::LimitResolver,
};
use super::canary::Canary;
use crate::{clock::nanos, key::KeyHash, record::KeyStatus};

/// Records and absences, by key hash.
///
/// moka decides which entries to keep, and [`HotTable`] holds those in use for cheaper look-ups.
/// Freshness is computed here from the caller's clock; moka's own clock only bounds memory.
///
/// Writers are serialized: each holds the lock of the loads.
pub(super) struct KeyCache {
    hot: HotTable,
    present: Cache<KeyHash, Arc<Entry>>,
    absent: Cache<KeyHash, Absence>,
    /// Entries of an earlier generation must be confirmed.
    generation: AtomicU64,
    /// Entries of an earlier generation are unusable, even if moka still returns them.
    oldest_usable: AtomicU64,
    /// Absences of an earlier generation are unusable.
    absent_generation: AtomicU64,
    /// When every entry was last invalidated for confirmation, in nanoseconds of the monotonic
    /// clock.
    expired_at: AtomicU64,
    /// Whether the change feed is in a gap.
    in_gap: AtomicBool,
    policy: CachePolicy,
}

#[derive(Clone)]
struct Absence {
    loaded_at: Duration,
    generation: u64,
    canary: Option<Arc<Canary>>,
}

pub(super) enum Peek {
    /// Cached and recently confirmed.
    Fresh(Arc<Entry>),
    /// Cached but no longer fresh; usable if the store does not answer.
    Stale(Arc<Entry>),
    /// Cached as absent.
    Absent(Option<Arc<Canary>>),
    /// Not cached.
    Miss,
}

impl KeyCache {
    pub(super) fn new(policy: CachePolicy) -> Self {
        Self {
            hot: HotTable::new(policy.capacity),
            present: Cache::builder()
                .max_capacity(policy.capacity)
                .time_to_idle(policy.fresh + policy.stale_if_error)
                .build(),
            absent: Cache::builder()
                .max_capacity(policy.absent_capacity)
                .time_to_live(policy.absent)
                .build(),
            generation: AtomicU64::new(0),
            oldest_usable: AtomicU64::new(0),
            absent_generation: AtomicU64::new(0),
            expired_at: AtomicU64::new(0),
            in_gap: AtomicBool::new(false),
            policy,
        }
    }

    /// Returns `evaluate`'s result for a key that is in the hot table and fresh.
    pub(super) fn get_hot<T>(
        &self,
        hash: &KeyHash,
        now: Duration,
        evaluate: impl FnOnce(&Arc<Entry>) -> Option<T>,
    ) -> Option<T> {
        let place = self.hot.get(hash)?;
        let entry = place.as_ref().filter(|entry| !self.fresh_for(entry, now).is_zero())?;
        if entry.is_seen_again(now) {
            // Tells moka that the key is in use.
            self.present.get(hash);
        }
        evaluate(entry)
    }

    /// Puts a fresh entry found by [`peek`](Self::peek) into the hot table, where
    /// [`get_hot`](Self::get_hot) finds it.
    pub(super) fn promote(&self, hash: &KeyHash, entry: &Arc<Entry>, now: Duration) {
        // It may have been evicted since it was found.
        if self.present.get(hash).is_some_and(|current| Arc::ptr_eq(&current, entry)) {
            self.hot.admit(hash, entry, now);
        }
    }

    pub(super) fn peek(&self, hash: &KeyHash, now: Duration) -> Peek {
        // moka may have evicted an entry that is still in the hot table.
        if let Some(entry) = self.present.get(hash).or_else(|| (*self.hot.get(hash)?).clone()) {
            if !self.fresh_for(&entry, now).is_zero() {
                if entry.status(now) != KeyStatus::Active {
                    // Takes as long as for an unknown key, which is found below.
                    black_box(self.absent.get(hash));
                }
                return Peek::Fresh(entry);
            }
            let is_gone = entry.ext.generation < self.oldest_usable.load(Ordering::Acquire);
            if !is_gone && self.is_usable(&entry, now) {
                return Peek::Stale(entry);
            }
        }
        let absence = self.absent.get(hash).filter(|absence| {
            let age = now.saturating_sub(absence.loaded_at);
            absence.generation == self.absent_generation.load(Ordering::Acquire)
                && age < self.policy.absent
        });
        absence.map_or(Peek::Miss, |absence| Peek::Absent(absence.canary))
    }

    /// How long `entry` stays fresh if nothing changes.
    pub(super) fn fresh_for(&self, entry: &Entry, now: Duration) -> Duration {
        if entry.ext.generation != self.generation.load(Ordering::Acquire)
            || entry.is_outdated() && !self.is_usable(entry, now)
        {
            return Duration::ZERO;
        }
        let CachePolicy { mut fresh, fresh_during_gap, .. } = self.policy;
        if self.in_gap.load(Ordering::Acquire) {
            fresh = fresh.min(fresh_during_gap);
        }
        fresh.saturating_sub(now.saturating_sub(entry.ext.loaded_at))
    }

    /// Whether `entry` should have been confirmed by now, although the store had time to do so:
    /// after a gap, or after the entry ceased to be fresh.
    pub(super) fn is_overdue(&self, entry: &Entry, now: Duration) -> bool {
        let CachePolicy { fresh, fresh_during_gap, load_deadline, .. } = self.policy;
        let expired_at = Duration::from_nanos(self.expired_at.load(Ordering::Acquire));
        let is_outdated = entry.ext.generation != self.generation.load(Ordering::Acquire);
        is_outdated && now.saturating_sub(expired_at) >= fresh_during_gap
            || now.saturating_sub(entry.ext.loaded_at) >= fresh + load_deadline
    }

    /// Whether the record is young enough to be used at all.
    pub(super) fn is_usable(&self, entry: &Entry, now: Duration) -> bool {
        entry.age(now) < self.usable()
    }

    /// The maximum age at which a record may be used.
    pub(super) fn usable(&self) -> Duration {
        self.policy.fresh + self.policy.stale_if_error
    }

    /// The number of cached records.
    #[cfg(feature = "metrics")]
    pub(super) fn entries(&self) -> u64 {
        // moka counts late.
        self.present.run_pending_tasks();
        self.present.entry_count()
    }

    pub(super) fn generation(&self) -> Generation {
        Generation {
            present: self.generation.load(Ordering::Acquire),
            absent: self.absent_generation.load(Ordering::Acquire),
        }
    }

    /// Whether an absence found in generation `then` is still valid.
    pub(super) fn is_absence_current(&self, then: Generation) -> bool {
        then.absent == self.absent_generation.load(Ordering::Acquire)
    }

    pub(super) fn insert(&self, hash: KeyHash, entry: Arc<Entry>) {
        self.absent.invalidate(&hash);
        self.hot.replace(&hash, Some(&entry));
        self.present.insert(hash, entry);
    }

    pub(super) fn insert_absent(
        &self,
        hash: KeyHash,
        loaded_at: Duration,
        generation: Generation,
        canary: Option<Arc<Canary>>,
    ) {
        self.hot.replace(&hash, None);
        self.present.invalidate(&hash);
        let generation = generation.absent;
        self.absent.insert(hash, Absence { loaded_at, generation, canary });
    }

    /// Returns whether a record was cached.
    pub(super) fn forget(&self, hash: &KeyHash) -> bool {
        self.absent.invalidate(hash);
        let was_in_front = self.hot.replace(hash, None);
        self.present.remove(hash).is_some() || was_in_front
    }

    pub(super) fn invalidate_all(&self) {
        let next = self.generation.load(Ordering::Acquire) + 1;
        // Stored first, so that no old entry counts as merely stale in between.
        self.oldest_usable.store(next, Ordering::Release);
        // Invalidates entries in the hot table, too.
        self.generation.store(next, Ordering::Release);
        self.present.invalidate_all();
        self.invalidate_absent();
    }

    /// Discards all cached absences.
    pub(super) fn invalidate_absent(&self) {
        self.absent_generation.fetch_add(1, Ordering::AcqRel);
        self.absent.invalidate_all();
    }

    /// Requires every entry to be confirmed before it is trusted again.
    pub(super) fn expire_all(&self, now: Duration) {
        self.expired_at.store(nanos(now), Ordering::Release);
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.invalidate_absent();
    }

    pub(super) fn set_in_gap(&self, in_gap: bool) {
        self.in_gap.store(in_gap, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::{
        hot_table::tests::{entry, hash},
        *,
    };

    #[test]
    fn a_cached_key_that_is_promoted_is_hot_while_it_is_fresh() {
        let (hash, now) = (hash(1, 2, 3), Duration::from_secs(1));
        let (cache, entry) = (KeyCache::new(CachePolicy::default()), entry(hash));
        let is_hot = |now| {
            let found = cache.get_hot(&hash, now, |found| Some(Arc::clone(found)));
            found.is_some_and(|found| Arc::ptr_eq(&found, &entry))
        };
        cache.promote(&hash, &entry, now);
        assert!(!is_hot(now), "it is not cached");
        cache.insert(hash, Arc::clone(&entry));
        assert!(!is_hot(now));
        cache.promote(&hash, &entry, now);
        assert!(is_hot(now));
        assert!(!is_hot(now + cache.policy.fresh));
        assert_eq!(cache.get_hot(&hash, now, |_| None::<()>), None);
        assert!(cache.forget(&hash) && !is_hot(now));
    }
}
