use std::{fmt, sync::Arc};

use super::{KeyId, KeyRecord, Metadata, Scope, Scopes};

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
}

impl Consumer {
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
}

impl From<KeyRecord> for Consumer {
    fn from(record: KeyRecord) -> Self {
        Self(Arc::new(Inner {
            id: record.consumer_id.into(),
            key_id: record.id,
            key_name: record.name.map(Into::into),
            scopes: record.scopes,
            metadata: record.metadata,
        }))
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
