//! A hot table of the keys in use, for look-ups that cost one read.

use std::{sync::Arc, time::Duration};

use arc_swap::{ArcSwapOption, Guard};

use super::entry::Entry;
use crate::key::KeyHash;

/// A two-way set-associative table: each key has two possible places.
///
/// A hit reads two atomics and writes no counter that is shared between threads. If three keys map
/// to the same two places, one of them is left out while the other two are in use.
pub(super) struct HotTable {
    places: Box<[ArcSwapOption<Entry>]>,
}

/// About twice the number of keys in use at once in most services, so that few collide; 256 KiB.
const MOST_PLACES: u64 = 1 << 15;
const PLACES_OF_A_KEY: usize = 2;

impl HotTable {
    pub(super) fn new(capacity: u64) -> Self {
        let places = capacity.clamp(PLACES_OF_A_KEY as u64, MOST_PLACES).next_power_of_two();
        Self { places: (0..places).map(|_| ArcSwapOption::empty()).collect() }
    }

    pub(super) fn get(&self, hash: &KeyHash) -> Option<Guard<Option<Arc<Entry>>>> {
        let places = self.places_of(hash).iter().map(ArcSwapOption::load);
        places.into_iter().find(|place| is_of(place.as_ref(), hash))
    }

    /// Inserts the key if one of its places is free or holds a key that is out of use.
    pub(super) fn admit(&self, hash: &KeyHash, entry: &Arc<Entry>, now: Duration) {
        let is_free = |place: &&ArcSwapOption<Entry>| {
            place.load().as_ref().is_none_or(|holder| holder.is_out_of_use(now))
        };
        if !self.replace(hash, Some(entry))
            && let Some(place) = self.places_of(hash).iter().find(is_free)
        {
            place.store(Some(Arc::clone(entry)));
        }
    }

    /// Replaces the entry of the key, if it is in the table.
    pub(super) fn replace(&self, hash: &KeyHash, entry: Option<&Arc<Entry>>) -> bool {
        let place = self.places_of(hash).iter().find(|place| is_of(place.load().as_ref(), hash));
        place.map(|place| place.store(entry.cloned())).is_some()
    }

    /// Only existing keys get here, and clients cannot choose their hashes, so provoking collisions
    /// gains nothing. The hash needs no seed.
    fn places_of(&self, hash: &KeyHash) -> &[ArcSwapOption<Entry>] {
        let [first, second, ..] = *hash.as_bytes();
        let at = usize::from(u16::from_le_bytes([first, second]));
        let at = (at & (self.places.len() - 1)) & !(PLACES_OF_A_KEY - 1);
        self.places.get(at..at + PLACES_OF_A_KEY).unwrap_or_default()
    }
}

fn is_of(entry: Option<&Arc<Entry>>, hash: &KeyHash) -> bool {
    entry.is_some_and(|entry| entry.ext.hash == *hash)
}

#[cfg(test)]
pub(super) mod tests {
    use std::{
        future::{Future, ready},
        pin::Pin,
        sync::Weak,
        time::SystemTime,
    };

    use super::{
        super::{EntryOwner, LimitResolver, Loaded, WatchedKey},
        *,
    };
    use crate::{
        clock::SystemClock,
        rate_limit::{LocalRateLimiter, Meters, Plans, RateLimits},
        record::{Consumer, KeyId, KeyRecord},
    };

    const SECOND: Duration = Duration::from_secs(1);

    struct NoOwner;

    impl EntryOwner for NoOwner {
        fn ended(self: Arc<Self>, _: WatchedKey) -> Pin<Box<dyn Future<Output = ()> + Send>> {
            Box::pin(ready(()))
        }

        fn tell_use(&self, _: Consumer) {}
    }

    /// `first` and `second` choose the slots.
    pub(in crate::auth::cache) fn hash(first: u8, second: u8, other: u8) -> KeyHash {
        let mut bytes = [other; 32];
        (bytes[0], bytes[1]) = (first, second);
        KeyHash::from_bytes(bytes)
    }

    /// An entry that was loaded, and so last used, at time 0.
    pub(in crate::auth::cache) fn entry(hash: KeyHash) -> Arc<Entry> {
        let record = KeyRecord::new(KeyId::from_bytes([1; 16]), hash, "a", SystemTime::UNIX_EPOCH);
        let limiter = Arc::new(LocalRateLimiter::new());
        let meters = Arc::new(Meters { limiter, clock: Arc::new(SystemClock::new()) });
        let limits = LimitResolver::new(meters, Plans::new(), RateLimits::unlimited());
        Arc::new(Entry::load(record, &limits, Weak::<NoOwner>::new(), Loaded::default()))
    }

    fn holds(table: &HotTable, entry: &Arc<Entry>) -> bool {
        let found = table.get(&entry.ext.hash);
        found.is_some_and(|slot| slot.as_ref().is_some_and(|held| Arc::ptr_eq(held, entry)))
    }

    #[test]
    fn a_key_has_two_slots_and_a_third_one_waits_until_a_holder_is_out_of_use() {
        let table = HotTable::new(1 << 20);
        let [a, b, c] = [1, 2, 3].map(|other| entry(hash(7, 7, other)));
        for key in [&a, &b, &c] {
            assert!(!holds(&table, key));
            table.admit(&key.ext.hash, key, SECOND);
        }
        assert!(holds(&table, &a) && holds(&table, &b) && !holds(&table, &c));

        assert!(b.is_seen_again(5 * SECOND), "noted once in 5 s");
        assert!(!b.is_seen_again(10 * SECOND - Duration::from_nanos(1)));
        table.admit(&c.ext.hash, &c, 10 * SECOND - Duration::from_nanos(1));
        assert!(!holds(&table, &c), "both holders were used less than 10 s ago");
        table.admit(&c.ext.hash, &c, 10 * SECOND);
        assert!(holds(&table, &c) && holds(&table, &b) && !holds(&table, &a));
    }

    #[test]
    fn a_newer_entry_of_a_key_takes_its_slot_and_no_other() {
        let table = HotTable::new(1 << 20);
        let old = entry(hash(7, 7, 1));
        let new = entry(hash(7, 7, 1));
        assert!(!table.replace(&old.ext.hash, Some(&old)), "it has no slot yet");
        assert!(!holds(&table, &old));
        table.admit(&old.ext.hash, &old, SECOND);
        table.admit(&new.ext.hash, &new, SECOND);
        assert!(holds(&table, &new));
        assert!(table.replace(&new.ext.hash, None), "it had a slot");
        assert!(!holds(&table, &new) && !holds(&table, &old));
    }

    #[test]
    fn keys_are_spread_over_all_slots_by_two_bytes_of_their_hash() {
        let table = HotTable::new(1 << 20);
        let keys: Vec<_> = (0..128_u8)
            .flat_map(|second| [0, 2, 100, 254].map(|first| entry(hash(first, second, 9))))
            .collect();
        for key in &keys {
            table.admit(&key.ext.hash, key, SECOND);
        }
        assert!(keys.iter().all(|key| holds(&table, key)), "no two of them share slots");
    }

    #[test]
    fn a_small_cache_has_a_small_table() {
        for (capacity, slots) in [(0, 2), (2, 2), (3, 4), (1_000, 1_024), (1 << 20, 1 << 15)] {
            assert_eq!(HotTable::new(capacity).places.len(), slots, "{capacity}");
        }
        let table = HotTable::new(0);
        let [a, b] = [hash(1, 1, 1), hash(200, 3, 2)].map(entry);
        table.admit(&a.ext.hash, &a, SECOND);
        table.admit(&b.ext.hash, &b, SECOND);
        assert!(holds(&table, &a) && holds(&table, &b));
    }
}
