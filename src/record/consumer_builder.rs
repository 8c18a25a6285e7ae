use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::Serialize;

use super::{Consumer, KeyId, KeyKind, KeyRecord, Metadata, Scopes, Tags, WebOrigins};
use crate::{
    clock::{Clock, ManualClock},
    key::KeyHash,
    rate_limit::{LocalRateLimiter, Meter, Meters, RateLimits, port::Subject},
};

/// Builds a [`Consumer`] for a test: [`Consumer::acting_as`], [`Consumer::builder`].
///
/// Like that of [`Consumer::for_test`], its consumer is trusted as if an authenticator had made it,
/// but not by a layer that names [its authenticator](crate::RequireScope::of).
///
/// It is a layer: every request that passes it acts as the consumer, without a key. An
/// [`ApiKeyLayer`](crate::ApiKeyLayer) inside it refuses a request without a key all the same.
///
/// ```
/// # #[cfg(feature = "test-util")] {
/// use tower_api_key::Consumer;
///
/// let consumer = Consumer::builder("acme").scopes(["orders:read"]).plan("pro").build();
/// assert!(consumer.has_scope("orders:read"));
/// # }
/// ```
#[derive(Clone)]
#[must_use]
pub struct ConsumerBuilder {
    record: KeyRecord,
    clock: Arc<dyn Clock>,
    limits: Option<RateLimits>,
    limiter: Arc<LocalRateLimiter>,
}

/// The beginning of 2026, so that a test has the same key every time.
const CREATED_AT: Duration = Duration::from_secs(1_767_225_600);

impl Consumer {
    /// Builds a consumer for a test, as [`for_test`](Self::for_test) does from a record.
    pub fn builder(consumer_id: impl Into<String>) -> ConsumerBuilder {
        let created_at = SystemTime::UNIX_EPOCH + CREATED_AT;
        let (id, hash) = (KeyId::from_bytes([0; 16]), KeyHash::from_bytes([0; 32]));
        ConsumerBuilder {
            record: KeyRecord::new(id, hash, consumer_id, created_at),
            clock: Arc::new(ManualClock::default()),
            limits: None,
            limiter: Arc::new(LocalRateLimiter::new()),
        }
    }

    /// Lets the requests of a test act as this consumer, without keys, a store, or an
    /// [`ApiKeyLayer`](crate::ApiKeyLayer). The same builder as [`builder`](Self::builder), used as
    /// a layer around handlers:
    ///
    /// ```
    /// # #[cfg(all(feature = "test-util", feature = "axum"))]
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use axum::{Router, body::Body, http::Request, routing::get};
    /// use tower::ServiceExt;
    /// use tower_api_key::{Consumer, RequireScope};
    ///
    /// fn routes() -> Router {
    ///     let orders = get(async |consumer: Consumer| format!("orders of {}", consumer.id()));
    ///     Router::new().route("/orders", orders.layer(RequireScope::one("orders:read").unwrap()))
    /// }
    ///
    /// let app = routes().layer(Consumer::acting_as("acme").scopes(["orders:read"]));
    /// let response = app.oneshot(Request::get("/orders").body(Body::empty())?).await?;
    /// assert_eq!(response.status(), 200);
    /// # Ok(())
    /// # }
    /// # #[cfg(not(all(feature = "test-util", feature = "axum")))]
    /// # fn main() {}
    /// ```
    pub fn acting_as(consumer_id: impl Into<String>) -> ConsumerBuilder {
        Self::builder(consumer_id)
    }
}

impl ConsumerBuilder {
    /// The id of the key. Default: all zeros.
    pub fn key_id(mut self, id: KeyId) -> Self {
        self.record.id = id;
        self.record.root_id = id;
        self
    }

    /// The owner's name for the key. Default: none.
    pub fn key_name(mut self, name: impl Into<String>) -> Self {
        self.record.name = Some(name.into());
        self
    }

    /// The scopes of the key. Default: none.
    ///
    /// # Panics
    ///
    /// When one of them is not a valid scope, or there are too many: a mistake in the test.
    #[track_caller]
    pub fn scopes<S: Into<String>>(mut self, scopes: impl IntoIterator<Item = S>) -> Self {
        self.record.scopes = valid(Scopes::parse(scopes));
        self
    }

    /// The tags of the key. Default: none.
    ///
    /// # Panics
    ///
    /// When one of them is not a valid tag, or there are too many.
    #[track_caller]
    pub fn tags<S: Into<String>>(mut self, tags: impl IntoIterator<Item = S>) -> Self {
        self.record.tags = valid(Tags::parse(tags));
        self
    }

    /// The name of the key's plan. Default: none.
    pub fn plan(mut self, name: impl Into<String>) -> Self {
        self.record.plan = Some(name.into());
        self
    }

    /// The application's metadata. Default: empty.
    ///
    /// # Panics
    ///
    /// When it is not a JSON object within the bounds of [`Metadata`].
    #[track_caller]
    pub fn metadata(mut self, metadata: &impl Serialize) -> Self {
        self.record.metadata = valid(Metadata::new(metadata));
        self
    }

    /// Makes the key [publishable](KeyKind::Publishable). Default: a secret key.
    ///
    /// # Panics
    ///
    /// When one of them is not a valid origin, or there are too many.
    #[track_caller]
    pub fn publishable<S: Into<String>>(mut self, origins: impl IntoIterator<Item = S>) -> Self {
        self.record.kind = KeyKind::Publishable;
        self.record.origins = valid(WebOrigins::parse(origins));
        self
    }

    /// When the key was issued. Default: the beginning of 2026.
    pub fn created_at(mut self, at: SystemTime) -> Self {
        self.record.created_at = at;
        self
    }

    /// When the key expires. Default: never. It is only shown: the consumer is trusted anyway.
    pub fn expires_at(mut self, at: SystemTime) -> Self {
        self.record.expires_at = Some(at);
        self
    }

    /// Live limits, counted in memory for this builder and its clones. As a layer, it takes one unit
    /// of each for a request, and answers 429 as an [`ApiKeyLayer`](crate::ApiKeyLayer) does;
    /// [`Cost`](crate::layer::Cost) and [`RateClass`](crate::layer::RateClass) take from them, too.
    /// The actual cost in a response is not settled, and no `RateLimit` headers are written: that is
    /// the `ApiKeyLayer`'s part. Default: none; these layers then let the consumer pass uncounted.
    pub fn rate_limits(self, limits: impl Into<RateLimits>) -> Self {
        Self { limits: Some(limits.into()), ..self }
    }

    /// The time by which limits refill. Default: time stands still.
    pub fn clock(self, clock: impl Clock) -> Self {
        Self { clock: Arc::new(clock), ..self }
    }

    /// The consumer.
    #[must_use]
    pub fn build(self) -> Consumer {
        let limits = self.limits.map(|limits| {
            let root = self.record.root_id.as_u128();
            let subject = Subject::of_key(&self.record.consumer_id, root);
            let now = self.clock.monotonic();
            let meters = Arc::new(Meters { limiter: self.limiter, clock: self.clock });
            Meter::new(&meters, limits, subject, now)
        });
        Consumer::for_test_with_limits(self.record, limits)
    }
}

impl fmt::Debug for ConsumerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsumerBuilder")
            .field("record", &self.record)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

#[track_caller]
#[expect(clippy::panic, reason = "a mistake in a test fails the test")]
pub(crate) fn valid<T, E: fmt::Display>(value: Result<T, E>) -> T {
    match value {
        Ok(value) => value,
        Err(error) => panic!("{error}"),
    }
}
