//! Rows of `api_key_legacy_hashes`.

use super::error::corrupt;
use crate::{
    record::KeyId,
    store::{StoreError, port::LegacyKey},
    trace,
};

/// The keys of these ids, hints and verifiers. Those whose verifier is beyond its bounds, because it
/// was changed in SQL, are skipped: the others can be verified nevertheless.
pub(in crate::store) fn legacy_keys(rows: Vec<(KeyId, Option<String>, String)>) -> Vec<LegacyKey> {
    let key = |(id, hint, verifier): (KeyId, Option<String>, String)| match verifier.parse() {
        Ok(hash) => Some(LegacyKey::new(id, hint, hash)),
        Err(error) => {
            trace::warn!(key_id = %id, %error, "legacy hash skipped");
            let _ = error;
            None
        }
    };
    rows.into_iter().filter_map(key).collect()
}

pub(in crate::store) fn digests(rows: Vec<Vec<u8>>) -> Result<Vec<[u8; 32]>, StoreError> {
    let digest = |row: Vec<u8>| row.try_into().map_err(|_| corrupt("column `digest`"));
    rows.into_iter().map(digest).collect()
}

/// A count of rows.
pub(in crate::store) fn count(rows: i64) -> u64 {
    u64::try_from(rows).unwrap_or_default()
}
