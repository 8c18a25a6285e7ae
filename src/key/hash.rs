use std::{error::Error, fmt, str::FromStr};

use sha2::{Digest, Sha256};

/// SHA-256 of a whole key: what stores keep, caches look up and feeds announce.
///
/// A plain hash is enough because a key holds at least 128 bits of randomness: there is no
/// dictionary to try, and NIST SP 800-63B asks for salt and stretching only below 112 bits.
/// Comparing two hashes in variable time gives nothing away either: whoever can choose a hash's
/// leading bytes would have to invert SHA-256 to profit.
///
/// `Debug` shows four bytes, enough to tell two keys apart in a log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    pub(super) fn of(key: &[u8]) -> Self {
        Self(Sha256::digest(key).into())
    }

    /// A hash computed elsewhere, as a store reads it.
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

/// 64 hexadecimal digits.
impl FromStr for KeyHash {
    type Err = InvalidHash;

    fn from_str(hex: &str) -> Result<Self, InvalidHash> {
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|d| u8::try_from(d).ok());
        let (pairs, []) = hex.as_bytes().as_chunks::<2>() else { return Err(InvalidHash) };
        let mut bytes = [0; 32];
        if pairs.len() != bytes.len() {
            return Err(InvalidHash);
        }
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            let (Some(high), Some(low)) = (digit(*high), digit(*low)) else {
                return Err(InvalidHash);
            };
            *byte = high << 4 | low;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "KeyHash({a:02x}{b:02x}{c:02x}{d:02x}…)")
    }
}

/// Not 32 bytes, or not 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InvalidHash;

impl fmt::Display for InvalidHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key hash is 32 bytes, or 64 hexadecimal digits")
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
    fn hex_of_another_length_or_alphabet_is_refused() {
        for hex in ["", "ab", &"g".repeat(64), &"a".repeat(63), &"a".repeat(66), &"ä".repeat(32)] {
            assert_eq!(hex.parse::<KeyHash>(), Err(InvalidHash), "{hex}");
        }
    }
}
