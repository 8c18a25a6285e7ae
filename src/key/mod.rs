//! The key itself: its format, generation, parsing and hashing.
//!
//! A key is `prefix + body + checksum`, for instance
//!
//! ```text
//! sk_live_ Zq0Q…43 characters…c8M 3kPz0A
//! prefix   32 random bytes        CRC-32 of everything before it
//! ```
//!
//! 1. The **prefix** names the service and the environment. It is public and lets people and secret
//!    scanners identify the key.
//! 2. The **body** is 32 bytes of the operating system's random numbers in unpadded base64url
//!    ([RFC 4648 §5](https://www.rfc-editor.org/rfc/rfc4648#section-5)): 43 characters.
//! 3. The **checksum** is the big-endian CRC-32 of prefix and body in base64url: 6 characters. It
//!    rejects typing errors, truncated pastes and scanners' false positives without a hash or a
//!    query. It is not a secret and does not authenticate.
//!
//! Keys that contain a `-` are discarded and drawn again (two draws on average), so that a double
//! click selects the whole key. This costs about one bit: 254.9 of 256 remain.
//!
//! Only the SHA-256 of the whole key is stored ([`KeyHash`]).
//!
//! ```
//! use tower_api_key::key::KeyFormat;
//!
//! let format = KeyFormat::new("sk_live_")?;
//! let key = format.generate()?;
//!
//! assert_eq!(key.expose_secret().len(), 57);
//! let presented = format.parse(key.expose_secret().as_bytes())?;
//! assert_eq!(presented.hash(), key.hash());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Keys issued before adopting this crate keep working with an [`ImportedFormat`], which knows
//! their structure, the part of them that is hashed, and the [`Digest`]:
//!
//! ```
//! use tower_api_key::key::{Alphabet, ImportedFormat};
//!
//! // `randomBytes(32).toString('hex')`
//! let format = ImportedFormat::new("", Alphabet::Hex, 64)?;
//! assert!(format.parse(&[b'7'; 64]).is_ok());
//!
//! let weak = ImportedFormat::new("", Alphabet::Hex, 16);
//! assert!(weak.is_err(), "64 bits can be guessed");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A key that a client sends in the wrong place, or that another crate logs, is kept out of logs by
//! a [`MaskingWriter`]. A [`KeyFinder`] finds keys in files.

mod accepted;
mod alphabet;
mod api_key;
mod digest;
mod entropy;
mod find;
mod format;
mod format_text;
mod hash;
mod id_part;
mod imported_format;
mod legacy_hash;
mod mask;
#[cfg(feature = "webhooks")]
mod signing_secret;

#[cfg(feature = "legacy-hashes")]
pub use self::digest::Pepper;
#[cfg(feature = "webhooks")]
pub use self::signing_secret::{InvalidSigningSecret, SigningSecret};
pub use self::{
    accepted::AcceptedFormat,
    alphabet::{Alphabet, CharacterSet},
    api_key::{ApiKey, MalformedKey, PresentedKey},
    digest::{Digest, InvalidDigest},
    entropy::{EntropySource, RngError, SystemEntropy},
    find::{FoundKey, KeyFinder},
    format::{InvalidFormat, KeyFormat},
    hash::{InvalidHash, KeyHash},
    id_part::IdPart,
    imported_format::ImportedFormat,
    legacy_hash::{InvalidLegacyHash, LegacyHash},
    mask::{KeyMask, MaskingWriter},
};
pub(crate) use self::{alphabet::is_bearer_symbol, hash::digest};
