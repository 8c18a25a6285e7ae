//! What is cached and no longer to be believed: of one key, of all, or for as long as nobody tells.

use super::{Board, Loader};
use crate::{
    key::KeyHash,
    record::{KeyId, KeyRecord},
};

/// Changed keys beyond this many are strangers again, until somebody has looked them up.
const MAX_ACQUAINTANCES: usize = 4096;

fn acquaint(board: &mut Board, hash: KeyHash) {
    if board.acquaintances.len() >= MAX_ACQUAINTANCES {
        board.acquaintances.clear();
    }
    board.acquaintances.insert(hash);
}

impl Loader {
    /// Nothing of the key with this hash is to be believed.
    pub(in crate::auth) fn invalidate(&self, hash: &KeyHash) {
        self.forget(&mut self.board(), hash);
    }

    /// The key was revoked by this process. A store that still calls it live has old data.
    pub(in crate::auth) fn revoked(&self, record: &KeyRecord) {
        let mut board = self.board();
        board.revoked.add(record);
        self.forget(&mut board, &record.key_hash);
    }

    /// Nothing of the key with this id is to be believed.
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

    /// The key with this hash need not queue up with strangers when it is looked up next.
    pub(in crate::auth) fn mark_known(&self, hash: KeyHash) {
        acquaint(&mut self.board(), hash);
    }

    /// No key is to be believed unknown.
    pub(in crate::auth) fn invalidate_absent(&self) {
        let _board = self.board();
        self.cache.invalidate_absent();
    }

    /// Nothing of any key is to be believed.
    pub(in crate::auth) fn invalidate_all(&self) {
        let mut board = self.board();
        board.flights.strike_all();
        self.cache.invalidate_all();
        board.directory.tell_all();
    }

    /// Everything is to be confirmed before it is believed again, but is better than nothing while
    /// the store does not answer.
    pub(in crate::auth) fn expire_all(&self) {
        let mut board = self.board();
        board.flights.note_everything();
        self.cache.expire_all(self.clock.monotonic());
        board.directory.wake_all();
    }

    /// Streams that wait for the end of a key look at it again.
    pub(in crate::auth) fn wake_watchers(&self) {
        self.board().directory.wake_all();
    }

    /// From now on changes may go unheard.
    pub(in crate::auth) fn begin_gap(&self) {
        let board = self.board();
        self.cache.set_in_gap(true);
        board.directory.wake_all();
    }

    /// From now on changes are heard of, and the store probably answers, too.
    pub(in crate::auth) fn end_gap(&self) {
        self.breaker.reset();
        self.expire_all();
        self.cache.set_in_gap(false);
    }
}
