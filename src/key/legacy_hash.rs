//! Slow or salted hashes of keys that another system stored.

mod error;
mod parse;
#[cfg(feature = "legacy-hashes")]
mod verify;

use std::{fmt, str::FromStr};

use zeroize::Zeroizing;

pub use self::error::InvalidLegacyHash;
use self::parse::Parsed;
use super::KeyHash;

/// The most bytes that such a hash has as text.
const MAX_LEN: usize = 512;

/// A slow or salted hash of a key, as another system stored it: bcrypt, Argon2, scrypt or PBKDF2.
///
/// It cannot be looked up, only compared with a key. A key that is
/// [imported](crate::manage::KeyImport::of_legacy_hash) with it keeps it until the key is first used;
/// from then on the key has a [`KeyHash`] like any other.
///
/// | text | algorithm | bounds |
/// |---|---|---|
/// | `$2a$`, `$2b$`, `$2y$` | bcrypt | cost 4 to 14; keys of at most 72 bytes |
/// | `$argon2id$`, `$argon2i$`, `$argon2d$` | Argon2 in the [PHC] form | 128 MiB; memory × passes 1 GiB; 16 lanes |
/// | `$scrypt$` | scrypt in the PHC form, or passlib's | 128 MiB; memory × parallelism 256 MiB |
/// | `$pbkdf2-sha256$` | PBKDF2 in the PHC form, or passlib's | 1,500,000 iterations |
///
/// Django's forms are the same with the name of the hasher before them (`argon2$argon2id$…`,
/// `bcrypt$$2b$…`), or its own (`pbkdf2_sha256$…`, `scrypt$…`).
///
/// The bounds keep one verification below about a second, because any client that presents a key causes it.
/// They include what the usual libraries have by default. Salts have 8 to 64 bytes, and hashes 16 to
/// 64.
///
/// bcrypt compares only the first 72 bytes, so that two longer keys could match: longer keys never
/// do here.
///
/// `Debug` shows the algorithm alone.
///
/// [PHC]: https://github.com/P-H-C/phc-string-format/blob/master/phc-sf-spec.md
#[derive(Clone, PartialEq, Eq)]
pub struct LegacyHash {
    text: Zeroizing<String>,
    parsed: Parsed,
}

impl LegacyHash {
    /// The text, for a store.
    ///
    /// # Security
    ///
    /// It says more about the key than a [`KeyHash`] does of a random key: keep it out of logs.
    #[must_use]
    pub fn expose_secret(&self) -> &str {
        &self.text
    }

    /// The name of the algorithm, such as `bcrypt`.
    #[must_use]
    pub const fn algorithm(&self) -> &'static str {
        self.parsed.algorithm()
    }

    /// SHA-256 of the text. Stores keep it after the key has moved, so that another import of the
    /// same hash recognizes the key.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        *KeyHash::of(self.text.as_bytes()).as_bytes()
    }

    /// The [`KeyHash`] that the key has until it is first used. No presented key has it: keys have
    /// no NUL.
    #[must_use]
    pub fn placeholder(&self) -> KeyHash {
        let text = [b"tower-api-key legacy\0", self.text.as_bytes()].concat();
        KeyHash::of(&Zeroizing::new(text))
    }
}

impl FromStr for LegacyHash {
    type Err = InvalidLegacyHash;

    fn from_str(text: &str) -> Result<Self, InvalidLegacyHash> {
        if text.len() > MAX_LEN {
            return Err(InvalidLegacyHash::new("it has more than 512 bytes"));
        }
        let parsed = Parsed::of(text)?;
        Ok(Self { text: Zeroizing::new(text.to_owned()), parsed })
    }
}

impl fmt::Debug for LegacyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LegacyHash({}, [REDACTED])", self.algorithm())
    }
}

#[cfg(test)]
mod tests;
