//! The part of an import that concerns legacy hashes.

use std::collections::HashSet;

use super::{ManageError, change::Change};
use crate::{
    key::LegacyHash,
    record::{KeyId, KeyRecord},
    store::port::{LegacyKey, MAX_KEYS_PER_HINT},
};

const MAX_HINT: usize = 64;

/// The legacy hash of an imported key.
pub(super) struct Legacy<'k> {
    pub(super) hash: &'k LegacyHash,
    pub(super) hint: Option<&'k str>,
}

pub(super) fn check_hint(hint: &str, hash: Option<&LegacyHash>) -> Result<(), ManageError> {
    let problem = if hash.is_none() {
        "is of no use without a legacy hash"
    } else if hint.is_empty() || hint.len() > MAX_HINT {
        "must have 1 to 64 characters"
    } else if !hint.bytes().all(|byte| byte.is_ascii_graphic()) {
        "must consist of visible ASCII characters: no request can carry a key with others"
    } else {
        return Ok(());
    };
    Err(ManageError::invalid("legacy_hint", problem))
}

/// Inserts the keys that are not known, with their legacy hashes. Returns their ids.
pub(super) async fn insert(
    change: &mut Change,
    records: &[KeyRecord],
    legacy: &[Option<Legacy<'_>>],
) -> Result<Vec<KeyId>, ManageError> {
    let digests: Vec<_> = legacy.iter().flatten().map(|legacy| legacy.hash.digest()).collect();
    if digests.is_empty() {
        return Ok(change.tx.insert(records).await?);
    }
    // A key that has moved no longer has the hash that it would be inserted with.
    let known: HashSet<_> = change.tx.known_legacy_hashes(&digests).await?.into_iter().collect();
    let is_known = |legacy: &Option<Legacy<'_>>| {
        legacy.as_ref().is_some_and(|legacy| known.contains(&legacy.hash.digest()))
    };
    let new = records.iter().zip(legacy).filter(|(_, legacy)| !is_known(legacy));
    let new: Vec<_> = new.map(|(record, _)| record.clone()).collect();
    let inserted = change.tx.insert(&new).await?;
    let keys = legacy_keys(records, legacy, &inserted);
    if !keys.is_empty() && change.tx.insert_legacy_hashes(&keys).await? > MAX_KEYS_PER_HINT {
        return Err(ManageError::invalid("legacy_hint", TOO_MANY));
    }
    Ok(inserted)
}

const TOO_MANY: &str = "more than 64 keys that were not used yet would have the same hint, or none: \
    an unknown key would be compared with all of them. Give each key a hint, such as its id or its \
    first characters";

fn legacy_keys(
    records: &[KeyRecord],
    legacy: &[Option<Legacy<'_>>],
    inserted: &[KeyId],
) -> Vec<LegacyKey> {
    let inserted: HashSet<_> = inserted.iter().collect();
    let new = records.iter().zip(legacy).filter(|(record, _)| inserted.contains(&record.id));
    new.filter_map(|(record, legacy)| {
        let Legacy { hash, hint } = legacy.as_ref()?;
        Some(LegacyKey::new(record.id, hint.map(str::to_owned), LegacyHash::clone(hash)))
    })
    .collect()
}
