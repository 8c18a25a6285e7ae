//! The part of an import that concerns legacy hashes.

use std::collections::HashSet;

use super::KeyImport;
use crate::{
    manage::{ManageError, change::Change},
    record::{KeyId, KeyRecord},
    store::port::{LegacyKey, MAX_KEYS_PER_HINT},
};

pub(super) fn check_hint(key: &KeyImport) -> Result<(), ManageError> {
    let Some(hint) = &key.legacy_hint else { return Ok(()) };
    if key.legacy_hash.is_none() {
        return Err(ManageError::invalid("legacy_hint", "is of no use without a legacy hash"));
    }
    if !(1..=64).contains(&hint.len()) || !hint.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(ManageError::invalid(
            "legacy_hint",
            "must be 1 to 64 visible ASCII characters",
        ));
    }
    Ok(())
}

/// Inserts the keys that are not known, with their legacy hashes. Returns their ids.
pub(super) async fn insert(
    change: &mut Change,
    records: &[KeyRecord],
    batch: &[KeyImport],
) -> Result<Vec<KeyId>, ManageError> {
    let digests: Vec<_> =
        batch.iter().filter_map(|key| Some(key.legacy_hash.as_ref()?.digest())).collect();
    if digests.is_empty() {
        return Ok(change.tx.insert(records).await?);
    }
    // A key that has moved no longer has the hash that it would be inserted with.
    let known: HashSet<_> = change.tx.known_legacy_hashes(&digests).await?.into_iter().collect();
    let is_new = |key: &KeyImport| {
        !key.legacy_hash.as_ref().is_some_and(|hash| known.contains(&hash.digest()))
    };
    let new = records.iter().zip(batch).filter(|(_, key)| is_new(key));
    let new: Vec<_> = new.map(|(record, _)| record.clone()).collect();
    let inserted = change.tx.insert(&new).await?;
    let legacy_keys = legacy_keys(records, batch, &inserted);
    if !legacy_keys.is_empty()
        && change.tx.insert_legacy_hashes(&legacy_keys).await? > MAX_KEYS_PER_HINT
    {
        return Err(ManageError::invalid("legacy_hint", TOO_MANY));
    }
    Ok(inserted)
}

const TOO_MANY: &str = "more than 64 keys that were not used yet would have the same hint, or none: \
    an unknown key would be compared with all of them. Give each key a hint, such as its id or its \
    first characters";

fn legacy_keys(records: &[KeyRecord], batch: &[KeyImport], inserted: &[KeyId]) -> Vec<LegacyKey> {
    let inserted: HashSet<_> = inserted.iter().collect();
    let new = records.iter().zip(batch).filter(|(record, _)| inserted.contains(&record.id));
    new.filter_map(|(record, key)| {
        Some(LegacyKey::new(record.id, key.legacy_hint.clone(), key.legacy_hash.clone()?))
    })
    .collect()
}
