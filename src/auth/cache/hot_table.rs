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
        let [first, second, third, ..] = *hash.as_bytes();
        let at = usize::from(first) | usize::from(second) << 8 | usize::from(third) << 16;
        let at = (at & (self.places.len() - 1)) & !(PLACES_OF_A_KEY - 1);
        self.places.get(at..at + PLACES_OF_A_KEY).unwrap_or_default()
    }
}

fn is_of(entry: Option<&Arc<Entry>>, hash: &KeyHash) -> bool {
    entry.is_some_and(|entry| entry.ext.hash == *hash)
}
