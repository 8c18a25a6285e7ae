use std::collections::{HashMap, VecDeque};

use crate::{
    record::KeyId,
    store::{
        StoreError, StoreErrorKind,
        port::{Change, ChangedKey, Changes, LogPosition},
    },
};

/// With more changes than this, confirming every key is cheaper than processing each one.
const MOST_UNTOLD: usize = 10_000;

const EVERY_KEY: KeyId = KeyId::from_bytes([0; 16]);

/// Read position in a log.
pub(super) struct Position {
    pub(super) horizon: LogPosition,
    /// The last changes already taken from beyond the horizon, which later polls return again.
    taken: HashMap<KeyId, ChangedKey>,
    pub(super) untold: VecDeque<Change>,
}

impl Position {
    pub(super) fn after(Changes { horizon, keys, .. }: Changes) -> Self {
        let taken = keys.into_iter().map(|key| (key.key_id, key)).collect();
        Self { horizon, taken, untold: VecDeque::new() }
    }

    pub(super) fn advance(
        &mut self,
        Changes { horizon, keys, .. }: Changes,
    ) -> Result<(), StoreError> {
        if horizon.server != self.horizon.server {
            return Err(lost("answered by another server, or by the same one after a restart"));
        }
        if horizon.from < self.horizon.from {
            return Err(lost("the change log went backwards"));
        }
        for key in keys {
            let before = self.taken.insert(key.key_id, key);
            if before != Some(key) {
                self.take(key, before);
            }
        }
        self.taken.retain(|_, key| key.created_in.max(key.changed_in) >= horizon.from);
        if self.untold.len() > MOST_UNTOLD {
            self.untold = VecDeque::from([Change::Everything]);
        }
        self.horizon = horizon;
        Ok(())
    }

    fn take(&mut self, key: ChangedKey, before: Option<ChangedKey>) {
        if key.key_id == EVERY_KEY {
            return self.untold.push_back(Change::Everything);
        }
        self.untold.push_back(Change::Changed(key.key_id));
        let was_taken = before.is_some_and(|before| before.created_in == key.created_in);
        if key.created_in >= self.horizon.from && !was_taken {
            self.untold.push_back(Change::Created(key.key_id));
        }
    }
}

pub(super) fn lost(problem: &'static str) -> StoreError {
    StoreError::new(StoreErrorKind::Unavailable).because(problem)
}
