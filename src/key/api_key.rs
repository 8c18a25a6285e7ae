use std::{error::Error, fmt};

use zeroize::Zeroizing;

use super::KeyHash;

/// A plaintext key, shown to its owner exactly once.
///
/// Its memory is wiped on drop. There is no `Display`, `Clone`, comparison or serialisation;
/// [`expose_secret`](Self::expose_secret) is the only access. See the [module](crate::key) for the
/// format.
pub struct ApiKey(Zeroizing<String>);

impl ApiKey {
    pub(super) fn new(key: String) -> Self {
        Self(Zeroizing::new(key))
    }

    /// The plaintext key.
    ///
    /// # Security
    ///
    /// Give it to its owner and drop it. A key that is logged, stored or put into a URL is
    /// compromised.
    #[must_use]
    pub fn expose_secret(&self) -> &str {
        &self.0
    }

    /// The hash that a store keeps instead of the key.
    #[must_use]
    pub fn hash(&self) -> KeyHash {
        KeyHash::of(self.expose_secret().as_bytes())
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey([REDACTED])")
    }
}

/// A well-formed key from a request: borrowed and not yet verified.
#[derive(Clone, Copy)]
pub struct PresentedKey<'h>(&'h [u8]);

impl<'h> PresentedKey<'h> {
    pub(super) fn new(key: &'h [u8]) -> Self {
        Self(key)
    }

    /// SHA-256 of the whole key, for look-up in a store.
    #[must_use]
    pub fn hash(&self) -> KeyHash {
        KeyHash::of(self.0)
    }
}

impl fmt::Debug for PresentedKey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresentedKey([REDACTED])")
    }
}

/// The bytes do not match an accepted format: wrong prefix, length, alphabet or checksum.
///
/// The error does not say which check failed and keeps no copy of the bytes: only a legitimate key
/// holder should know what a key looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MalformedKey;

impl fmt::Display for MalformedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a key of an accepted format")
    }
}

impl Error for MalformedKey {}
