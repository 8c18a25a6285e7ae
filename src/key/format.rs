use std::{error::Error, fmt};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

use super::{ApiKey, EntropySource, MalformedKey, PresentedKey, RngError, SystemEntropy};

const RANDOM_BYTES: usize = 32;
const BODY_LEN: usize = 43;
const CHECKSUM_LEN: usize = 6;
const MAX_PREFIX_LEN: usize = 64;
/// A working generator needs about two draws; the chance of needing 100 is below 2⁻⁹⁰.
const MAX_DRAWS: usize = 100;

/// How keys of one kind and environment look: `sk_live_…`, `acme_test_…`.
///
/// See the [module](crate::key) for the format and its reasons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFormat {
    prefix: Box<str>,
}

impl KeyFormat {
    /// Keys that begin with `prefix`: letters and digits in segments that each end in `_`.
    ///
    /// Two or three segments read well: service, kind, environment. Keys of another environment
    /// are then refused without a look-up.
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

    /// The prefix.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Makes a new key from the operating system's random numbers.
    ///
    /// # Errors
    ///
    /// When the random number generator fails.
    pub fn generate(&self) -> Result<ApiKey, RngError> {
        self.generate_from(&SystemEntropy)
    }

    /// Makes a new key from another source of randomness.
    ///
    /// # Errors
    ///
    /// When the source fails, or plainly is not random: nothing but zeros, or a hundred draws
    /// without a key.
    pub fn generate_from(
        &self,
        entropy: &(impl EntropySource + ?Sized),
    ) -> Result<ApiKey, RngError> {
        for _ in 0..MAX_DRAWS {
            let mut random = secrecy::SecretBox::<[u8; RANDOM_BYTES]>::default();
            let random = secrecy::ExposeSecretMut::expose_secret_mut(&mut random);
            entropy.fill(random)?;
            if random.iter().all(|&byte| byte == 0) {
                return Err(RngError::new("it returned nothing but zeros"));
            }
            // The full capacity at once: a growing `String` would leave copies of the key behind.
            let mut key = String::with_capacity(self.len());
            key.push_str(&self.prefix);
            URL_SAFE_NO_PAD.encode_string(random, &mut key);
            URL_SAFE_NO_PAD.encode_string(crc32fast::hash(key.as_bytes()).to_be_bytes(), &mut key);
            let key = ApiKey::new(key);
            if !key.expose_secret().contains('-') {
                return Ok(key);
            }
        }
        Err(RngError::new("it did not return random bytes"))
    }

    /// Recognises a key of this format, without copying or hashing it.
    ///
    /// # Errors
    ///
    /// When prefix, length, alphabet or checksum differ.
    pub fn parse<'h>(&self, bytes: &'h [u8]) -> Result<PresentedKey<'h>, MalformedKey> {
        if bytes.len() != self.len() || !bytes.starts_with(self.prefix.as_bytes()) {
            return Err(MalformedKey);
        }
        let (payload, checksum) = bytes.split_last_chunk::<CHECKSUM_LEN>().ok_or(MalformedKey)?;
        // Most that is not a key ends here, before anything is computed of it.
        if !is_word(bytes) {
            return Err(MalformedKey);
        }
        let mut expected = [0; CHECKSUM_LEN];
        let crc = crc32fast::hash(payload).to_be_bytes();
        URL_SAFE_NO_PAD.encode_slice(crc, &mut expected).map_err(|_| MalformedKey)?;
        if *checksum == expected { Ok(PresentedKey::new(bytes)) } else { Err(MalformedKey) }
    }

    /// The regular expression under which secret scanners find keys of this format.
    ///
    /// It is understood by RE2, Hyperscan, PCRE and the `regex` crate. What it finds can be checked
    /// with [`parse`](Self::parse): of four billion look-alikes one has the right checksum.
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

    fn len(&self) -> usize {
        self.prefix.len() + BODY_LEN + CHECKSUM_LEN
    }
}

/// Whether all of it is letters, digits and `_`. Without a branch, so that the compiler looks at
/// sixteen bytes at a time.
fn is_word(bytes: &[u8]) -> bool {
    let is_word = |byte: u8| {
        let is_letter = (byte | 0x20).wrapping_sub(b'a') < 26;
        let is_digit = byte.wrapping_sub(b'0') < 10;
        is_letter | is_digit | (byte == b'_')
    };
    bytes.iter().fold(true, |all, &byte| all & is_word(byte))
}

/// Why a format was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidFormat {
    /// The prefix has characters it may not have, or does not end in `_`.
    Prefix,
    /// The prefix is longer than 64 characters, or the whole key longer than 256.
    TooLong,
    /// The keys hold fewer than 128 bits.
    TooWeak,
}

impl fmt::Display for InvalidFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prefix => "a key prefix is letters and digits in segments that each end in `_`, such as `sk_live_`",
            Self::TooLong => "a key prefix has at most 64 characters, and a key at most 256",
            Self::TooWeak => "keys of this format hold fewer than 128 bits and could be guessed",
        })
    }
}

impl Error for InvalidFormat {}

#[cfg(test)]
mod tests;
