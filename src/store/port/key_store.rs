use std::{future::Future, time::SystemTime};

use crate::{
    key::KeyHash,
    record::{AuditEntry, KeyId, KeyRecord},
    store::StoreError,
};

/// Looks up keys, and records when they were last used.
pub trait KeyStore: Send + Sync + 'static {
    /// The record of the key with this hash, in any state.
    ///
    /// The future may be dropped at any time.
    ///
    /// # Errors
    ///
    /// When the store cannot answer.
    fn find(
        &self,
        hash: &KeyHash,
    ) -> impl Future<Output = Result<Option<KeyRecord>, StoreError>> + Send;

    /// Stores when keys were last used. Never moves a time backwards; ignores unknown keys.
    ///
    /// `batch` is sorted by key and contains each key once. The default discards it.
    ///
    /// # Errors
    ///
    /// When the store cannot; the caller retries the batch.
    fn record_usage(&self, batch: &[Usage]) -> impl Future<Output = Result<(), StoreError>> + Send {
        let _ = batch;
        async { Ok(()) }
    }

    /// Appends audit entries about keys that were presented, all or none: uses of
    /// [canary](crate::record::KeyKind::Canary) keys. The default discards them.
    ///
    /// # Errors
    ///
    /// When the store cannot; the caller retries them.
    fn append_audit(
        &self,
        entries: &[AuditEntry],
    ) -> impl Future<Output = Result<(), StoreError>> + Send {
        let _ = entries;
        async { Ok(()) }
    }
}

/// When a key was last used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// The key.
    pub key_id: KeyId,
    /// The time of use, by the wall clock of the node that served the request.
    pub last_used_at: SystemTime,
}

impl Usage {
    /// `key_id` was used at `last_used_at`.
    #[must_use]
    pub const fn new(key_id: KeyId, last_used_at: SystemTime) -> Self {
        Self { key_id, last_used_at }
    }
}
