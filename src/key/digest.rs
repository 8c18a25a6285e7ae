use std::{error::Error, fmt, sync::Arc};

use sha2::{Digest as _, Sha256, Sha512};
use zeroize::Zeroizing;

use super::{KeyHash, hash};

/// How another system hashed its keys, if not by SHA-256 alone.
///
/// For keys issued here, and by default for [imported](super::ImportedFormat) ones, the stored
/// [`KeyHash`] is the SHA-256 of the key. With another digest, [`stored_hash`](Self::stored_hash)
/// makes the stored hash from the old digest, so that old digests can be imported without the keys;
/// a request costs that digest and nothing else.
///
/// | the old system stores | here | the stored hash |
/// |---|---|---|
/// | SHA-256 of the key | [`sha256`](Self::sha256), the default | the same |
/// | SHA-256 of a salt and the key | [`salted_sha256`](Self::salted_sha256) | the same |
/// | SHA-256 of the hexadecimal SHA-256 | [`double_sha256`](Self::double_sha256) | the same |
/// | SHA-512 | [`sha512`](Self::sha512) | its SHA-256 |
/// | HMAC-SHA-256 with a pepper | `hmac_sha256`, feature `legacy-hashes` | its SHA-256 |
/// | anything else that is the same for each look-up | [`custom`](Self::custom) | its SHA-256 |
///
/// Hashes that are salted key by key (bcrypt, argon2, Django's PBKDF2) are not digests in this sense:
/// a key cannot be looked up by them.
#[derive(Clone)]
pub struct Digest(Kind);

#[derive(Clone)]
enum Kind {
    Sha256,
    SaltedSha256 {
        before: Arc<Zeroizing<Vec<u8>>>,
        after: Arc<Zeroizing<Vec<u8>>>,
    },
    DoubleSha256,
    Sha512,
    #[cfg(feature = "legacy-hashes")]
    HmacSha256(Arc<Pepper>),
    Custom(Arc<Function>),
}

type Function = dyn Fn(&[u8]) -> Vec<u8> + Send + Sync;

impl Digest {
    /// SHA-256, as for keys issued here.
    #[must_use]
    pub fn sha256() -> Self {
        Self(Kind::Sha256)
    }

    /// SHA-256 of `before`, the key and `after`: one salt for all keys. Either may be empty.
    #[must_use]
    pub fn salted_sha256(before: &[u8], after: &[u8]) -> Self {
        let secret = |salt: &[u8]| Arc::new(Zeroizing::new(salt.to_vec()));
        Self(Kind::SaltedSha256 { before: secret(before), after: secret(after) })
    }

    /// SHA-256 of the SHA-256 in 64 lower-case hexadecimal digits.
    #[must_use]
    pub fn double_sha256() -> Self {
        Self(Kind::DoubleSha256)
    }

    /// SHA-512, as of djangorestframework-api-key 3.
    #[must_use]
    pub fn sha512() -> Self {
        Self(Kind::Sha512)
    }

    /// HMAC-SHA-256 ([RFC 2104](https://www.rfc-editor.org/rfc/rfc2104)) of the key with `pepper`.
    /// Feature `legacy-hashes`.
    #[cfg(feature = "legacy-hashes")]
    #[must_use]
    pub fn hmac_sha256(pepper: Pepper) -> Self {
        Self(Kind::HmacSha256(Arc::new(pepper)))
    }

    /// Any other function of the key, or of [the part](super::ImportedFormat::hashes_secret_only) that
    /// is hashed. It must return the same bytes for the same key, and be fast: it runs for every request
    /// with a key of the format, before the cache.
    #[must_use]
    pub fn custom(digest: impl Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self(Kind::Custom(Arc::new(digest)))
    }

    /// The hash to store for a key whose digest in the old system is `old`.
    ///
    /// # Errors
    ///
    /// When `old` has another length than the digest.
    ///
    /// ```
    /// use tower_api_key::key::{Alphabet, Digest, ImportedFormat};
    ///
    /// let digest = Digest::sha512();
    /// let format = ImportedFormat::new("", Alphabet::Hex, 32)?.hashed_by(digest.clone());
    ///
    /// // From the old database: SHA-512 of `abababababababababababababababab`.
    /// let old = "d7d8803c6855e2cada884cc64bb4ebb00e056755c6d2237cd78e8cb62cc37d98\
    ///            89aa9d45f6f639ab642b9c02d5eeb27ca29042c80f152100410072226e61fef2";
    /// let stored = digest.stored_hash_of_text(old)?;
    ///
    /// let presented = format.parse(b"abababababababababababababababab")?;
    /// assert_eq!(presented.hash(), stored);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn stored_hash(&self, old: &[u8]) -> Result<KeyHash, InvalidDigest> {
        let invalid = InvalidDigest { expected: self.len() };
        if old.is_empty() || self.len().is_some_and(|len| old.len() != len) {
            return Err(invalid);
        }
        match self.0 {
            Kind::Sha256 | Kind::SaltedSha256 { .. } | Kind::DoubleSha256 => {
                KeyHash::try_from(old).map_err(|_| invalid)
            }
            _ => Ok(KeyHash::of(old)),
        }
    }

    /// As [`stored_hash`](Self::stored_hash), of a digest in hexadecimal, or base64 in either
    /// alphabet, with or without padding.
    ///
    /// # Errors
    ///
    /// When it is neither, or has another length than the digest.
    pub fn stored_hash_of_text(&self, old: &str) -> Result<KeyHash, InvalidDigest> {
        let is_hex = match self.len() {
            Some(len) => old.len() == 2 * len,
            None => old.len().is_multiple_of(2) && old.bytes().all(|b| b.is_ascii_hexdigit()),
        };
        let bytes = if is_hex { hash::decode_hex(old) } else { hash::decode_base64(old) };
        self.stored_hash(&bytes.ok_or(InvalidDigest { expected: self.len() })?)
    }
}

impl Digest {
    /// The hash by which `part` of a key is looked up.
    pub(super) fn hash(&self, part: &[u8]) -> KeyHash {
        match &self.0 {
            Kind::Sha256 => KeyHash::of(part),
            Kind::SaltedSha256 { before, after } => {
                let sha = Sha256::new().chain_update(&***before).chain_update(part);
                KeyHash::from_bytes(sha.chain_update(&***after).finalize().into())
            }
            Kind::DoubleSha256 => {
                let mut hex = [[0; 2]; 32];
                for (digits, byte) in hex.iter_mut().zip(Sha256::digest(part)) {
                    *digits = hash::hex(byte);
                }
                KeyHash::of(hex.as_flattened())
            }
            Kind::Sha512 => KeyHash::of(&Sha512::digest(part)),
            #[cfg(feature = "legacy-hashes")]
            Kind::HmacSha256(pepper) => KeyHash::of(&pepper.hmac_sha256(part)),
            Kind::Custom(digest) => KeyHash::of(&Zeroizing::new(digest(part))),
        }
    }

    pub(super) fn is_sha256(&self) -> bool {
        matches!(self.0, Kind::Sha256)
    }

    /// The bytes of a digest; `None` if unknown.
    fn len(&self) -> Option<usize> {
        match self.0 {
            Kind::Sha256 | Kind::SaltedSha256 { .. } | Kind::DoubleSha256 => Some(32),
            #[cfg(feature = "legacy-hashes")]
            Kind::HmacSha256(_) => Some(32),
            Kind::Sha512 => Some(64),
            Kind::Custom(_) => None,
        }
    }

    fn name(&self) -> &'static str {
        match self.0 {
            Kind::Sha256 => "sha256",
            Kind::SaltedSha256 { .. } => "salted_sha256",
            Kind::DoubleSha256 => "double_sha256",
            Kind::Sha512 => "sha512",
            #[cfg(feature = "legacy-hashes")]
            Kind::HmacSha256(_) => "hmac_sha256",
            Kind::Custom(_) => "custom",
        }
    }
}

/// Two digests with a secret or a function are equal if one is a clone of the other.
impl PartialEq for Digest {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (
                Kind::SaltedSha256 { before, after },
                Kind::SaltedSha256 { before: other_before, after: other_after },
            ) => Arc::ptr_eq(before, other_before) && Arc::ptr_eq(after, other_after),
            #[cfg(feature = "legacy-hashes")]
            (Kind::HmacSha256(pepper), Kind::HmacSha256(other)) => Arc::ptr_eq(pepper, other),
            (Kind::Custom(digest), Kind::Custom(other)) => Arc::ptr_eq(digest, other),
            (Kind::Sha256, Kind::Sha256)
            | (Kind::DoubleSha256, Kind::DoubleSha256)
            | (Kind::Sha512, Kind::Sha512) => true,
            _ => false,
        }
    }
}

impl Eq for Digest {}

/// Shows neither salt nor pepper.
impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({})", self.name())
    }
}

/// The secret of an HMAC. Its memory is wiped on drop, and it is never printed. Feature
/// `legacy-hashes`.
#[cfg(feature = "legacy-hashes")]
pub struct Pepper(Zeroizing<Vec<u8>>);

#[cfg(feature = "legacy-hashes")]
impl Pepper {
    /// A pepper of any length, as the old system has it: often the bytes of a text, sometimes those
    /// that a text in hexadecimal or base64 stands for.
    pub fn new(pepper: impl Into<Vec<u8>>) -> Self {
        Self(Zeroizing::new(pepper.into()))
    }

    fn hmac_sha256(&self, part: &[u8]) -> [u8; 32] {
        use hmac::{Hmac, KeyInit as _, Mac as _};

        // A key of any length is valid.
        let hmac = Hmac::<Sha256>::new_from_slice(&self.0);
        hmac.map(|hmac| hmac.chain_update(part).finalize().into_bytes().into()).unwrap_or_default()
    }
}

#[cfg(feature = "legacy-hashes")]
impl fmt::Debug for Pepper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pepper([REDACTED])")
    }
}

/// The text or bytes are not what the digest makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InvalidDigest {
    expected: Option<usize>,
}

impl fmt::Display for InvalidDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the digest of a key must be ")?;
        if let Some(bytes) = self.expected {
            write!(f, "{bytes} bytes, ")?;
        }
        f.write_str("in hexadecimal or base64")
    }
}

impl Error for InvalidDigest {}

#[cfg(test)]
mod tests;
