use super::InvalidFormat;

/// The alphabet of an imported key's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Alphabet {
    /// `0-9a-f`: 4 bits per character.
    Hex,
    /// `0-9A-F`: 4 bits.
    HexUpper,
    /// Hexadecimal digits in either case: 4 bits, since the case holds no randomness.
    HexAnyCase,
    /// `A-Z2-7` ([RFC 4648 §6](https://www.rfc-editor.org/rfc/rfc4648#section-6)): 5 bits.
    Base32,
    /// Letters and digits without `0`, `O`, `I` and `l`, as in Bitcoin: 5.86 bits.
    Base58,
    /// Letters and digits: 5.95 bits.
    Base62,
    /// Letters, digits, `+` and `/` ([RFC 4648
    /// §4](https://www.rfc-editor.org/rfc/rfc4648#section-4)): 6 bits.
    Base64,
    /// Letters, digits, `-` and `_` ([RFC 4648
    /// §5](https://www.rfc-editor.org/rfc/rfc4648#section-5)): 6 bits.
    Base64Url,
    /// Any other set of characters.
    Custom(CharacterSet),
}

impl Alphabet {
    pub(super) fn contains(self, byte: u8) -> bool {
        match self {
            Self::Hex => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
            Self::HexUpper => matches!(byte, b'0'..=b'9' | b'A'..=b'F'),
            Self::HexAnyCase => byte.is_ascii_hexdigit(),
            Self::Base32 => matches!(byte, b'A'..=b'Z' | b'2'..=b'7'),
            Self::Base58 => byte.is_ascii_alphanumeric() && !b"0OIl".contains(&byte),
            Self::Base62 => byte.is_ascii_alphanumeric(),
            Self::Base64 => byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/'),
            Self::Base64Url => byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'),
            Self::Custom(set) => set.contains(byte),
        }
    }

    /// The randomness of `characters`, if each is drawn evenly.
    pub(super) fn bits(self, characters: usize) -> f64 {
        let size = match self {
            Self::HexAnyCase => 16,
            _ => (0..=u8::MAX).filter(|&byte| self.contains(byte)).count(),
        };
        // Both are at most 256, far below what an f64 holds exactly.
        #[expect(clippy::cast_precision_loss)]
        let (size, characters) = (size as f64, characters.min(u8::MAX.into()) as f64);
        characters * size.log2()
    }

    /// Whether `=` may fill it up to a multiple of four characters.
    pub(super) fn may_be_padded(self) -> bool {
        matches!(self, Self::Base64 | Self::Base64Url)
    }
}

/// A set of characters that keys of another system are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CharacterSet(u128);

impl CharacterSet {
    /// The characters in `characters`; one that comes twice counts once.
    ///
    /// # Errors
    ///
    /// When there are none, or when one cannot be in a header next to a key: all visible ASCII
    /// characters can, except quotes (`"`, `'`, `` ` ``), `\`, `,`, `;` and `=`.
    ///
    /// ```
    /// use tower_api_key::key::{Alphabet, CharacterSet, ImportedFormat};
    ///
    /// // Letters and digits that are not mistaken for each other.
    /// let set = CharacterSet::new("23456789abcdefghjkmnpqrstuvwxyz")?;
    /// let format = ImportedFormat::new("acme_", Alphabet::Custom(set), 32)?;
    /// # Ok::<(), tower_api_key::key::InvalidFormat>(())
    /// ```
    pub fn new(characters: &str) -> Result<Self, InvalidFormat> {
        if characters.is_empty() || !characters.bytes().all(is_key_symbol) {
            return Err(InvalidFormat::Characters);
        }
        Ok(Self(characters.bytes().fold(0, |set, byte| set | 1 << byte)))
    }

    fn contains(self, byte: u8) -> bool {
        byte.is_ascii() && self.0 >> byte & 1 == 1
    }
}

/// A character of a bearer token (RFC 6750 §2.1) other than its padding, which may only come last.
/// Keys of most formats consist of them.
pub(crate) fn is_bearer_symbol(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte)
}

/// A character that keys of imported formats may have: visible, and without a meaning in lists,
/// parameters and quoted strings of headers (RFC 9110 §5.6).
pub(super) fn is_key_symbol(byte: u8) -> bool {
    byte.is_ascii_graphic() && !b"\"'`\\,;=".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_alphabet_has_the_characters_of_its_definition() {
        let base58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
        for (alphabet, characters) in [
            (Alphabet::Hex, "0123456789abcdef"),
            (Alphabet::HexUpper, "0123456789ABCDEF"),
            (Alphabet::HexAnyCase, "0123456789ABCDEFabcdef"),
            (Alphabet::Base32, "234567ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
            (Alphabet::Base58, base58),
            (Alphabet::Custom(CharacterSet::new("zz!~#").unwrap()), "!#z~"),
        ] {
            let all = (0..=u8::MAX).filter(|&byte| alphabet.contains(byte)).map(char::from);
            assert_eq!(all.collect::<String>(), characters, "{alphabet:?}");
        }
    }

    #[test]
    fn a_set_has_no_character_that_a_header_gives_a_meaning() {
        for byte in 0..=u8::MAX {
            let is_allowed = byte.is_ascii_graphic() && !br#""'`\,;="#.contains(&byte);
            let set = CharacterSet::new(&char::from(byte).to_string());
            assert_eq!(set.is_ok(), is_allowed, "{byte}");
        }
        assert_eq!(CharacterSet::new(""), Err(InvalidFormat::Characters));
    }
}
