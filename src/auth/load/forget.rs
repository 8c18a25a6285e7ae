//! Invalidation: of one key, of all keys, or for the duration of a gap.

use super::{Board, Loader};
use crate::{
    key::KeyHash,
    record::{KeyId, KeyRecord},
};

/// Beyond this many recently changed keys, all of them count as unknown until they are looked up.
const MAX_ACQUAINTANCES: usize = 4096;

fn acquaint(board: &mut Board, hash: KeyHash) {
    if board.acquaintances.len() >= MAX_ACQUAINTANCES {
        board.acquaintances.clear();
    }
    board.acquaintances.insert(hash);
}

impl Loader {
    /// Invalidates the key with this hash.
    pub(in crate::auth) fn invalidate(&self, hash: &KeyHash) {
        self.forget(&mut self.board(), hash);
    }

    /// Handles a revocation by this process. A store that returns the key as not revoked lags
    /// behind.
    pub(in crate::auth) fn revoked(&self, record: &KeyRecord) {
        let mut board = self.board();
        board.revoked.add(record);
        self.forget(&mut board, &record.key_hash);
    }

    /// Invalidates the key with this id.
    pub(in crate::auth) fn invalidate_id(&self, id: KeyId) {
        let mut board = self.board();
        board.flights.note(id);
        if let Some(hash) = board.directory.hash_of(id) {
            self.forget(&mut board, &hash);
        }
    }

    pub(super) fn forget(&self, board: &mut Board, hash: &KeyHash) {
        board.flights.strike(hash);
        if self.cache.forget(hash) {
            acquaint(board, *hash);
        }
        board.directory.tell(hash);
    }

    /// Lets the next look-up of this key bypass the limits on unknown keys.
    pub(in crate::auth) fn mark_known(&self, hash: KeyHash) {
        acquaint(&mut self.board(), hash);
    }

    /// Discards all cached absences.
    pub(in crate::auth) fn invalidate_absent(&self) {
        let _board = self.board();
        self.cache.invalidate_absent();
    }

    /// Invalidates every key.
    pub(in crate::auth) fn invalidate_all(&self) {
        let mut board = self.board();
        board.flights.strike_all();
        self.cache.invalidate_all();
        board.directory.tell_all();
    }

    /// Requires every key to be confirmed. Until then, records remain usable if the store does not
    /// answer.
    pub(in crate::auth) fn expire_all(&self) {
        let mut board = self.board();
        board.flights.note_everything();
        self.cache.expire_all(self.clock.monotonic());
        board.directory.wake_all();
    }

    /// Wakes the streams that wait for the end of a key, so that they check it again.
    pub(in crate::auth) fn wake_watchers(&self) {
        self.board().directory.wake_all();
    }

    /// The change feed was lost.
    pub(in crate::auth) fn begin_gap(&self) {
        let board = self.board();
        self.cache.set_in_gap(true);
        board.directory.wake_all();
    }

    /// The change feed is connected, so the store probably answers as well.
    pub(in crate::auth) fn end_gap(&self) {
        self.breaker.reset();
        self.expire_all();
        self.cache.set_in_gap(false);
    }
}
