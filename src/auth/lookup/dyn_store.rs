use std::{future::Future, pin::Pin};

use crate::{
    key::KeyHash,
    record::{AuditEntry, KeyRecord},
    store::{KeyStore, StoreError, port::UsageBatch},
};

pub(in crate::auth) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// [`KeyStore`] as a trait object, which boxes once per look-up and flush.
pub(in crate::auth) trait DynStore: Send + Sync {
    fn find<'a>(
        &'a self,
        hash: &'a KeyHash,
    ) -> BoxFuture<'a, Result<Option<KeyRecord>, StoreError>>;

    fn record_usage<'a>(&'a self, batch: &'a UsageBatch) -> BoxFuture<'a, Result<(), StoreError>>;

    fn append_audit<'a>(
        &'a self,
        entries: &'a [AuditEntry],
    ) -> BoxFuture<'a, Result<(), StoreError>>;
}

impl<S: KeyStore> DynStore for S {
    fn find<'a>(
        &'a self,
        hash: &'a KeyHash,
    ) -> BoxFuture<'a, Result<Option<KeyRecord>, StoreError>> {
        Box::pin(KeyStore::find(self, hash))
    }

    fn record_usage<'a>(&'a self, batch: &'a UsageBatch) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(KeyStore::record_usage(self, batch))
    }

    fn append_audit<'a>(
        &'a self,
        entries: &'a [AuditEntry],
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(KeyStore::append_audit(self, entries))
    }
}
