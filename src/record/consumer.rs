use std::{
    fmt,
    future::{Future, pending},
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
};

use super::{KeyId, KeyRecord, Metadata, Scope, Scopes};
use crate::key::KeyHash;

/// Who is asking: what a handler gets to know of the key that let the request in.
///
/// Found in the request's extensions behind an [`ApiKeyLayer`](crate::ApiKeyLayer), and an axum
/// extractor. Cloning it is cheap; it holds no secret.
#[derive(Clone)]
pub struct Consumer(Arc<Inner>);

struct Inner {
    id: Box<str>,
    key_id: KeyId,
    key_name: Option<Box<str>>,
    scopes: Scopes,
    metadata: Metadata,
    key_hash: KeyHash,
    watch: Option<Weak<dyn Watch>>,
}

/// Whoever can tell that a key no longer works.
pub(crate) trait Watch: Send + Sync {
    /// Resolves when the key no longer works.
    fn ended(
        self: Arc<Self>,
        key_id: KeyId,
        hash: KeyHash,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

impl Consumer {
    pub(crate) fn watched_by(record: KeyRecord, watch: Weak<dyn Watch>) -> Self {
        Self::new(record, Some(watch))
    }

    fn new(record: KeyRecord, watch: Option<Weak<dyn Watch>>) -> Self {
        Self(Arc::new(Inner {
            id: record.consumer_id.into(),
            key_id: record.id,
            key_name: record.name.map(Into::into),
            scopes: record.scopes,
            metadata: record.metadata,
            key_hash: record.key_hash,
            watch,
        }))
    }

    /// The id of the consumer the key was issued to.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// The public id of the key, safe to log.
    #[must_use]
    pub fn key_id(&self) -> KeyId {
        self.0.key_id
    }

    /// What the owner calls the key.
    #[must_use]
    pub fn key_name(&self) -> Option<&str> {
        self.0.key_name.as_deref()
    }

    /// What the key may do.
    #[must_use]
    pub fn scopes(&self) -> &Scopes {
        &self.0.scopes
    }

    /// Whether the key has `scope`.
    #[must_use]
    pub fn has_scope(&self, scope: &str) -> bool {
        self.0.scopes.contains(scope)
    }

    /// What the application stored with the key.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.0.metadata
    }

    /// Resolves when the key stops working: revoked, switched off, deleted or expired. For answers
    /// that go on for long; the layer judges a key only when a request begins.
    ///
    /// It learns of that as fast as requests do: within milliseconds where the authenticator has a
    /// [change feed](crate::auth::Builder::change_feed) and its worker runs, else within
    /// [`fresh`](crate::auth::CachePolicy::fresh). It resolves too when nobody has been able to
    /// confirm the key for as long as a cached one is believed
    /// ([`stale_if_error`](crate::auth::CachePolicy::stale_if_error)), and at once where the
    /// authenticator that let the request in is gone.
    ///
    /// Keys are only watched for those who ask. For a consumer that no authenticator made it never
    /// resolves. It needs a tokio runtime with its timer.
    pub fn revoked(&self) -> Revoked {
        let Inner { key_id, key_hash, watch, .. } = &*self.0;
        Revoked(match watch.as_ref().map(Weak::upgrade) {
            Some(Some(watch)) => watch.ended(*key_id, *key_hash),
            Some(None) => Box::pin(std::future::ready(())),
            None => Box::pin(pending()),
        })
    }
}

/// Resolves when a key no longer works: see [`Consumer::revoked`].
#[must_use = "futures do nothing unless polled"]
pub struct Revoked(Pin<Box<dyn Future<Output = ()> + Send>>);

impl Future for Revoked {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for Revoked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Revoked")
    }
}

impl From<KeyRecord> for Consumer {
    fn from(record: KeyRecord) -> Self {
        Self::new(record, None)
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scopes: Vec<_> = self.scopes().iter().map(Scope::as_str).collect();
        f.debug_struct("Consumer")
            .field("id", &self.id())
            .field("key_id", &self.key_id())
            .field("key_name", &self.key_name())
            .field("scopes", &scopes)
            .finish_non_exhaustive()
    }
}
