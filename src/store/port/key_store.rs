use std::future::Future;

use super::UsageBatch;
use crate::{
    key::KeyHash,
    record::{AuditEntry, KeyRecord},
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

    /// Stores when keys were last used, and adds how often. Never moves a time backwards; ignores the
    /// last uses of unknown keys.
    ///
    /// A store that does not count uses may ignore [`counted`](UsageBatch::counted); one that does
    /// must add each batch only once, as described for [`CountedUses`](super::CountedUses). The
    /// default discards the batch.
    ///
    /// # Errors
    ///
    /// When the store cannot; the caller retries the same batch.
    fn record_usage(
        &self,
        batch: &UsageBatch,
    ) -> impl Future<Output = Result<(), StoreError>> + Send {
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
