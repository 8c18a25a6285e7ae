use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::{Consumer, KeyId, KeyKind, KeyRecord, Metadata, Scopes, Tags, WebOrigins};
use crate::key::KeyHash;

/// Builds a [`Consumer`] for a test: [`Consumer::builder`].
///
/// Like that of [`Consumer::for_test`], its consumer is trusted as if an authenticator had made it.
///
/// ```
/// # #[cfg(feature = "test-util")] {
/// use tower_api_key::Consumer;
///
/// let consumer = Consumer::builder("acme").scopes(["orders:read"]).plan("pro").build();
/// assert!(consumer.has_scope("orders:read"));
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct ConsumerBuilder(KeyRecord);

/// The beginning of 2026, so that a test has the same key every time.
const CREATED_AT: Duration = Duration::from_secs(1_767_225_600);

impl Consumer {
    /// Builds a consumer for a test, as [`for_test`](Self::for_test) does from a record.
    pub fn builder(consumer_id: impl Into<String>) -> ConsumerBuilder {
        let created_at = SystemTime::UNIX_EPOCH + CREATED_AT;
        let (id, hash) = (KeyId::from_bytes([0; 16]), KeyHash::from_bytes([0; 32]));
        ConsumerBuilder(KeyRecord::new(id, hash, consumer_id, created_at))
    }
}

impl ConsumerBuilder {
    /// The id of the key. Default: all zeros.
    pub fn key_id(mut self, id: KeyId) -> Self {
        self.0.id = id;
        self.0.root_id = id;
        self
    }

    /// The owner's name for the key. Default: none.
    pub fn key_name(mut self, name: impl Into<String>) -> Self {
        self.0.name = Some(name.into());
        self
    }

    /// The scopes of the key. Default: none.
    ///
    /// # Panics
    ///
    /// When one of them is not a valid scope, or there are too many: a mistake in the test.
    #[track_caller]
    pub fn scopes<S: Into<String>>(mut self, scopes: impl IntoIterator<Item = S>) -> Self {
        self.0.scopes = valid(Scopes::parse(scopes));
        self
    }

    /// The tags of the key. Default: none.
    ///
    /// # Panics
    ///
    /// When one of them is not a valid tag, or there are too many.
    #[track_caller]
    pub fn tags<S: Into<String>>(mut self, tags: impl IntoIterator<Item = S>) -> Self {
        self.0.tags = valid(Tags::parse(tags));
        self
    }

    /// The name of the key's plan. Default: none.
    pub fn plan(mut self, name: impl Into<String>) -> Self {
        self.0.plan = Some(name.into());
        self
    }

    /// The application's metadata. Default: empty.
    ///
    /// # Panics
    ///
    /// When it is not a JSON object within the bounds of [`Metadata`].
    #[track_caller]
    pub fn metadata(mut self, metadata: &impl Serialize) -> Self {
        self.0.metadata = valid(Metadata::new(metadata));
        self
    }

    /// Makes the key [publishable](KeyKind::Publishable). Default: a secret key.
    ///
    /// # Panics
    ///
    /// When one of them is not a valid origin, or there are too many.
    #[track_caller]
    pub fn publishable<S: Into<String>>(mut self, origins: impl IntoIterator<Item = S>) -> Self {
        self.0.kind = KeyKind::Publishable;
        self.0.origins = valid(WebOrigins::parse(origins));
        self
    }

    /// When the key was issued. Default: the beginning of 2026.
    pub fn created_at(mut self, at: SystemTime) -> Self {
        self.0.created_at = at;
        self
    }

    /// When the key expires. Default: never. It is only shown: the consumer is trusted anyway.
    pub fn expires_at(mut self, at: SystemTime) -> Self {
        self.0.expires_at = Some(at);
        self
    }

    /// The consumer.
    #[must_use]
    pub fn build(self) -> Consumer {
        Consumer::for_test(self.0)
    }
}

#[track_caller]
#[expect(clippy::panic, reason = "a mistake in a test fails the test")]
fn valid<T, E: std::fmt::Display>(value: Result<T, E>) -> T {
    match value {
        Ok(value) => value,
        Err(error) => panic!("{error}"),
    }
}
