//! The loads in progress, and whether their results are still current.

use std::collections::HashMap;

use tokio::sync::watch;

use crate::{key::KeyHash, record::KeyId};

/// Single flight: requests for the same key join the load in progress.
///
/// A detached load continues for the requests that already wait for it, but its result is not
/// cached and no further request joins it. A change reported by key id cannot detach a load of a
/// key whose id is not known yet: the change is noted, and the load checks for it on completion.
pub(super) struct InFlightLoads<T> {
    by_hash: HashMap<KeyHash, InFlightLoad<T>>,
    /// The last sequence number in use; it orders starts and changes.
    next: u64,
    /// The last change of each key that a load in progress may return.
    changed: HashMap<KeyId, u64>,
    /// The last change that may concern every key.
    everything_changed: u64,
}

pub(super) struct InFlightLoad<T> {
    pub(super) number: u64,
    pub(super) result: watch::Receiver<Option<T>>,
}

impl<T> Clone for InFlightLoad<T> {
    fn clone(&self) -> Self {
        Self { number: self.number, result: self.result.clone() }
    }
}

impl<T> Default for InFlightLoads<T> {
    fn default() -> Self {
        Self { by_hash: HashMap::new(), next: 0, changed: HashMap::new(), everything_changed: 0 }
    }
}

/// Beyond this many changes during one load, individual changes are no longer tracked: every load
/// counts as superseded.
const MAX_CHANGED: usize = 4096;

impl<T> InFlightLoads<T> {
    pub(super) fn len(&self) -> usize {
        self.by_hash.len()
    }

    pub(super) fn get(&self, hash: &KeyHash) -> Option<&InFlightLoad<T>> {
        self.by_hash.get(hash)
    }

    pub(super) fn start(&mut self, hash: KeyHash) -> (InFlightLoad<T>, watch::Sender<Option<T>>) {
        let (sender, result) = watch::channel(None);
        let load = InFlightLoad { number: self.number(), result };
        self.by_hash.insert(hash, load.clone());
        (load, sender)
    }

    pub(super) fn is_listed(&self, hash: &KeyHash, number: u64) -> bool {
        self.by_hash.get(hash).is_some_and(|load| load.number == number)
    }

    /// Detaches this load, but not a later one of the same key.
    pub(super) fn detach_load(&mut self, hash: &KeyHash, number: u64) {
        if self.is_listed(hash, number) {
            self.detach(hash);
        }
    }

    /// Called when the key with this hash changed.
    pub(super) fn detach(&mut self, hash: &KeyHash) {
        self.by_hash.remove(hash);
        if self.by_hash.is_empty() {
            self.changed.clear();
        }
    }

    /// Called when every key changed.
    pub(super) fn detach_all(&mut self) {
        self.by_hash.clear();
        self.changed.clear();
    }

    /// Called when the key with this id changed.
    pub(super) fn note(&mut self, id: KeyId) {
        if self.by_hash.is_empty() {
            return;
        }
        if self.changed.len() >= MAX_CHANGED {
            self.note_all_changed();
        }
        let number = self.number();
        self.changed.insert(id, number);
    }

    /// Called when any key may have changed.
    pub(super) fn note_all_changed(&mut self) {
        self.everything_changed = self.number();
        self.changed.clear();
    }

    /// Whether load `number` may return the key `id` as it was before a change.
    pub(super) fn is_superseded(&self, number: u64, id: Option<KeyId>) -> bool {
        let changed = id.and_then(|id| self.changed.get(&id)).copied();
        number < self.everything_changed || changed.is_some_and(|changed| number < changed)
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}
