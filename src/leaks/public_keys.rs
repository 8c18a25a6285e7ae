use std::{collections::BTreeMap, future::Future, pin::Pin};

use serde::Deserialize;

use super::{
    error::{PublicKeysError, PublicKeysErrorKind},
    signature::PublicKey,
};

/// The public keys by which GitHub signs its deliveries.
///
/// [`GitHubPublicKeys`](super::GitHubPublicKeys) fetches them; [`PublicKeySet`] is a fixed set.
pub trait PublicKeys: Send + Sync + 'static {
    /// The key with this identifier, which the sender of a delivery chose; `None` if there is none.
    ///
    /// The future may be dropped at any time. It must be quick to tell that there is no such key:
    /// anyone can send made-up identifiers.
    ///
    /// # Errors
    ///
    /// When it is not known whether there is such a key. The delivery is then answered with 503.
    fn find(
        &self,
        identifier: &str,
    ) -> impl Future<Output = Result<Option<PublicKey>, PublicKeysError>> + Send;
}

type Answer<'a> =
    Pin<Box<dyn Future<Output = Result<Option<PublicKey>, PublicKeysError>> + Send + 'a>>;

/// [`PublicKeys`] as a trait object.
pub(super) trait DynPublicKeys: Send + Sync {
    fn find<'a>(&'a self, identifier: &'a str) -> Answer<'a>;
}

impl<K: PublicKeys> DynPublicKeys for K {
    fn find<'a>(&'a self, identifier: &'a str) -> Answer<'a> {
        Box::pin(PublicKeys::find(self, identifier))
    }
}

/// Keys of a set. GitHub has three.
const MAX_KEYS: usize = 64;
/// The length of an identifier. GitHub's have 64 characters.
const MAX_IDENTIFIER: usize = 256;

/// A fixed set of public keys, for tests and for services that keep them in a file.
///
/// GitHub replaces its keys now and then, and a delivery signed by a key that is not in the set is
/// refused.
#[derive(Clone, Debug, Default)]
pub struct PublicKeySet(BTreeMap<String, PublicKey>);

impl PublicKeySet {
    /// An empty set, by which every delivery is refused.
    #[must_use]
    pub const fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// The same set with one more key.
    #[must_use]
    pub fn with(mut self, identifier: impl Into<String>, key: PublicKey) -> Self {
        self.0.insert(identifier.into(), key);
        self
    }

    /// The keys of a JSON document as GitHub publishes it at
    /// `https://api.github.com/meta/public_keys/secret_scanning`. Keys of other algorithms than P-256
    /// are left out, also those that GitHub may add.
    ///
    /// # Errors
    ///
    /// [`Invalid`](PublicKeysErrorKind::Invalid) when it has another form, no key of P-256, or more
    /// than 64 keys.
    pub fn from_json(json: &[u8]) -> Result<Self, PublicKeysError> {
        let invalid = || PublicKeysError::new(PublicKeysErrorKind::Invalid);
        let published: Published = serde_json::from_slice(json).map_err(|error| {
            // Its text may quote what was fetched.
            let (line, column) = (error.line(), error.column());
            invalid().because(format!("another form of JSON, in line {line}, column {column}"))
        })?;
        if published.public_keys.len() > MAX_KEYS {
            return Err(invalid().because("more than 64 public keys"));
        }
        let mut last = None;
        let mut keys = BTreeMap::new();
        for PublishedKey { key_identifier, key } in published.public_keys {
            match PublicKey::from_pem(&key) {
                Ok(key) if key_identifier.len() <= MAX_IDENTIFIER => {
                    keys.insert(key_identifier, key);
                }
                Ok(_) => last = Some(invalid().because("an identifier of more than 256 bytes")),
                Err(error) => last = Some(error),
            }
        }
        if keys.is_empty() {
            return Err(last.unwrap_or_else(|| invalid().because("no public keys")));
        }
        Ok(Self(keys))
    }

    pub(super) fn get(&self, identifier: &str) -> Option<&PublicKey> {
        self.0.get(identifier)
    }
}

#[derive(Deserialize)]
struct Published {
    public_keys: Vec<PublishedKey>,
}

/// `is_current` does not matter: a delivery may have been signed before a key was replaced.
#[derive(Deserialize)]
struct PublishedKey {
    key_identifier: String,
    key: String,
}

impl PublicKeys for PublicKeySet {
    async fn find(&self, identifier: &str) -> Result<Option<PublicKey>, PublicKeysError> {
        Ok(self.get(identifier).cloned())
    }
}
