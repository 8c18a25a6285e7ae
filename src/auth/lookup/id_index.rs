//! An index from key ids to cached keys, and the streams waiting for their changes.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use tokio::sync::watch;

use crate::{auth::cache::Entry, key::KeyHash, record::KeyId};

/// Finds cached keys and waiting streams by key id, which is all that a change feed reports.
///
/// Evictions are not reported here: stale ids are swept out whenever the number of ids has doubled
/// since the last sweep.
#[derive(Default)]
pub(super) struct IdIndex {
    cached: HashMap<KeyId, Weak<Entry>>,
    /// Counts the changes of each watched key.
    watched: HashMap<KeyHash, watch::Sender<u64>>,
    /// The ids of watched keys, cached or not.
    hashes: HashMap<KeyId, KeyHash>,
    sweep_at: usize,
}

const MIN_SWEEP: usize = 1024;

impl IdIndex {
    /// Adds an entry. Returns the key's previous hash if it has changed.
    pub(super) fn enter(&mut self, entry: &Arc<Entry>) -> Option<KeyHash> {
        let (id, hash) = (entry.key_id(), entry.ext.hash);
        let before = self.hash_of(id);
        self.cached.insert(id, Arc::downgrade(entry));
        if let Some(watched) = self.hashes.get_mut(&id) {
            *watched = hash;
        }
        self.sweep_if_due();
        before.filter(|before| *before != hash)
    }

    pub(super) fn hash_of(&self, id: KeyId) -> Option<KeyHash> {
        let cached = self.cached.get(&id).and_then(Weak::upgrade);
        cached.map(|entry| entry.ext.hash).or_else(|| self.hashes.get(&id).copied())
    }

    /// Subscribes to changes of the key. The value counts them.
    pub(super) fn watch(&mut self, id: KeyId, hash: KeyHash) -> watch::Receiver<u64> {
        self.hashes.entry(id).or_insert(hash);
        let news = self.watched.entry(hash).or_default().subscribe();
        self.sweep_if_due();
        news
    }

    /// Counts a change of the key with this hash.
    pub(super) fn tell(&self, hash: &KeyHash) {
        if let Some(watched) = self.watched.get(hash) {
            watched.send_modify(|changes| *changes += 1);
        }
    }

    /// Counts a change of every key.
    pub(super) fn tell_all(&self) {
        self.watched.values().for_each(|watched| watched.send_modify(|changes| *changes += 1));
    }

    /// Wakes the streams of the key with this hash.
    pub(super) fn wake(&self, hash: &KeyHash) {
        if let Some(watched) = self.watched.get(hash) {
            watched.send_modify(|_| {});
        }
    }

    /// Wakes every stream.
    pub(super) fn wake_all(&self) {
        self.watched.values().for_each(|watched| watched.send_modify(|_| {}));
    }

    fn sweep_if_due(&mut self) {
        if self.cached.len() + self.hashes.len() < self.sweep_at {
            return;
        }
        let Self { cached, watched, hashes, sweep_at } = self;
        watched.retain(|_, watched| watched.receiver_count() > 0);
        hashes.retain(|_, hash| watched.contains_key(hash));
        cached.retain(|_, entry| entry.strong_count() > 0);
        *sweep_at = MIN_SWEEP.max((cached.len() + hashes.len()) * 2);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::{Future, ready},
        pin::Pin,
        time::SystemTime,
    };

    use super::*;
    use crate::{
        auth::cache::{EntryOwner, LimitResolver, Loaded, WatchedKey},
        clock::SystemClock,
        rate_limit::{LocalRateLimiter, Meters, Plans, RateLimits},
        record::{Consumer, KeyRecord},
    };

    struct NoOwner;

    impl EntryOwner for NoOwner {
        fn ended(self: Arc<Self>, _: WatchedKey) -> Pin<Box<dyn Future<Output = ()> + Send>> {
            Box::pin(ready(()))
        }

        fn tell_use(&self, _: Consumer) {}
    }

    fn id(number: u128) -> KeyId {
        KeyId::from_bytes(number.to_be_bytes())
    }

    fn hash(number: u128) -> KeyHash {
        let mut bytes = [0; 32];
        bytes[..16].copy_from_slice(&number.to_be_bytes());
        KeyHash::from_bytes(bytes)
    }

    fn entry(number: u128) -> Arc<Entry> {
        let record = KeyRecord::new(id(number), hash(number), "acme", SystemTime::UNIX_EPOCH);
        let limiter = Arc::new(LocalRateLimiter::new());
        let meters = Arc::new(Meters { limiter, clock: Arc::new(SystemClock::new()) });
        let limits = LimitResolver::new(meters, Plans::new(), RateLimits::unlimited());
        let watch = Weak::<NoOwner>::new();
        Arc::new(Entry::load(record, &limits, watch, Loaded::default()))
    }

    #[test]
    fn names_of_evicted_entries_do_not_pile_up() {
        let mut ids = IdIndex::default();
        let kept = entry(0);
        ids.enter(&kept);
        let mut news = ids.watch(id(1), hash(1));
        for number in 2..100_000 {
            ids.enter(&entry(number));
        }
        assert!(ids.cached.len() <= 2 * MIN_SWEEP, "{}", ids.cached.len());
        assert_eq!(ids.hash_of(id(0)), Some(hash(0)), "still cached");

        let watched = ids.hash_of(id(1)).expect("still watched");
        assert!(!news.has_changed().unwrap());
        ids.tell(&watched);
        assert!(news.has_changed().unwrap());
        news.mark_unchanged();
        ids.tell(&hash(2));
        assert!(!news.has_changed().unwrap());
        ids.tell_all();
        assert!(news.has_changed().unwrap());
    }

    #[test]
    fn changes_are_counted_and_a_wake_up_is_no_change() {
        let mut ids = IdIndex::default();
        let (mut one, mut other) = (ids.watch(id(1), hash(1)), ids.watch(id(2), hash(2)));
        ids.tell(&hash(1));
        assert_eq!((*one.borrow_and_update(), *other.borrow_and_update()), (1, 0));
        ids.tell_all();
        assert_eq!((*one.borrow_and_update(), *other.borrow_and_update()), (2, 1));
        ids.wake(&hash(1));
        assert!(one.has_changed().unwrap() && !other.has_changed().unwrap());
        assert_eq!(*one.borrow_and_update(), 2);
        ids.wake_all();
        assert!(one.has_changed().unwrap() && other.has_changed().unwrap());
        assert_eq!((*one.borrow_and_update(), *other.borrow_and_update()), (2, 1));
    }

    #[test]
    fn those_who_stopped_listening_do_not_pile_up() {
        let mut ids = IdIndex::default();
        let first = ids.watch(id(0), hash(0));
        for number in 1..100_000 {
            drop(ids.watch(id(number), hash(number)));
        }
        assert!(ids.watched.len() <= 2 * MIN_SWEEP, "{}", ids.watched.len());
        assert!(ids.hashes.len() <= 2 * MIN_SWEEP, "{}", ids.hashes.len());
        assert!(ids.watched.contains_key(&hash(0)));
        drop(first);
    }
}
