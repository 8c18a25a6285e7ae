use std::{
    fmt,
    future::{Future, IntoFuture},
    pin::Pin,
    time::Duration,
};

use http::{HeaderValue, Method, Request, header::AUTHORIZATION, request};

use crate::{
    key::ApiKey,
    manage::{Expiry, Issued, KeyIssuer, NewKey},
    rate_limit::RateLimits,
    record::{KeyId, KeyRecord, Scopes, valid},
};

/// Issues a key when it is awaited: [`TestKeys::issue`](super::TestKeys::issue).
#[must_use = "the key is issued when this is awaited"]
pub struct IssueKey {
    issuer: KeyIssuer,
    consumer_id: String,
    expiry: Expiry,
    settings: Vec<Box<dyn FnOnce(NewKey) -> NewKey + Send>>,
}

impl IssueKey {
    pub(super) fn new(issuer: KeyIssuer, consumer_id: String) -> Self {
        Self { issuer, consumer_id, expiry: Expiry::Never, settings: Vec::new() }
    }

    /// The scopes of the key. Default: none.
    ///
    /// # Panics
    ///
    /// When one of them is not a valid scope: a mistake in the test.
    #[track_caller]
    pub fn scopes<S: Into<String>>(self, scopes: impl IntoIterator<Item = S>) -> Self {
        let scopes = valid(Scopes::parse(scopes));
        self.with(|key| key.scopes(scopes))
    }

    /// Quotas of its own. Default: those of the service.
    pub fn rate_limits(self, limits: impl Into<RateLimits>) -> Self {
        let limits = limits.into();
        self.with(|key| key.rate_limits(limits))
    }

    /// The name of its plan. Default: none.
    pub fn plan(self, name: impl Into<String>) -> Self {
        let name = name.into();
        self.with(|key| key.plan(name))
    }

    /// How long it works, from now on the test's clock. Default: it does not expire.
    pub fn expires_in(self, lifetime: Duration) -> Self {
        Self { expiry: Expiry::In(lifetime), ..self }
    }

    /// Any other property of a key.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # let keys = tower_api_key::test_util::TestKeys::new();
    /// let key = keys.issue("acme").with(|key| key.name("nightly export")).await;
    /// assert_eq!(key.record().name.as_deref(), Some("nightly export"));
    /// # }
    /// ```
    pub fn with(mut self, setting: impl FnOnce(NewKey) -> NewKey + Send + 'static) -> Self {
        self.settings.push(Box::new(setting));
        self
    }

    async fn issue(self) -> TestKey {
        let new = NewKey::new(self.consumer_id, self.expiry);
        let new = self.settings.into_iter().fold(new, |new, setting| setting(new));
        let Issued { key, record, .. } = valid(self.issuer.issue(new).await);
        TestKey { key, record }
    }
}

impl IntoFuture for IssueKey {
    type Output = TestKey;
    type IntoFuture = Pin<Box<dyn Future<Output = TestKey> + Send>>;

    /// # Panics
    ///
    /// When the key cannot be issued: the policy forbids it, or the store is down.
    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.issue())
    }
}

impl fmt::Debug for IssueKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssueKey")
            .field("consumer_id", &self.consumer_id)
            .field("expiry", &self.expiry)
            .finish_non_exhaustive()
    }
}

/// A key of a test, and its record when it was issued.
#[derive(Debug)]
pub struct TestKey {
    key: ApiKey,
    record: KeyRecord,
}

impl TestKey {
    /// The id of the key.
    #[must_use]
    pub fn id(&self) -> KeyId {
        self.record.id
    }

    /// The record of the key when it was issued.
    #[must_use]
    pub fn record(&self) -> &KeyRecord {
        &self.record
    }

    /// The text of the key.
    #[must_use]
    pub fn expose_secret(&self) -> &str {
        self.key.expose_secret()
    }

    /// The value of `Authorization` with this key, as clients send it.
    #[must_use]
    pub fn bearer(&self) -> HeaderValue {
        let mut value = valid(HeaderValue::try_from(format!("Bearer {}", self.expose_secret())));
        value.set_sensitive(true);
        value
    }

    /// A request with this key.
    ///
    /// # Panics
    ///
    /// When `path` is not a valid URI, once the body is set.
    pub fn request(&self, method: Method, path: &str) -> request::Builder {
        Request::builder().method(method).uri(path).header(AUTHORIZATION, self.bearer())
    }

    /// A `GET` request with this key and an empty body.
    ///
    /// # Panics
    ///
    /// When `path` is not a valid URI.
    #[must_use]
    #[track_caller]
    pub fn get<B: Default>(&self, path: &str) -> Request<B> {
        valid(self.request(Method::GET, path).body(B::default()))
    }
}
