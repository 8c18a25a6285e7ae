use std::{error::Error, fmt};

use secrecy::{ExposeSecret, SecretString};

use super::KeyHash;

/// A key in the clear, as its owner gets to see it exactly once.
///
/// The memory is wiped when the value is dropped. There is no `Display`, no `Clone`, no comparison
/// and no serialisation; [`expose_secret`](Self::expose_secret) is the only way in. See the
/// [module](crate::key) for the format.
pub struct ApiKey(SecretString);

impl ApiKey {
    pub(super) fn new(key: String) -> Self {
        Self(SecretString::from(key))
    }

    /// The key in the clear.
    ///
    /// # Security
    ///
    /// Hand it to its owner and forget it: what is logged, stored or put into a URL is lost.
    #[must_use]
    pub fn expose_secret(&self) -> &str {
        self.0.expose_secret()
    }

    /// What a store keeps instead of the key.
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

/// A key as a request carries it: well-formed, borrowed, not yet trusted.
#[derive(Clone, Copy)]
pub struct PresentedKey<'h>(&'h [u8]);

impl<'h> PresentedKey<'h> {
    pub(super) fn new(key: &'h [u8]) -> Self {
        Self(key)
    }

    /// SHA-256 of the whole key, under which a store may know it.
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

/// The bytes are no key of the accepted formats: wrong prefix, length, alphabet or checksum.
///
/// It does not say which, nor keep a copy: whoever holds a key knows what it looks like, and
/// nobody else should learn it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MalformedKey;

impl fmt::Display for MalformedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a key of an accepted format")
    }
}

impl Error for MalformedKey {}
