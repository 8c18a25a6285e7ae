use std::{
    fmt,
    future::{Future, pending},
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
    time::SystemTime,
};

use serde::{Serialize, Serializer, de::DeserializeOwned, ser::SerializeStruct as _};

use super::{
    ExpiresAt, InvalidMetadata, KeyId, KeyKind, KeyRecord, Metadata, Retirement, Scope, Scopes,
    Tags, UseCounters, UseRejection, decoded::Decoded, rfc3339,
};
use crate::rate_limit::{Meter, RateLimits, port::Subject};

/// The authenticated caller: what a handler can see of the key that admitted the request.
///
/// [`ApiKeyLayer`](crate::ApiKeyLayer) puts it into the request's extensions; it is also an axum
/// extractor. Cloning is cheap. It holds no secret.
///
/// The extractor and layers such as [`RequireScope`](crate::RequireScope) only trust a consumer
/// that an [`Authenticator`](crate::Authenticator) made. A consumer made from a [`KeyRecord`] is
/// meant for [`Actor::key`](crate::manage::Actor::key) and similar; for handler tests there
/// are `Consumer::acting_as` and `Consumer::builder`, behind the feature `test-util`.
///
/// It serialises as an object, for logs, templates and `GET /whoami`: `id`, `key_id`, `key_name`,
/// `scopes`, `plan`, `tags`, `kind`, `metadata`, and `created_at` and `expires_at` as RFC 3339.
/// Neither the key nor its hash is in it, nor where the key works from.
#[derive(Clone)]
pub struct Consumer(Arc<LookedUpKey>);

/// A looked-up key: the part that handlers see, and `live`, the part that only its owner uses.
pub(crate) struct LookedUpKey<L: ?Sized = dyn KeyExtension> {
    id: Box<str>,
    key_id: KeyId,
    key_name: Option<Box<str>>,
    scopes: Scopes,
    plan: Option<Box<str>>,
    metadata: Metadata,
    decoded: Decoded,
    tags: Tags,
    kind: KeyKind,
    created_at: SystemTime,
    expires_at: Option<Box<ExpiresAt>>,
    /// Boxed because few keys have it.
    retirement: Option<Box<Retirement>>,
    root_id: KeyId,
    pub(crate) ext: L,
}

/// Connects a consumer to the authenticator that made it.
pub(crate) trait KeyExtension: Send + Sync {
    /// The key's limits.
    fn meter(&self) -> Option<&Meter>;

    /// Resolves when the key with this id no longer works.
    fn ended(&self, key_id: KeyId) -> BoxFuture;

    /// The authenticator that looked the key up; `None` if the consumer was not made by one.
    fn origin(&self) -> Option<Origin>;

    /// Where uses are counted, if they are.
    fn use_counters(&self) -> Option<&UseCounters> {
        None
    }

    /// Tells the worker that the counts of `key` are not zero.
    fn tell_use(&self, key: Consumer) {
        let _ = key;
    }
}

/// Identifies an authenticator by the address of an allocation it owns. The address is unique for
/// as long as a `Weak` to that allocation exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin(usize);

impl Origin {
    pub(crate) fn of<T: ?Sized>(authenticator: &Weak<T>) -> Self {
        Self(authenticator.as_ptr().cast::<()>().addr())
    }
}

type BoxFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// For a consumer that was not made by an authenticator.
struct Unbound;

impl KeyExtension for Unbound {
    fn meter(&self) -> Option<&Meter> {
        None
    }

    fn ended(&self, _: KeyId) -> BoxFuture {
        Box::pin(pending())
    }

    fn origin(&self) -> Option<Origin> {
        None
    }
}

/// For a consumer made by a test, which may have limits.
#[cfg(feature = "test-util")]
struct ForTest(Option<Meter>);

#[cfg(feature = "test-util")]
impl KeyExtension for ForTest {
    fn meter(&self) -> Option<&Meter> {
        self.0.as_ref()
    }

    fn ended(&self, _: KeyId) -> BoxFuture {
        Box::pin(pending())
    }

    fn origin(&self) -> Option<Origin> {
        // No allocation has address 0.
        Some(Origin(0))
    }
}

impl<L> LookedUpKey<L> {
    pub(crate) fn new(record: KeyRecord, ext: L) -> Self {
        Self {
            retirement: record.retirement().map(Box::new),
            id: record.consumer_id.into(),
            key_id: record.id,
            root_id: record.root_id,
            key_name: record.name.map(Into::into),
            scopes: record.scopes,
            plan: record.plan.map(Into::into),
            metadata: record.metadata,
            decoded: Decoded::default(),
            tags: record.tags,
            kind: record.kind,
            created_at: record.created_at,
            expires_at: record.expires_at.map(|at| Box::new(ExpiresAt::new(at))),
            ext,
        }
    }

    pub(crate) fn key_id(&self) -> KeyId {
        self.key_id
    }

    pub(crate) fn kind(&self) -> KeyKind {
        self.kind
    }
}

impl Consumer {
    pub(crate) fn of<L: KeyExtension + 'static>(key: &Arc<LookedUpKey<L>>) -> Self {
        let key = Arc::clone(key);
        Self(key)
    }

    /// A consumer that the extractor and the layers trust as if an authenticator had made it. For
    /// tests that put it into a request's extensions in place of an
    /// [`ApiKeyLayer`](crate::ApiKeyLayer). It has no quotas, so the layers that limit requests let
    /// it pass uncounted, and its key never ends.
    ///
    /// A layer that names [its authenticator](crate::RequireScope::of) does not trust it.
    #[cfg(feature = "test-util")]
    #[must_use]
    pub fn for_test(record: KeyRecord) -> Self {
        Self::for_test_with_limits(record, None)
    }

    #[cfg(feature = "test-util")]
    pub(super) fn for_test_with_limits(record: KeyRecord, limits: Option<Meter>) -> Self {
        Self(Arc::new(LookedUpKey::new(record, ForTest(limits))))
    }

    /// The authenticator that made it, if any.
    pub(crate) fn origin(&self) -> Option<Origin> {
        self.0.ext.origin()
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

    /// The owner's name for the key.
    #[must_use]
    pub fn key_name(&self) -> Option<&str> {
        self.0.key_name.as_deref()
    }

    /// The key's scopes, with all that they contain by the [catalogue](super::ScopeCatalog) of the
    /// authenticator, if it has one.
    #[must_use]
    pub fn scopes(&self) -> &Scopes {
        &self.0.scopes
    }

    /// Whether the key has `scope`.
    #[must_use]
    pub fn has_scope(&self, scope: impl AsRef<str>) -> bool {
        self.0.scopes.contains(scope.as_ref())
    }

    /// The name of the key's plan, whether the store or the application defines it.
    #[must_use]
    pub fn plan(&self) -> Option<&str> {
        self.0.plan.as_deref()
    }

    /// The application's metadata for the key.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.0.metadata
    }

    /// The metadata as a `T`, decoded once for all requests until the record is read again, rather
    /// than in each request as by [`Metadata::parse`]. The value is kept with the cached key.
    ///
    /// ```
    /// # use tower_api_key::Consumer;
    /// #[derive(serde::Deserialize)]
    /// struct Tenant {
    ///     region: String,
    /// }
    ///
    /// fn region(consumer: &Consumer) -> Option<&str> {
    ///     consumer.metadata_as::<Tenant>().ok().map(|tenant| &*tenant.region)
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// When it does not fit `T`. The error is kept, too.
    pub fn metadata_as<T>(&self) -> Result<&T, &InvalidMetadata>
    where
        T: DeserializeOwned + Send + Sync + 'static,
    {
        self.0.decoded.get_or_init(|| self.metadata().parse::<T>()).as_ref()
    }

    /// The key's tags.
    #[must_use]
    pub fn tags(&self) -> &Tags {
        &self.0.tags
    }

    /// Whether the key is a secret, or publishable.
    #[must_use]
    pub fn kind(&self) -> KeyKind {
        self.0.kind
    }

    /// When the key was issued.
    #[must_use]
    pub fn created_at(&self) -> SystemTime {
        self.0.created_at
    }

    /// When the key stops working; `None` for never.
    #[must_use]
    pub fn expires_at(&self) -> Option<SystemTime> {
        self.expiry().map(|expiry| expiry.at)
    }

    pub(crate) fn expiry(&self) -> Option<&ExpiresAt> {
        self.0.expires_at.as_deref()
    }

    /// Set if the key was rotated and is being phased out.
    pub(crate) fn retirement(&self) -> Option<Retirement> {
        self.0.retirement.as_deref().copied()
    }

    /// The key's limits; none if the consumer was not made by an authenticator.
    pub(crate) fn meter(&self) -> Option<&Meter> {
        self.0.ext.meter()
    }

    pub(crate) fn limits(&self) -> &RateLimits {
        match self.meter() {
            Some(meter) => meter.limits(),
            None => RateLimits::unlimited_ref(),
        }
    }

    pub(crate) fn use_counters(&self) -> Option<&UseCounters> {
        self.0.ext.use_counters()
    }

    /// Counts units beyond, or short of, what was counted for a request.
    pub(crate) fn count_units(&self, change: i64) {
        if change != 0 && self.use_counters().is_some_and(|counters| counters.add_units(change)) {
            self.0.ext.tell_use(self.clone());
        }
    }

    /// Counts a request as rejected that was counted as let in.
    pub(crate) fn count_as(&self, rejection: UseRejection) {
        let counters = self.use_counters();
        if counters.is_some_and(|counters| counters.reject_admitted(rejection)) {
            self.0.ext.tell_use(self.clone());
        }
    }

    /// The subject whose requests are counted.
    pub(crate) fn subject(&self) -> Subject<'_> {
        Subject::of_key(self.id(), self.0.root_id.as_u128())
    }

    /// Resolves when the key stops working: revoked, switched off, deleted or expired. For
    /// long-lived responses; the layer checks a key only when a request begins.
    ///
    /// It learns of changes as fast as requests do: within milliseconds if the authenticator has a
    /// [change feed](crate::auth::Builder::change_feed) and its worker runs, otherwise within
    /// [`fresh`](crate::auth::CachePolicy::fresh). It also resolves if the key could not be
    /// confirmed for [`stale_if_error`](crate::auth::CachePolicy::stale_if_error), or if the key
    /// was changed and the store does not answer. A look-up refused for lack of capacity is retried
    /// and does not resolve it.
    ///
    /// The returned future keeps the authenticator's cache alive; if the cache is already gone, it
    /// resolves at once. Keys are watched only while such a future exists. For a consumer that was
    /// not made by an authenticator it never resolves. Requires a tokio runtime with its timer
    /// enabled.
    pub fn key_ended(&self) -> KeyEnded {
        KeyEnded(self.0.ext.ended(self.0.key_id))
    }
}

/// Resolves when a key stops working: see [`Consumer::key_ended`].
#[must_use = "futures do nothing unless polled"]
pub struct KeyEnded(BoxFuture);

impl Future for KeyEnded {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for KeyEnded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyEnded")
    }
}

impl From<KeyRecord> for Consumer {
    fn from(record: KeyRecord) -> Self {
        Self(Arc::new(LookedUpKey::new(record, Unbound)))
    }
}

impl Serialize for Consumer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Consumer", 10)?;
        fields.serialize_field("id", self.id())?;
        fields.serialize_field("key_id", &self.key_id().to_string())?;
        fields.serialize_field("key_name", &self.key_name())?;
        fields.serialize_field("scopes", self.scopes())?;
        fields.serialize_field("plan", &self.plan())?;
        fields.serialize_field("tags", self.tags())?;
        fields.serialize_field("kind", self.kind().as_str())?;
        fields.serialize_field("metadata", self.metadata())?;
        fields.serialize_field("created_at", &rfc3339(self.created_at()))?;
        fields.serialize_field("expires_at", &self.expires_at().map(rfc3339))?;
        fields.end()
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
