use std::{
    future::Future,
    pin::Pin,
    time::{Duration, SystemTime},
};

use crate::{
    record::{AuditEntry, WebhookEndpoint, WebhookId},
    store::{
        StoreError,
        port::{AuditFrontier, AuditLine, Notice, WebhookStore},
    },
};

type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// [`WebhookStore`] as a trait object, so that [`Webhooks`](super::Webhooks) has no type parameter.
pub(super) trait DynStore: Send + Sync {
    fn lease(&self, holder: [u8; 16], duration: Duration) -> Answer<'_, bool>;
    fn release(&self, holder: [u8; 16]) -> Answer<'_, ()>;
    fn add<'a>(
        &'a self,
        endpoint: &'a WebhookEndpoint,
        max: usize,
        audit: AuditEntry,
    ) -> Answer<'a, bool>;
    fn all(&self) -> Answer<'_, Vec<WebhookEndpoint>>;
    fn update<'a>(
        &'a self,
        endpoint: &'a WebhookEndpoint,
        audit: Option<AuditEntry>,
    ) -> Answer<'a, bool>;
    fn remove(&self, id: WebhookId, audit: AuditEntry) -> Answer<'_, bool>;
    fn frontier(&self) -> Answer<'_, AuditFrontier>;
    fn after(&self, after: u64, until: u64, limit: usize) -> Answer<'_, Vec<AuditLine>>;
    fn notices(&self, notice: Notice, now: SystemTime, limit: usize) -> Answer<'_, usize>;
}

impl<S: WebhookStore> DynStore for S {
    fn lease(&self, holder: [u8; 16], duration: Duration) -> Answer<'_, bool> {
        Box::pin(self.lease_webhooks(holder, duration))
    }

    fn release(&self, holder: [u8; 16]) -> Answer<'_, ()> {
        Box::pin(self.release_webhooks(holder))
    }

    fn add<'a>(
        &'a self,
        endpoint: &'a WebhookEndpoint,
        max: usize,
        audit: AuditEntry,
    ) -> Answer<'a, bool> {
        Box::pin(self.add_webhook(endpoint, max, audit))
    }

    fn all(&self) -> Answer<'_, Vec<WebhookEndpoint>> {
        Box::pin(self.webhooks())
    }

    fn update<'a>(
        &'a self,
        endpoint: &'a WebhookEndpoint,
        audit: Option<AuditEntry>,
    ) -> Answer<'a, bool> {
        Box::pin(self.update_webhook(endpoint, audit))
    }

    fn remove(&self, id: WebhookId, audit: AuditEntry) -> Answer<'_, bool> {
        Box::pin(self.remove_webhook(id, audit))
    }

    fn frontier(&self) -> Answer<'_, AuditFrontier> {
        Box::pin(self.audit_frontier())
    }

    fn after(&self, after: u64, until: u64, limit: usize) -> Answer<'_, Vec<AuditLine>> {
        Box::pin(self.audit_after(after, until, limit))
    }

    fn notices(&self, notice: Notice, now: SystemTime, limit: usize) -> Answer<'_, usize> {
        Box::pin(self.write_notices(notice, now, limit))
    }
}
