//! Invalidation: of one key, of all keys, or for the duration of a gap.

use super::state::LoadState;
use crate::{
    auth::core::Core,
    key::KeyHash,
    record::{KeyId, KeyRecord},
};

/// Beyond this many recently changed keys, all of them count as unknown until they are looked up.
const MAX_RECENTLY_KNOWN: usize = 4096;

fn mark_recently_known(state: &mut LoadState, hash: KeyHash) {
    if state.recently_known.len() >= MAX_RECENTLY_KNOWN {
        state.recently_known.clear();
    }
    state.recently_known.insert(hash);
}

impl Core {
    /// Invalidates the key with this hash.
    pub(in crate::auth) fn invalidate(&self, hash: &KeyHash) {
        self.legacy_keys_may_have_come();
        self.forget(&mut self.lookup.state(), hash);
    }

    /// Keys with legacy hashes may have been imported, also by this process.
    fn legacy_keys_may_have_come(&self) {
        if let Some(legacy) = &self.legacy {
            legacy.may_have_grown();
        }
    }

    /// Handles a revocation by this process. A store that returns the key as not revoked lags
    /// behind.
    pub(in crate::auth) fn revoked(&self, record: &KeyRecord) {
        let mut state = self.lookup.state();
        state.revoked.add(record);
        self.forget(&mut state, &record.key_hash);
    }

    /// Invalidates the key with this id.
    pub(in crate::auth) fn invalidate_id(&self, id: KeyId) {
        let mut state = self.lookup.state();
        state.in_flight.note(id);
        if let Some(hash) = state.ids.hash_of(id) {
            self.forget(&mut state, &hash);
        }
    }

    pub(super) fn forget(&self, state: &mut LoadState, hash: &KeyHash) {
        state.in_flight.detach(hash);
        if self.cache.forget(hash) {
            mark_recently_known(state, *hash);
        }
        state.ids.tell(hash);
    }

    /// Lets the next look-up of this key bypass the limits on unknown keys.
    pub(in crate::auth) fn mark_known(&self, hash: KeyHash) {
        mark_recently_known(&mut self.lookup.state(), hash);
    }

    /// Discards all cached absences.
    pub(in crate::auth) fn invalidate_absent(&self) {
        self.legacy_keys_may_have_come();
        let _guard = self.lookup.state();
        self.cache.invalidate_absent();
    }

    /// Invalidates every key.
    pub(in crate::auth) fn invalidate_all(&self) {
        self.legacy_keys_may_have_come();
        let mut state = self.lookup.state();
        state.in_flight.detach_all();
        self.cache.invalidate_all();
        state.ids.tell_all();
    }

    /// Requires every key to be confirmed. Until then, records remain usable if the store does not
    /// answer.
    pub(in crate::auth) fn expire_all(&self) {
        self.legacy_keys_may_have_come();
        let mut state = self.lookup.state();
        state.in_flight.note_all_changed();
        self.cache.expire_all(self.clock.monotonic());
        state.ids.wake_all();
    }

    /// Wakes the streams that wait for the end of a key, so that they check it again.
    pub(in crate::auth) fn wake_watchers(&self) {
        self.lookup.state().ids.wake_all();
    }

    /// The change feed was lost.
    pub(in crate::auth) fn begin_gap(&self) {
        let state = self.lookup.state();
        self.cache.set_in_gap(true);
        state.ids.wake_all();
    }

    /// The change feed is connected, so the store probably answers as well.
    pub(in crate::auth) fn end_gap(&self) {
        self.lookup.breaker.reset();
        self.expire_all();
        self.cache.set_in_gap(false);
    }
}
