//! Query parameters, and single values of answers.

use super::{
    error::{corrupt, unstorable},
    uuid::Uuid,
};
use crate::{
    record::KeyId,
    store::{
        StoreError,
        port::{IdempotencyRecord, KeyCounts},
    },
};

/// The limit as a query parameter.
pub(in crate::store) fn bounded(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// The record of an earlier request with the same idempotency key.
pub(in crate::store) fn claimed(
    request: [u8; 32],
    fingerprint: &[u8],
    key_id: Uuid,
) -> Result<IdempotencyRecord, StoreError> {
    let fingerprint = <[u8; 32]>::try_from(fingerprint);
    let fingerprint = fingerprint.map_err(|_| corrupt("column `fingerprint`"))?;
    Ok(IdempotencyRecord::new(request, fingerprint, self::key_id(key_id)))
}

/// Counts of live and of recent keys.
pub(in crate::store) fn counts((live, recent): (i64, i64), limit: usize) -> KeyCounts {
    let count = |count| usize::try_from(count).unwrap_or(usize::MAX).min(limit);
    KeyCounts::new(count(live), count(recent))
}

pub(in crate::store) fn key_id(id: Uuid) -> KeyId {
    KeyId::from_bytes(id.into_bytes())
}

/// `value` as JSON text.
pub(in crate::store) fn json(value: &impl serde::Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(unstorable)
}
