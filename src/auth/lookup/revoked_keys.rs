//! Keys revoked by this process, whose revocation a replica may not have applied yet.

use std::{
    collections::{HashMap, VecDeque},
    time::SystemTime,
};

use crate::record::{KeyId, KeyRecord};

/// When full, the oldest is dropped: a replica that lags by this many revocations is behind anyway.
const MAX_KEYS: usize = 10_000;

/// Revocation is permanent, so a record that is not revoked is older than the revocation.
#[derive(Default)]
pub(super) struct RevokedKeys {
    revoked: HashMap<KeyId, SystemTime>,
    oldest_first: VecDeque<KeyId>,
}

impl RevokedKeys {
    /// Remembers the revocation of `record`, if it is revoked.
    pub(super) fn add(&mut self, record: &KeyRecord) {
        let Some(at) = record.revoked_at else { return };
        if self.revoked.insert(record.id, at).is_some() {
            return;
        }
        self.oldest_first.push_back(record.id);
        if self.oldest_first.len() > MAX_KEYS
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.revoked.remove(&oldest);
        }
    }

    /// Marks `record` as revoked if this process revoked the key and the store lags behind.
    pub(super) fn correct(&self, record: &mut KeyRecord) {
        if record.revoked_at.is_none() {
            record.revoked_at = self.revoked.get(&record.id).copied();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::KeyHash;

    fn record(number: u16) -> KeyRecord {
        let mut id = [0; 16];
        id[..2].copy_from_slice(&number.to_be_bytes());
        let hash = KeyHash::from_bytes([7; 32]);
        KeyRecord::new(KeyId::from_bytes(id), hash, "acme", SystemTime::UNIX_EPOCH)
    }

    #[test]
    fn an_old_record_of_a_revoked_key_is_revoked_and_no_other_one() {
        let mut keys = RevokedKeys::default();
        let at = Some(SystemTime::UNIX_EPOCH);
        keys.add(&record(1));
        keys.add(&KeyRecord { revoked_at: at, ..record(2) });
        let corrected = |number| {
            let mut record = record(number);
            keys.correct(&mut record);
            record.revoked_at
        };
        assert_eq!([1, 2, 3].map(corrected), [None, at, None]);
    }

    #[test]
    fn the_oldest_of_too_many_are_forgotten() {
        let mut keys = RevokedKeys::default();
        for number in 0..=10_000 {
            let revoked_at = Some(SystemTime::UNIX_EPOCH);
            for _ in 0..2 {
                keys.add(&KeyRecord { revoked_at, ..record(number) });
            }
        }
        assert_eq!((keys.revoked.len(), keys.oldest_first.len()), (MAX_KEYS, MAX_KEYS));
        for (number, is_revoked) in [(0, false), (1, true), (10_000, true)] {
            let mut record = record(number);
            keys.correct(&mut record);
            assert_eq!(record.revoked_at.is_some(), is_revoked, "{number}");
        }
    }
}
