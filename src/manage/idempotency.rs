//! Idempotency keys: a request that is repeated makes no second key.

use super::{KeyIssuer, ManageError};
use crate::{key::digest, record::KeyId, store::port::IdempotencyRecord};

/// Maximum bytes of an idempotency key.
pub(crate) const MAX_IDEMPOTENCY_KEY: usize = 255;

/// Whether an idempotency key has 1 to 255 visible ASCII characters.
pub(crate) fn is_idempotency_key(key: &str) -> bool {
    (1..=MAX_IDEMPOTENCY_KEY).contains(&key.len())
        && key.bytes().all(|byte| byte.is_ascii_graphic())
}

impl KeyIssuer {
    /// The record of an idempotency key, if the request has one.
    pub(super) fn claim(
        &self,
        key: Option<&str>,
        fingerprint: [u8; 32],
        makes: KeyId,
    ) -> Result<Option<IdempotencyRecord>, ManageError> {
        let Some(key) = key else { return Ok(None) };
        if !is_idempotency_key(key) {
            let detail = "an idempotency key must be 1 to 255 visible ASCII characters";
            return Err(ManageError::invalid("idempotency_key", detail));
        }
        let request = digest(&[self.actor.name.as_bytes(), key.as_bytes()]);
        Ok(Some(IdempotencyRecord::new(request, fingerprint, makes)))
    }
}
