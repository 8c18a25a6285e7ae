use std::{error::Error, fmt, str::FromStr};

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use sha2::{Digest, Sha256};

const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

/// SHA-256 of a whole key: stored in key stores, looked up in caches, announced by feeds.
///
/// A plain hash is enough because a key holds at least 128 bits of randomness: a dictionary attack
/// is impossible, and NIST SP 800-63B requires salt and stretching only below 112 bits. Comparing
/// hashes in variable time leaks nothing useful: to exploit it, an attacker would have to invert
/// SHA-256.
///
/// `Debug` shows four bytes, enough to tell two keys apart in a log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    pub(crate) fn of(key: &[u8]) -> Self {
        Self(Sha256::digest(key).into())
    }

    /// A hash computed elsewhere, as read by a store.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl TryFrom<&[u8]> for KeyHash {
    type Error = InvalidHash;

    fn try_from(bytes: &[u8]) -> Result<Self, InvalidHash> {
        bytes.try_into().map(Self).map_err(|_| InvalidHash)
    }
}

/// SHA-256 of `parts`, each prefixed with its length so that no two lists collide.
pub(crate) fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut sha = Sha256::new();
    for part in parts {
        sha.update((part.len() as u64).to_be_bytes());
        sha.update(part);
    }
    sha.finalize().into()
}

/// Accepts 64 hexadecimal digits, or base64 in either alphabet, with or without padding.
impl FromStr for KeyHash {
    type Err = InvalidHash;

    fn from_str(hash: &str) -> Result<Self, InvalidHash> {
        let bytes = if hash.len() == 64 { decode_hex(hash) } else { decode_base64(hash) };
        Self::try_from(&*bytes.ok_or(InvalidHash)?)
    }
}

/// The bytes of base64 in either alphabet, with or without padding.
pub(super) fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let engine = if text.contains(['-', '_']) { &URL_SAFE } else { &STANDARD };
    engine.decode(text).ok()
}

/// The bytes of hexadecimal digits in either case.
pub(super) fn decode_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

/// The two lower-case hexadecimal digits of a byte.
pub(super) fn hex(byte: u8) -> [u8; 2] {
    [byte >> 4, byte & 15].map(|digit| if digit < 10 { b'0' + digit } else { b'a' + digit - 10 })
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "KeyHash({a:02x}{b:02x}{c:02x}{d:02x}…)")
    }
}

/// The text or bytes are not a 32-byte hash in hexadecimal or base64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InvalidHash;

impl fmt::Display for InvalidHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key hash must be 32 bytes: 64 hexadecimal digits or 43 base64 characters")
    }
}

impl Error for InvalidHash {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_sha_256() {
        let hash = KeyHash::of(b"abc");
        let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hash, known.parse().unwrap());
    }

    #[test]
    fn a_digest_of_parts_tells_apart_where_one_ends() {
        let parts: [&[&[u8]]; 7] =
            [&[], &[b""], &[b"", b""], &[b"ab"], &[b"a", b"b"], &[b"", b"ab"], &[b"ab", b""]];
        let digests: std::collections::HashSet<_> = parts.map(digest).into();
        assert_eq!(digests.len(), parts.len());
        // SHA-256 of the length as eight bytes, followed by "ab".
        let known = "9caccc24b5d7e06c21c0277b6530d66664273e11f326515c58eaa3691afccfff";
        assert_eq!(KeyHash(digest(&[b"ab"])), known.parse().unwrap());
    }

    #[test]
    fn is_read_from_hex_and_from_both_kinds_of_base64() {
        let hash = KeyHash::from_bytes([0xfb; 32]);
        for text in [
            "fb".repeat(32),
            "FB".repeat(32),
            format!("{}+/s=", "+/v7".repeat(10)),
            format!("{}+/s", "+/v7".repeat(10)),
            format!("{}-_s", "-_v7".repeat(10)),
        ] {
            assert_eq!(text.parse(), Ok(hash), "{text}");
        }
        for text in ["+/v7", "*".repeat(43).as_str(), format!("{}-/s", "-_v7".repeat(10)).as_str()]
        {
            assert_eq!(text.parse::<KeyHash>(), Err(InvalidHash), "{text}");
        }
    }

    #[test]
    fn hex_of_another_length_or_alphabet_is_refused() {
        for hex in ["", "ab", &"g".repeat(64), &"a".repeat(63), &"a".repeat(66), &"ä".repeat(32)] {
            assert_eq!(hex.parse::<KeyHash>(), Err(InvalidHash), "{hex}");
        }
    }
}
