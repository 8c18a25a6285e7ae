use super::{Alphabet, InvalidFormat, alphabet::is_key_symbol};

/// The most digits of a number in an id: those of a 64-bit integer.
const MAX_DIGITS: usize = 20;

/// The part before the secret of a key, by which another system finds the key: `17|` in `17|secret`.
///
/// It is public: an id is shown in logs where the key is [masked](super::KeyMask), and adds nothing
/// to the strength of a format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdPart {
    prefix: Box<str>,
    characters: Characters,
    separator: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Characters {
    /// Between one and [`MAX_DIGITS`].
    Digits,
    Fixed(Alphabet, usize),
}

impl IdPart {
    /// A number of 1 to 20 digits, and `separator`: `17|`.
    ///
    /// # Errors
    ///
    /// When the separator is a digit or cannot be in a key.
    pub fn digits(separator: char) -> Result<Self, InvalidFormat> {
        if separator.is_ascii_digit() {
            return Err(InvalidFormat::Id);
        }
        Self::of(Characters::Digits, separator)
    }

    /// `len` characters of `alphabet`, and `separator`: `BRTRKFsL_`.
    ///
    /// # Errors
    ///
    /// When `len` is zero or the separator cannot be in a key.
    pub fn fixed(alphabet: Alphabet, len: usize, separator: char) -> Result<Self, InvalidFormat> {
        if len == 0 {
            return Err(InvalidFormat::Id);
        }
        Self::of(Characters::Fixed(alphabet, len), separator)
    }

    fn of(characters: Characters, separator: char) -> Result<Self, InvalidFormat> {
        let separator = u8::try_from(separator).map_err(|_| InvalidFormat::Characters)?;
        if !is_key_symbol(separator) {
            return Err(InvalidFormat::Characters);
        }
        Ok(Self { prefix: "".into(), characters, separator })
    }

    /// Adds a prefix before the id: `acme_` in `acme_BRTRKFsL_secret`.
    ///
    /// # Errors
    ///
    /// When it has characters that a key cannot have, or ends in a digit before a number.
    pub fn with_prefix(self, prefix: &str) -> Result<Self, InvalidFormat> {
        if !prefix.bytes().all(is_key_symbol) {
            return Err(InvalidFormat::Characters);
        }
        if self.characters == Characters::Digits && prefix.ends_with(|c: char| c.is_ascii_digit()) {
            return Err(InvalidFormat::Id);
        }
        Ok(Self { prefix: prefix.into(), ..self })
    }
}

impl IdPart {
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(super) fn separator(&self) -> u8 {
        self.separator
    }

    pub(super) fn max_len(&self) -> usize {
        self.prefix.len().saturating_add(self.longest_id()).saturating_add(1)
    }

    fn longest_id(&self) -> usize {
        match self.characters {
            Characters::Digits => MAX_DIGITS,
            Characters::Fixed(_, len) => len,
        }
    }

    /// Whether `byte` may be in the id itself.
    pub(super) fn contains(&self, byte: u8) -> bool {
        match self.characters {
            Characters::Digits => byte.is_ascii_digit(),
            Characters::Fixed(alphabet, _) => alphabet.contains(byte),
        }
    }

    /// The id and the secret of a key.
    pub(super) fn split<'k>(&self, key: &'k [u8]) -> Option<(&'k [u8], &'k [u8])> {
        let rest = key.strip_prefix(self.prefix.as_bytes())?;
        let (id, rest) = rest.split_at_checked(self.id_len(rest)?)?;
        rest.strip_prefix(&[self.separator]).map(|secret| (id, secret))
    }

    fn id_len(&self, rest: &[u8]) -> Option<usize> {
        let is_of_it = |byte: &&u8| self.contains(**byte);
        let len = rest.iter().take(self.longest_id()).take_while(is_of_it).count();
        self.is_complete(len).then_some(len)
    }

    fn is_complete(&self, len: usize) -> bool {
        match self.characters {
            Characters::Digits => len > 0,
            Characters::Fixed(_, fixed) => len == fixed,
        }
    }

    /// Where the id begins, with its prefix, that ends where `before` does.
    pub(super) fn start_before(&self, before: &[u8]) -> Option<usize> {
        let len = self.trailing(before);
        let before = before.get(..before.len() - len).filter(|_| self.is_complete(len))?;
        before.ends_with(self.prefix.as_bytes()).then(|| before.len() - self.prefix.len())
    }

    /// Where an id may have begun that goes on after `text`; its end if none has.
    pub(super) fn unfinished_start(&self, text: &[u8]) -> usize {
        let prefix = self.prefix.as_bytes();
        let ids = (0..=self.trailing(text)).rev().map(|len| (len, prefix));
        let begun = (1..prefix.len()).rev().filter_map(|len| Some((0, prefix.get(..len)?)));
        let mut ends = ids.chain(begun).filter_map(|(id, prefix)| {
            let before = text.get(..text.len() - id)?;
            before.ends_with(prefix).then(|| before.len() - prefix.len())
        });
        ends.next().unwrap_or(text.len())
    }

    /// How many characters at the end of `text` an id may have.
    fn trailing(&self, text: &[u8]) -> usize {
        let last = text.iter().rev().take(self.longest_id());
        last.take_while(|&&byte| self.contains(byte)).count()
    }

    /// Whether the beginning of a key may be `text`, which is no longer than the part of it before
    /// the secret; otherwise what may remain for the secret.
    pub(super) fn rest_of_hint<'t>(&self, text: &'t [u8]) -> Option<&'t [u8]> {
        let common = text.len().min(self.prefix.len());
        let (start, rest) = text.split_at_checked(common)?;
        if !self.prefix.as_bytes().starts_with(start) {
            return None;
        }
        let len = rest.iter().take(self.longest_id()).take_while(|&&b| self.contains(b)).count();
        match rest.get(len..)? {
            [] => Some(&[]),
            [separator, secret @ ..] if *separator == self.separator && self.is_complete(len) => {
                Some(secret)
            }
            _ => None,
        }
    }
}
