use std::{
    fmt,
    future::{Future, pending, ready},
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
    time::Duration,
};

use super::{KeyId, KeyRecord, Metadata, Retirement, Scope, Scopes};
use crate::{
    key::KeyHash,
    rate_limit::{Meter, RateLimits, Subject},
};

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
    plan: Option<Box<str>>,
    metadata: Metadata,
    /// In a box, as few keys have it.
    retirement: Option<Box<Retirement>>,
    root_id: KeyId,
    live: Option<Live>,
}

/// What ties a consumer to the authenticator that made it.
struct Live {
    meter: Option<Meter>,
    watch: Weak<dyn Watch>,
    key: WatchedKey,
}

/// Whoever can tell that a key no longer works.
pub(crate) trait Watch: Send + Sync {
    /// Resolves when the key no longer works.
    fn ended(self: Arc<Self>, key: WatchedKey) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// A key that worked when it was last looked up.
#[derive(Clone, Copy)]
pub(crate) struct WatchedKey {
    pub(crate) id: KeyId,
    pub(crate) hash: KeyHash,
    /// When that was, by [`Clock::monotonic`](crate::clock::Clock::monotonic).
    pub(crate) confirmed_at: Duration,
}

impl Consumer {
    /// The consumer of a key that was looked up at `confirmed_at`.
    pub(crate) fn watched_by(
        record: KeyRecord,
        meter: Option<Meter>,
        watch: Weak<dyn Watch>,
        confirmed_at: Duration,
    ) -> Self {
        let key = WatchedKey { id: record.id, hash: record.key_hash, confirmed_at };
        Self::new(record, Some(Live { meter, watch, key }))
    }

    fn new(record: KeyRecord, live: Option<Live>) -> Self {
        let retirement = record.retirement().map(Box::new);
        Self(Arc::new(Inner {
            id: record.consumer_id.into(),
            key_id: record.id,
            retirement,
            root_id: record.root_id,
            key_name: record.name.map(Into::into),
            scopes: record.scopes,
            plan: record.plan.map(Into::into),
            metadata: record.metadata,
            live,
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

    /// The name of the plan the key is on, whoever defines it.
    #[must_use]
    pub fn plan(&self) -> Option<&str> {
        self.0.plan.as_deref()
    }

    /// What the application stored with the key.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.0.metadata
    }

    /// Whether the key was rotated and is on its way out.
    pub(crate) fn retirement(&self) -> Option<Retirement> {
        self.0.retirement.as_deref().copied()
    }

    /// The limits of the key; none for a consumer that no authenticator made.
    pub(crate) fn meter(&self) -> Option<&Meter> {
        self.0.live.as_ref()?.meter.as_ref()
    }

    pub(crate) fn limits(&self) -> &RateLimits {
        match self.meter() {
            Some(meter) => meter.limits(),
            None => RateLimits::unlimited_ref(),
        }
    }

    /// Whose requests are counted.
    pub(crate) fn subject(&self) -> Subject<'_> {
        Subject { consumer: self.id(), root: self.0.root_id.as_u128() }
    }

    /// Resolves when the key stops working: revoked, switched off, deleted or expired. For answers
    /// that go on for long; the layer judges a key only when a request begins.
    ///
    /// It learns of that as fast as requests do: within milliseconds where the authenticator has a
    /// [change feed](crate::auth::Builder::change_feed) and its worker runs, else within
    /// [`fresh`](crate::auth::CachePolicy::fresh). It resolves too when nobody has been able to
    /// confirm the key for as long as a cached one is believed
    /// ([`stale_if_error`](crate::auth::CachePolicy::stale_if_error)), or when the key was changed
    /// and nobody can tell what it is now. What it returns keeps the authenticator's cache alive;
    /// called after that is gone, it resolves at once.
    ///
    /// Keys are only watched for those who ask. For a consumer that no authenticator made it never
    /// resolves. It needs a tokio runtime with its timer.
    pub fn revoked(&self) -> Revoked {
        Revoked(match &self.0.live {
            None => Box::pin(pending()),
            Some(Live { watch, key, .. }) => match watch.upgrade() {
                Some(watch) => watch.ended(*key),
                None => Box::pin(ready(())),
            },
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
            .field("plan", &self.plan())
            .finish_non_exhaustive()
    }
}
