//! The keys in use, at the price of one look.

use std::{sync::Arc, time::Duration};

use arc_swap::{ArcSwapOption, Guard};

use crate::{auth::entry::Entry, key::KeyHash};

/// A table with two places for each key, which are its own but for those that share them.
///
/// A hit reads two atomics and touches no counter that other threads write to. Where three keys
/// share their two places, one of them goes without, for as long as the other two are in use.
pub(super) struct Front {
    places: Box<[ArcSwapOption<Entry>]>,
}

/// Twice the keys that perhaps are in use at once in most services, so that few share their places;
/// a quarter of a megabyte.
const MOST_PLACES: u64 = 1 << 15;
const PLACES_OF_A_KEY: usize = 2;

impl Front {
    pub(super) fn new(capacity: u64) -> Self {
        let places = capacity.clamp(PLACES_OF_A_KEY as u64, MOST_PLACES).next_power_of_two();
        Self { places: (0..places).map(|_| ArcSwapOption::empty()).collect() }
    }

    pub(super) fn get(&self, hash: &KeyHash) -> Option<Guard<Option<Arc<Entry>>>> {
        let places = self.places_of(hash).iter().map(ArcSwapOption::load);
        places.into_iter().find(|place| is_of(place.as_ref(), hash))
    }

    /// Takes the key in where a place is free, or its holder is not in use any more.
    pub(super) fn offer(&self, hash: &KeyHash, entry: &Arc<Entry>, now: Duration) {
        let is_free = |place: &&ArcSwapOption<Entry>| {
            place.load().as_ref().is_none_or(|holder| holder.is_out_of_use(now))
        };
        if !self.replace(hash, Some(entry))
            && let Some(place) = self.places_of(hash).iter().find(is_free)
        {
            place.store(Some(Arc::clone(entry)));
        }
    }

    /// Puts `entry` into the place of the key, if it has one.
    pub(super) fn replace(&self, hash: &KeyHash, entry: Option<&Arc<Entry>>) -> bool {
        let place = self.places_of(hash).iter().find(|place| is_of(place.load().as_ref(), hash));
        place.map(|place| place.store(entry.cloned())).is_some()
    }

    /// Only keys that exist get here, and nobody chooses the hash of one: nothing is to be gained
    /// by looking for those that share places.
    fn places_of(&self, hash: &KeyHash) -> &[ArcSwapOption<Entry>] {
        let [first, second, third, ..] = *hash.as_bytes();
        let at = usize::from(first) | usize::from(second) << 8 | usize::from(third) << 16;
        let at = (at & (self.places.len() - 1)) & !(PLACES_OF_A_KEY - 1);
        self.places.get(at..at + PLACES_OF_A_KEY).unwrap_or_default()
    }
}

fn is_of(entry: Option<&Arc<Entry>>, hash: &KeyHash) -> bool {
    entry.is_some_and(|entry| entry.live.hash == *hash)
}
