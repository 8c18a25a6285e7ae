//! The loads under way, and whether what they bring still holds.

use std::collections::HashMap;

use tokio::sync::watch;

use crate::{key::KeyHash, record::KeyId};

/// The loads whose results will be kept, joined by whoever wants the same key.
///
/// A load that is struck off goes on for those who wait for it already; its result is not kept, and
/// nobody joins it any more. A change that is told by the id of the key cannot strike off the load
/// of a key that nobody knows the id of yet: it is noted, and the load finds it when it lands.
pub(super) struct Flights<T> {
    by_hash: HashMap<KeyHash, Flight<T>>,
    /// Take-offs and changes, in one order.
    next: u64,
    /// When a key was last changed, of those that a load under way may bring.
    changed: HashMap<KeyId, u64>,
    /// When any key may have been changed.
    everything_changed: u64,
}

pub(super) struct Flight<T> {
    pub(super) number: u64,
    pub(super) landed: watch::Receiver<Option<T>>,
}

impl<T> Clone for Flight<T> {
    fn clone(&self) -> Self {
        Self { number: self.number, landed: self.landed.clone() }
    }
}

impl<T> Default for Flights<T> {
    fn default() -> Self {
        Self { by_hash: HashMap::new(), next: 0, changed: HashMap::new(), everything_changed: 0 }
    }
}

/// Beyond this many changes during one load, that which load they concern is not worth the memory.
const MAX_CHANGED: usize = 4096;

impl<T> Flights<T> {
    pub(super) fn len(&self) -> usize {
        self.by_hash.len()
    }

    pub(super) fn get(&self, hash: &KeyHash) -> Option<&Flight<T>> {
        self.by_hash.get(hash)
    }

    pub(super) fn take_off(&mut self, hash: KeyHash) -> (Flight<T>, watch::Sender<Option<T>>) {
        let (sender, landed) = watch::channel(None);
        let flight = Flight { number: self.number(), landed };
        self.by_hash.insert(hash, flight.clone());
        (flight, sender)
    }

    pub(super) fn is_listed(&self, hash: &KeyHash, number: u64) -> bool {
        self.by_hash.get(hash).is_some_and(|flight| flight.number == number)
    }

    /// Takes this flight off the list, and no later one of the same key.
    pub(super) fn strike_off(&mut self, hash: &KeyHash, number: u64) {
        if self.is_listed(hash, number) {
            self.strike(hash);
        }
    }

    /// The key with this hash was changed.
    pub(super) fn strike(&mut self, hash: &KeyHash) {
        self.by_hash.remove(hash);
        if self.by_hash.is_empty() {
            self.changed.clear();
        }
    }

    /// Every key was changed.
    pub(super) fn strike_all(&mut self) {
        self.by_hash.clear();
        self.changed.clear();
    }

    /// The key with this id was changed.
    pub(super) fn note(&mut self, id: KeyId) {
        if self.by_hash.is_empty() {
            return;
        }
        if self.changed.len() >= MAX_CHANGED {
            self.note_everything();
        }
        let number = self.number();
        self.changed.insert(id, number);
    }

    /// Any key may have been changed.
    pub(super) fn note_everything(&mut self) {
        self.everything_changed = self.number();
        self.changed.clear();
    }

    /// Whether a flight may bring the key `id` as it was before it was changed.
    pub(super) fn is_overtaken(&self, number: u64, id: Option<KeyId>) -> bool {
        let changed = id.and_then(|id| self.changed.get(&id)).copied();
        number < self.everything_changed || changed.is_some_and(|changed| number < changed)
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}
