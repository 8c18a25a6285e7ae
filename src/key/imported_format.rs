pub(super) mod legacy;

use super::{
    Alphabet, Digest, IdPart, InvalidFormat, MalformedKey, PresentedKey, alphabet::is_key_symbol,
    hash::hex,
};

/// The format of keys issued by another system.
///
/// It lets a service adopt this crate without reissuing its users' keys. Invalid input is
/// recognised only by prefix, length and alphabet, so a well-formed unknown key costs a look-up.
/// Issue new keys in a [`KeyFormat`](super::KeyFormat) of your own.
///
/// A key is an [id](IdPart) (few systems have one), a prefix, a body of a fixed length and a checksum
/// (few systems have one). Prefix, body and checksum are the *secret*:
///
/// ```
/// use tower_api_key::key::{Alphabet, IdPart, ImportedFormat};
///
/// // `randomBytes(32).toString('hex')`
/// let hex = ImportedFormat::new("", Alphabet::Hex, 64)?;
/// // `base64.b64encode(os.urandom(32))`
/// let padded = ImportedFormat::new("", Alphabet::Base64, 43)?.padded()?;
/// // `random.secret`, as of djangorestframework-api-key
/// let id = IdPart::fixed(Alphabet::Base62, 8, '.')?;
/// let django = ImportedFormat::new("", Alphabet::Base62, 32)?.with_id(id)?;
/// // `17|secret`, of which the secret alone is hashed
/// let sanctum = ImportedFormat::sanctum("")?;
/// # Ok::<(), tower_api_key::key::InvalidFormat>(())
/// ```
///
/// # Formats as text
///
/// Options of commands and variables of the environment have formats as text, which is parsed by
/// [`FromStr`](std::str::FromStr):
///
/// ```text
/// FORMAT   = SECRET *("," OPTION) / "sanctum" [":" PREFIX]
/// SECRET   = ALPHABET ":" LENGTH ["="] [":" PREFIX] / "uuid" [":" PREFIX]
/// ALPHABET = "hex" / "hex-upper" / "hex-any-case" / "base32" / "base58" / "base62" / "alnum" /
///            "base64" / "base64url" / "[" characters and ranges, as A-Z "]"
/// OPTION   = "id=" ALPHABET ":" LENGTH ":" SEPARATOR [":" PREFIX]
///          / "id=digits:" SEPARATOR [":" PREFIX]
///          / "hash=" ("key" / "secret")
///          / "digest=" ("sha256" / "double-sha256" / "sha512")
///          / "check=crc32b"
/// ```
///
/// `alnum` is `base62`. A `=` after the length is [padding](Self::padded), which the length does not
/// count. Digests with a salt or a pepper have no text: set them by
/// [`hashed_by`](Self::hashed_by).
///
/// ```
/// use tower_api_key::key::{Alphabet, ImportedFormat, InvalidFormat};
///
/// let format: ImportedFormat = "hex:64:old-".parse()?;
/// assert_eq!(format, ImportedFormat::new("old-", Alphabet::Hex, 64)?);
///
/// // `secrets.token_urlsafe(32)` of Python; `crypto.randomUUID()` of JavaScript
/// let python: ImportedFormat = "base64url:43".parse()?;
/// let uuid: ImportedFormat = "uuid".parse()?;
/// // djangorestframework-api-key 3
/// let django: ImportedFormat = "alnum:32,id=alnum:8:.,digest=sha512".parse()?;
///
/// assert_eq!("hex:16".parse::<ImportedFormat>(), Err(InvalidFormat::TooWeak));
/// # Ok::<(), InvalidFormat>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportedFormat {
    id: Option<IdPart>,
    prefix: Box<str>,
    body: Body,
    has_checksum: bool,
    hashed: Part,
    /// `None` for SHA-256, which is the digest of keys issued here.
    digest: Option<Digest>,
    /// How many characters of the secret find its legacy hash.
    hint_len: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    Characters {
        alphabet: Alphabet,
        len: usize,
        padding: usize,
    },
    /// `8-4-4-4-12` hexadecimal digits, of version 4.
    Uuid,
}

/// The part of a key that is hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Key,
    Secret,
}

const MIN_BITS: f64 = 128.0;
const MAX_LEN: usize = 256;
const UUID_LEN: usize = 36;
/// A CRC-32 in hexadecimal.
const CHECKSUM_LEN: usize = 8;

impl ImportedFormat {
    /// Keys made of `prefix` (may be empty) and `body_len` characters of `alphabet`.
    ///
    /// # Errors
    ///
    /// When the body holds fewer than 128 bits (OWASP ASVS 7.2.3: such keys can be guessed), when a
    /// key would exceed 256 characters, or when the prefix has characters that a key [cannot
    /// have](super::CharacterSet::new).
    pub fn new(prefix: &str, alphabet: Alphabet, body_len: usize) -> Result<Self, InvalidFormat> {
        let format = Self::of(prefix, Body::Characters { alphabet, len: body_len, padding: 0 })?;
        if alphabet.bits(body_len) < MIN_BITS {
            return Err(InvalidFormat::TooWeak);
        }
        Ok(format)
    }

    /// Keys made of `prefix` (may be empty) and a UUID in its text form, such as
    /// `f47ac10b-58cc-4372-a567-0e02b2c3d479`
    /// ([RFC 9562 §4](https://www.rfc-editor.org/rfc/rfc9562#section-4)), in either case. Only version
    /// 4 is accepted: the others are made of a time, a network address or a name and can be guessed.
    ///
    /// The one exception to the minimum of 128 bits: a UUID holds 122, which is above the 112 bits that
    /// NIST SP 800-63B requires of a secret that is hashed without a salt, and many systems use them.
    /// Rotate such keys to issued ones when you can.
    ///
    /// # Errors
    ///
    /// When the prefix has characters that a key [cannot have](super::CharacterSet::new), or more than
    /// 220 of them.
    pub fn uuid(prefix: &str) -> Result<Self, InvalidFormat> {
        Self::of(prefix, Body::Uuid)
    }

    /// Tokens of current versions of Laravel Sanctum: a decimal id, `|`, `token_prefix` (may be empty, as
    /// `SANCTUM_TOKEN_PREFIX`), 40 letters and digits, and their CRC-32. The part after `|` is hashed.
    ///
    /// Earlier versions made tokens without a checksum, of 40 or 80 characters: accept
    /// `alnum:40,id=digits:|,hash=secret` as well if there are any.
    ///
    /// # Errors
    ///
    /// When the prefix has characters that a key [cannot have](super::CharacterSet::new), or is too
    /// long.
    pub fn sanctum(token_prefix: &str) -> Result<Self, InvalidFormat> {
        let format = Self::new(token_prefix, Alphabet::Base62, 40)?.with_checksum()?;
        Ok(format.with_id(IdPart::digits('|')?)?.hashes_secret_only())
    }

    fn of(prefix: &str, body: Body) -> Result<Self, InvalidFormat> {
        if !prefix.bytes().all(is_key_symbol) {
            return Err(InvalidFormat::Characters);
        }
        let (prefix, hashed) = (prefix.into(), Part::Key);
        Self { id: None, prefix, body, has_checksum: false, hashed, digest: None, hint_len: None }
            .bounded()
    }

    /// Adds an id before the secret. It does not add to the strength of keys.
    ///
    /// # Errors
    ///
    /// When a key would exceed 256 characters.
    pub fn with_id(self, id: IdPart) -> Result<Self, InvalidFormat> {
        Self { id: Some(id), ..self }.bounded()
    }

    /// Fills the body with `=` up to a multiple of four characters, as base64 has it
    /// ([RFC 4648 §4](https://www.rfc-editor.org/rfc/rfc4648#section-4)).
    ///
    /// # Errors
    ///
    /// When the alphabet is not base64, or base64 of that length does not exist.
    pub fn padded(self) -> Result<Self, InvalidFormat> {
        match self.body {
            Body::Characters { alphabet, len, .. } if alphabet.may_be_padded() && len % 4 != 1 => {
                let padding = len.wrapping_neg() % 4;
                Self { body: Body::Characters { alphabet, len, padding }, ..self }.bounded()
            }
            _ => Err(InvalidFormat::Padding),
        }
    }

    /// Adds a checksum after the body: the CRC-32 of the body as eight lower-case hexadecimal digits,
    /// PHP's `crc32b`. Typing errors are then refused without a look-up.
    ///
    /// # Errors
    ///
    /// When a key would exceed 256 characters.
    pub fn with_checksum(self) -> Result<Self, InvalidFormat> {
        Self { has_checksum: true, ..self }.bounded()
    }

    /// The part after the [id](Self::with_id) is hashed instead of the whole key.
    ///
    /// The id is then not checked: keys that differ only in their id are one key, with one record and
    /// one quota.
    #[must_use]
    pub fn hashes_secret_only(self) -> Self {
        Self { hashed: Part::Secret, ..self }
    }

    /// How the other system hashed its keys. Default: [`Digest::sha256`].
    #[must_use]
    pub fn hashed_by(self, digest: Digest) -> Self {
        Self { digest: Some(digest).filter(|digest| !digest.is_sha256()), ..self }
    }

    /// How the other system hashed its keys.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest.clone().unwrap_or_else(Digest::sha256)
    }

    fn bounded(self) -> Result<Self, InvalidFormat> {
        let id = self.id.as_ref().map_or(0, IdPart::max_len);
        if id.saturating_add(self.secret_len()) > MAX_LEN {
            return Err(InvalidFormat::TooLong);
        }
        Ok(self)
    }

    /// Parses a key of this format without copying or hashing it.
    ///
    /// # Errors
    ///
    /// When prefix, length, alphabet or checksum differ.
    pub fn parse<'h>(&'h self, bytes: &'h [u8]) -> Result<PresentedKey<'h>, MalformedKey> {
        let (_, secret) = self.split(bytes).ok_or(MalformedKey)?;
        if !self.is_secret(secret) {
            return Err(MalformedKey);
        }
        Ok(PresentedKey::imported(self.hashed_of(bytes, secret), self.digest.as_ref()))
    }

    /// Whether a key of this format may begin with `first` and end in `last`, as another system shows
    /// them. Either may be empty.
    ///
    /// ```
    /// use tower_api_key::key::{Alphabet, ImportedFormat};
    ///
    /// let format = ImportedFormat::new("old-", Alphabet::Hex, 32)?;
    /// assert!(format.may_show("old-", "9c0f"));
    /// assert!(!format.may_show("sk_", "9c0f"));
    /// assert!(!format.may_show("old-", "9C0F"));
    /// # Ok::<(), tower_api_key::key::InvalidFormat>(())
    /// ```
    #[must_use]
    pub fn may_show(&self, first: &str, last: &str) -> bool {
        let secret = match &self.id {
            None => Some(first.as_bytes()),
            Some(id) => id.rest_of_hint(first.as_bytes()),
        };
        let len = self.secret_len();
        let first = secret.is_some_and(|secret| self.has_at(0, secret));
        // What is longer than the secret could end in an id, which no system shows as an end.
        let last = len.checked_sub(last.len()).is_some_and(|at| self.has_at(at, last.as_bytes()));
        first && last
    }
}

impl ImportedFormat {
    /// The id and the secret.
    fn split<'k>(&self, key: &'k [u8]) -> Option<(Option<&'k [u8]>, &'k [u8])> {
        match &self.id {
            None => Some((None, key)),
            Some(id) => id.split(key).map(|(id, secret)| (Some(id), secret)),
        }
    }

    fn hashed_of<'k>(&self, key: &'k [u8], secret: &'k [u8]) -> &'k [u8] {
        match self.hashed {
            Part::Key => key,
            Part::Secret => secret,
        }
    }

    pub(super) fn id(&self) -> Option<&IdPart> {
        self.id.as_ref()
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(super) fn has_checksum(&self) -> bool {
        self.has_checksum
    }

    /// The length of a key without its id.
    pub(super) fn secret_len(&self) -> usize {
        let checksum = if self.has_checksum { CHECKSUM_LEN } else { 0 };
        self.prefix.len().saturating_add(self.body.len()).saturating_add(checksum)
    }

    /// Whether `byte` may come after the prefix.
    pub(super) fn is_symbol(&self, byte: u8) -> bool {
        self.body.is_symbol(byte) || (self.has_checksum && Alphabet::Hex.contains(byte))
    }

    /// Whether keys may have `byte`, other than as padding.
    pub(super) fn may_have(&self, byte: u8) -> bool {
        let of_id = |id: &IdPart| {
            id.separator() == byte || id.contains(byte) || id.prefix().as_bytes().contains(&byte)
        };
        let of_secret = || self.prefix.as_bytes().contains(&byte) || self.is_symbol(byte);
        is_key_symbol(byte) && (of_secret() || self.id.as_ref().is_some_and(of_id))
    }

    /// Whether `secret` is a key of this format without its id.
    pub(super) fn is_secret(&self, secret: &[u8]) -> bool {
        let Some(rest) = secret.strip_prefix(self.prefix.as_bytes()) else { return false };
        let Some((body, checksum)) = rest.split_at_checked(self.body.len()) else { return false };
        self.body.matches(body) && self.is_checksum(checksum, body)
    }

    fn is_checksum(&self, checksum: &[u8], body: &[u8]) -> bool {
        if !self.has_checksum {
            return checksum.is_empty();
        }
        checksum == crc32fast::hash(body).to_be_bytes().map(hex).as_flattened()
    }

    /// Whether a secret may have `text` from position `start` on.
    fn has_at(&self, start: usize, text: &[u8]) -> bool {
        let (prefix, body) = (self.prefix.as_bytes(), self.body.len());
        (start..).zip(text).all(|(at, &byte)| match at.checked_sub(prefix.len()) {
            None => prefix.get(at) == Some(&byte),
            Some(at) if at < body => self.body.has_at(at, byte),
            Some(_) => at < self.secret_len() && Alphabet::Hex.contains(byte),
        })
    }
}

impl Body {
    fn len(self) -> usize {
        match self {
            Self::Characters { len, padding, .. } => len.saturating_add(padding),
            Self::Uuid => UUID_LEN,
        }
    }

    fn matches(self, body: &[u8]) -> bool {
        match self {
            Self::Characters { alphabet, len, padding } => {
                let (symbols, rest) = body.split_at(len.min(body.len()));
                symbols.len() == len
                    && rest.len() == padding
                    && symbols.iter().all(|&byte| alphabet.contains(byte))
                    && rest.iter().all(|&byte| byte == b'=')
            }
            Self::Uuid => {
                body.len() == UUID_LEN && (0..).zip(body).all(|(at, &byte)| self.has_at(at, byte))
            }
        }
    }

    /// Whether the body may have `byte` at position `at`.
    fn has_at(self, at: usize, byte: u8) -> bool {
        match self {
            Self::Characters { alphabet, len, .. } if at < len => alphabet.contains(byte),
            Self::Characters { .. } => at < self.len() && byte == b'=',
            Self::Uuid => match at {
                8 | 13 | 18 | 23 => byte == b'-',
                14 => byte == b'4',
                19 => matches!(byte, b'8' | b'9' | b'a' | b'b' | b'A' | b'B'),
                _ => at < UUID_LEN && byte.is_ascii_hexdigit(),
            },
        }
    }

    fn is_symbol(self, byte: u8) -> bool {
        match self {
            Self::Characters { alphabet, padding, .. } => {
                alphabet.contains(byte) || (padding > 0 && byte == b'=')
            }
            Self::Uuid => byte.is_ascii_hexdigit() || byte == b'-',
        }
    }
}

#[cfg(test)]
mod tests;
