use super::{InvalidFormat, MalformedKey, PresentedKey};

/// The format of keys issued by another system: a fixed length, no checksum.
///
/// It lets a service adopt this crate without reissuing its users' keys. Invalid input is
/// recognised only by prefix, length and alphabet, so a well-formed unknown key costs a look-up.
/// Issue new keys in a [`KeyFormat`](super::KeyFormat) of your own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportedFormat {
    prefix: Box<str>,
    alphabet: Alphabet,
    body_len: usize,
    hint_len: Option<usize>,
}

impl ImportedFormat {
    /// Keys made of `prefix` (may be empty) and `body_len` characters of `alphabet`.
    ///
    /// # Errors
    ///
    /// When the body holds fewer than 128 bits (OWASP ASVS 7.2.3: such keys can be guessed), when a
    /// key would exceed 256 characters, or when the prefix has characters that a bearer token may
    /// not have.
    pub fn new(prefix: &str, alphabet: Alphabet, body_len: usize) -> Result<Self, InvalidFormat> {
        if !prefix.bytes().all(is_bearer_symbol) {
            return Err(InvalidFormat::Prefix);
        }
        let len = prefix.len().saturating_add(body_len);
        if len > MAX_LEN {
            return Err(InvalidFormat::TooLong);
        }
        if alphabet.bits(body_len) < MIN_BITS {
            return Err(InvalidFormat::TooWeak);
        }
        Ok(Self { prefix: prefix.into(), alphabet, body_len, hint_len: None })
    }

    /// The first `characters` of a key are its [hint](crate::manage::KeyImport::legacy_hint): the
    /// other system stored them beside the hash, so they are not secret. Default: no hint.
    ///
    /// # Errors
    ///
    /// When the rest of the body holds fewer than 128 bits.
    pub fn hint(self, characters: usize) -> Result<Self, InvalidFormat> {
        let of_body = characters.saturating_sub(self.prefix.len());
        if self.alphabet.bits(self.body_len.saturating_sub(of_body)) < MIN_BITS {
            return Err(InvalidFormat::TooWeak);
        }
        Ok(Self { hint_len: Some(characters), ..self })
    }

    /// Parses a key of this format without copying or hashing it.
    ///
    /// # Errors
    ///
    /// When prefix, length or alphabet differ.
    pub fn parse<'h>(&self, bytes: &'h [u8]) -> Result<PresentedKey<'h>, MalformedKey> {
        let body = bytes.strip_prefix(self.prefix.as_bytes()).ok_or(MalformedKey)?;
        let well_formed =
            body.len() == self.body_len && body.iter().all(|&byte| self.alphabet.contains(byte));
        if well_formed { Ok(PresentedKey::new(bytes)) } else { Err(MalformedKey) }
    }
}

impl ImportedFormat {
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    #[cfg(feature = "legacy-hashes")]
    pub(super) fn hint_of<'k>(&self, key: &'k [u8]) -> Option<&'k [u8]> {
        key.get(..self.hint_len?)
    }

    pub(super) fn key_len(&self) -> usize {
        self.prefix.len() + self.body_len
    }

    pub(super) fn is_symbol(&self, byte: u8) -> bool {
        self.alphabet.contains(byte)
    }
}

const MIN_BITS: f64 = 128.0;
const MAX_LEN: usize = 256;

/// The alphabet of an imported key's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Alphabet {
    /// `0-9a-f`: 4 bits per character.
    Hex,
    /// `A-Z2-7` ([RFC 4648 §6](https://www.rfc-editor.org/rfc/rfc4648#section-6)): 5 bits.
    Base32,
    /// Letters and digits: 5.95 bits.
    Base62,
    /// Letters, digits, `-` and `_` ([RFC 4648
    /// §5](https://www.rfc-editor.org/rfc/rfc4648#section-5)): 6 bits.
    Base64Url,
}

impl Alphabet {
    fn contains(self, byte: u8) -> bool {
        match self {
            Self::Hex => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
            Self::Base32 => matches!(byte, b'A'..=b'Z' | b'2'..=b'7'),
            Self::Base62 => byte.is_ascii_alphanumeric(),
            Self::Base64Url => byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'),
        }
    }

    fn bits(self, characters: usize) -> f64 {
        let size = (0..=u8::MAX).filter(|&byte| self.contains(byte)).count();
        // Both are at most 256, far below what an f64 holds exactly.
        #[expect(clippy::cast_precision_loss)]
        let (size, characters) = (size as f64, characters.min(MAX_LEN) as f64);
        characters * size.log2()
    }
}

/// A character of a bearer token (RFC 6750 §2.1) other than its padding, which may only come last.
/// Keys of every format consist of them.
pub(crate) fn is_bearer_symbol(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_below_128_bits_are_refused() {
        for (alphabet, enough) in [
            (Alphabet::Hex, 32),
            (Alphabet::Base32, 26),
            (Alphabet::Base62, 22),
            (Alphabet::Base64Url, 22),
        ] {
            assert!(ImportedFormat::new("", alphabet, enough).is_ok(), "{alphabet:?}");
            let weak = ImportedFormat::new("", alphabet, enough - 1);
            assert_eq!(weak, Err(InvalidFormat::TooWeak), "{alphabet:?}");
        }
    }

    #[test]
    fn a_prefix_is_of_the_characters_of_a_bearer_token() {
        let new = |prefix: &str| ImportedFormat::new(prefix, Alphabet::Hex, 32);
        assert!(new("Az09-._~+/").is_ok());
        for byte in 0..=u8::MAX {
            let prefix = char::from(byte).to_string();
            let is_symbol = byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte);
            let expected = if is_symbol { Ok(()) } else { Err(InvalidFormat::Prefix) };
            assert_eq!(new(&prefix).map(drop), expected, "{prefix:?}");
        }
    }

    #[test]
    fn absurd_lengths_are_refused() {
        let long = ImportedFormat::new("", Alphabet::Hex, usize::MAX);
        assert_eq!(long, Err(InvalidFormat::TooLong));
    }

    #[test]
    fn only_the_exact_shape_is_recognised() {
        let format = ImportedFormat::new("old-", Alphabet::Hex, 32).unwrap();
        let key = format!("old-{}", "0123456789abcdef".repeat(2));
        assert!(format.parse(key.as_bytes()).is_ok());
        for junk in [
            key.replace("old-", "new-"),
            key.to_uppercase(),
            format!("{key}0"),
            key[..key.len() - 1].to_owned(),
            String::new(),
        ] {
            assert_eq!(format.parse(junk.as_bytes()).unwrap_err(), MalformedKey, "{junk}");
        }
    }
}
