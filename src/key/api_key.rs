use std::{error::Error, fmt};

use zeroize::Zeroizing;

use super::{Digest, KeyHash};

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
pub struct PresentedKey<'h> {
    /// The whole key, or the part of it that its format hashes.
    hashed: &'h [u8],
    /// `None` for SHA-256.
    digest: Option<&'h Digest>,
}

impl<'h> PresentedKey<'h> {
    pub(super) fn issued(key: &'h [u8]) -> Self {
        Self { hashed: key, digest: None }
    }

    pub(super) fn imported(hashed: &'h [u8], digest: Option<&'h Digest>) -> Self {
        Self { hashed, digest }
    }

    /// The hash by which the key is looked up: SHA-256 of the whole key, unless its
    /// [format](crate::key::ImportedFormat) hashes a part of it or has another
    /// [digest](crate::key::Digest).
    #[must_use]
    pub fn hash(&self) -> KeyHash {
        match self.digest {
            None => KeyHash::of(self.hashed),
            Some(digest) => digest.hash(self.hashed),
        }
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
