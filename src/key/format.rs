use std::{error::Error, fmt};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

use super::{ApiKey, EntropySource, MalformedKey, PresentedKey, RngError, SystemEntropy};

const RANDOM_BYTES: usize = 32;
pub(super) const BODY_LEN: usize = 43;
pub(super) const CHECKSUM_LEN: usize = 6;
pub(super) const MAX_PREFIX_LEN: usize = 64;
/// Key generation needs two draws on average; the chance of needing 100 is below 2⁻⁹⁰.
const MAX_DRAWS: usize = 100;

/// The format of keys of one kind and environment: `sk_live_…`, `acme_test_…`.
///
/// See the [module](crate::key) for the format and the reasons for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFormat {
    prefix: Box<str>,
}

impl KeyFormat {
    /// A format whose keys begin with `prefix`: segments of letters and digits, each ending in `_`.
    ///
    /// Two or three segments read well: service, kind, environment. Keys of another environment are
    /// then refused without a look-up.
    ///
    /// # Errors
    ///
    /// When the prefix is not `[A-Za-z0-9]+(_[A-Za-z0-9]+)*_`, or longer than 64 characters.
    ///
    /// ```
    /// use tower_api_key::key::KeyFormat;
    ///
    /// assert!(KeyFormat::new("acme_live_").is_ok());
    /// assert!(KeyFormat::new("acme-live").is_err());
    /// ```
    pub fn new(prefix: &str) -> Result<Self, InvalidFormat> {
        if prefix.len() > MAX_PREFIX_LEN {
            return Err(InvalidFormat::TooLong);
        }
        let segments = prefix.strip_suffix('_').ok_or(InvalidFormat::Prefix)?;
        let well_formed = segments.split('_').all(|segment| {
            !segment.is_empty() && segment.bytes().all(|byte| byte.is_ascii_alphanumeric())
        });
        if well_formed { Ok(Self { prefix: prefix.into() }) } else { Err(InvalidFormat::Prefix) }
    }

    /// The prefix that keys begin with.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Generates a key from the operating system's random numbers.
    ///
    /// # Errors
    ///
    /// When the random number generator fails.
    pub fn generate(&self) -> Result<ApiKey, RngError> {
        self.generate_from(&SystemEntropy)
    }

    /// Generates a key from another source of randomness.
    ///
    /// # Errors
    ///
    /// When the source fails or is clearly not random: it returned all zeros, or a hundred draws
    /// produced no key.
    pub fn generate_from(
        &self,
        entropy: &(impl EntropySource + ?Sized),
    ) -> Result<ApiKey, RngError> {
        for _ in 0..MAX_DRAWS {
            let mut random = Zeroizing::new([0; RANDOM_BYTES]);
            entropy.fill(&mut *random)?;
            if random.iter().all(|&byte| byte == 0) {
                return Err(RngError::new("the entropy source returned only zeros"));
            }
            // Allocate the full capacity up front: a growing `String` would leave copies of the key
            // behind.
            let mut key = String::with_capacity(self.key_len());
            key.push_str(&self.prefix);
            // By reference: a copy would not be wiped.
            URL_SAFE_NO_PAD.encode_string(random.as_slice(), &mut key);
            URL_SAFE_NO_PAD.encode_string(crc32fast::hash(key.as_bytes()).to_be_bytes(), &mut key);
            let key = ApiKey::new(key);
            if !key.expose_secret().contains('-') {
                return Ok(key);
            }
        }
        Err(RngError::new("the entropy source did not return random bytes"))
    }

    /// Parses a key of this format without copying or hashing it.
    ///
    /// # Errors
    ///
    /// When prefix, length, alphabet or checksum differ.
    pub fn parse<'h>(&self, bytes: &'h [u8]) -> Result<PresentedKey<'h>, MalformedKey> {
        if bytes.len() != self.key_len() || !bytes.starts_with(self.prefix.as_bytes()) {
            return Err(MalformedKey);
        }
        let (payload, checksum) = bytes.split_last_chunk::<CHECKSUM_LEN>().ok_or(MalformedKey)?;
        // Most malformed input is refused here, before computing the CRC.
        if !is_word(bytes) {
            return Err(MalformedKey);
        }
        let mut expected = [0; CHECKSUM_LEN];
        let crc = crc32fast::hash(payload).to_be_bytes();
        URL_SAFE_NO_PAD.encode_slice(crc, &mut expected).map_err(|_| MalformedKey)?;
        if *checksum == expected { Ok(PresentedKey::issued(bytes)) } else { Err(MalformedKey) }
    }

    /// A regular expression for secret scanners that matches keys of this format.
    ///
    /// It works with RE2, Hyperscan, PCRE and the `regex` crate. Verify matches with
    /// [`parse`](Self::parse): only one look-alike in four billion has a valid checksum.
    ///
    /// ```
    /// # use tower_api_key::key::KeyFormat;
    /// assert_eq!(KeyFormat::new("sk_live_")?.regex(), r"\bsk_live_[A-Za-z0-9_]{49}\b");
    /// # Ok::<(), tower_api_key::key::InvalidFormat>(())
    /// ```
    #[must_use]
    pub fn regex(&self) -> String {
        format!(r"\b{}[A-Za-z0-9_]{{{}}}\b", self.prefix, BODY_LEN + CHECKSUM_LEN)
    }

    pub(super) fn key_len(&self) -> usize {
        self.prefix.len() + BODY_LEN + CHECKSUM_LEN
    }
}

/// Whether all bytes are letters, digits or `_`. Branch-free so that the compiler vectorises it,
/// sixteen bytes at a time.
pub(super) fn is_word(bytes: &[u8]) -> bool {
    bytes.iter().fold(true, |all, &byte| all & is_word_character(byte))
}

/// Whether `byte` is a letter, a digit or `_`.
pub(super) fn is_word_character(byte: u8) -> bool {
    let is_letter = (byte | 0x20).wrapping_sub(b'a') < 26;
    let is_digit = byte.wrapping_sub(b'0') < 10;
    is_letter | is_digit | (byte == b'_')
}

/// Why a key format is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidFormat {
    /// The prefix has characters other than those allowed, or does not end in `_`.
    Prefix,
    /// An imported format has a character that its keys cannot have, or none at all.
    Characters,
    /// The id of an imported format is empty, or a digit stands next to its number.
    Id,
    /// The alphabet of an imported format is none of those that have a name.
    Alphabet,
    /// The length of an imported format is not a number.
    Length,
    /// An imported format has an option that is unknown or has another value.
    Option,
    /// Only base64 is padded, and not if it has one character more than a multiple of four.
    Padding,
    /// The prefix is longer than 64 characters, or the whole key longer than 256.
    TooLong,
    /// Keys of this format hold fewer than 128 bits.
    TooWeak,
    /// Keys of this format have neither a prefix nor a checksum, so they cannot be
    /// [found](super::KeyFinder) in other text.
    Indistinct,
}

impl fmt::Display for InvalidFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prefix => "a key prefix must be segments of letters and digits that each end in `_`, such as `sk_live_`",
            Self::Characters => "keys have visible ASCII characters other than quotes, `\\`, `,`, `;` and `=`",
            Self::Id => "the id of a key must have at least one character and a separator, as in id=alnum:8:. or id=digits:|, and no digit next to its number",
            Self::Alphabet => "unknown alphabet: write hex:64, hex-upper, hex-any-case, base32, base58, alnum, base64 or base64url in its place, a set such as [A-Za-z], or uuid or sanctum alone",
            Self::Length => "the length must be a number, as in hex:64, with a prefix as in hex:64:old-",
            Self::Option => "unknown option: write id=alnum:8:. or id=digits:|, hash=secret, digest=sha512 or digest=double-sha256, or check=crc32b",
            Self::Padding => "only base64 is padded, and not if it has one character more than a multiple of four",
            Self::TooLong => "a key prefix must have at most 64 characters, and a key at most 256",
            Self::TooWeak => "keys of this format hold fewer than 128 bits and could be guessed",
            Self::Indistinct => "keys of this format have neither a prefix nor a checksum, so other text looks the same: add the prefix, as in hex:64:old-",
        })
    }
}

impl Error for InvalidFormat {}

#[cfg(test)]
mod tests;
