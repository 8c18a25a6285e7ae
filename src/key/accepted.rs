#[cfg(feature = "legacy-hashes")]
use super::imported_format::legacy::LegacyParts;
use super::{
    Digest, IdPart, ImportedFormat, KeyFormat, MalformedKey, PresentedKey,
    format::is_word_character, is_bearer_symbol,
};

/// An accepted key format: keys issued here, or imported ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedFormat(Kind);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Issued(KeyFormat),
    Imported(ImportedFormat),
}

impl AcceptedFormat {
    /// Parses a key of this format without copying or hashing it.
    ///
    /// # Errors
    ///
    /// When the bytes do not match this format.
    pub fn parse<'h>(&'h self, bytes: &'h [u8]) -> Result<PresentedKey<'h>, MalformedKey> {
        match &self.0 {
            Kind::Issued(format) => format.parse(bytes),
            Kind::Imported(format) => format.parse(bytes),
        }
    }

    /// How keys of this format are hashed, as in the system that they come from.
    #[must_use]
    pub fn digest(&self) -> Digest {
        match &self.0 {
            Kind::Issued(_) => Digest::sha256(),
            Kind::Imported(format) => format.digest(),
        }
    }

    /// Whether a key of this format may begin with `first` and end in `last`, as lists of keys show
    /// them. Either may be empty.
    #[must_use]
    pub fn may_show(&self, first: &str, last: &str) -> bool {
        match &self.0 {
            Kind::Issued(format) => {
                let prefix = format.prefix();
                let has_prefix = first.starts_with(prefix) || prefix.starts_with(first);
                let rest = first.strip_prefix(prefix).unwrap_or_default();
                has_prefix && [rest, last].iter().all(|text| text.bytes().all(is_word_character))
            }
            Kind::Imported(format) => format.may_show(first, last),
        }
    }
}

impl AcceptedFormat {
    /// The parts of a well-formed `key`; `None` if no other system issued keys of this format.
    #[cfg(feature = "legacy-hashes")]
    pub(crate) fn legacy_parts<'k>(&self, key: &'k [u8]) -> Option<LegacyParts<'k>> {
        match &self.0 {
            Kind::Issued(_) => None,
            Kind::Imported(format) => format.legacy_parts(key),
        }
    }

    /// Whether a key of this format has a prefix or a checksum, so that other text hardly matches
    /// by chance.
    pub(crate) fn is_distinctive(&self) -> bool {
        match &self.0 {
            Kind::Issued(_) => true,
            Kind::Imported(format) => {
                let first = format.id().map_or_else(|| format.prefix(), IdPart::prefix);
                !first.is_empty() || format.has_checksum()
            }
        }
    }

    /// The characters of keys of this format that no bearer token has.
    pub(crate) fn symbols_beyond_bearer(&self) -> impl Iterator<Item = u8> + '_ {
        (0..=u8::MAX).filter(|&byte| match &self.0 {
            Kind::Issued(_) => false,
            Kind::Imported(format) => !is_bearer_symbol(byte) && format.may_have(byte),
        })
    }

    pub(super) fn id(&self) -> Option<&IdPart> {
        match &self.0 {
            Kind::Issued(_) => None,
            Kind::Imported(format) => format.id(),
        }
    }

    /// What secrets of this format begin with; may be empty.
    pub(super) fn prefix(&self) -> &str {
        match &self.0 {
            Kind::Issued(format) => format.prefix(),
            Kind::Imported(format) => format.prefix(),
        }
    }

    /// The length of a key without its id.
    pub(super) fn secret_len(&self) -> usize {
        match &self.0 {
            Kind::Issued(format) => format.key_len(),
            Kind::Imported(format) => format.secret_len(),
        }
    }

    /// Whether `secret` is a key of this format without its id.
    pub(super) fn is_secret(&self, secret: &[u8]) -> bool {
        match &self.0 {
            Kind::Issued(format) => format.parse(secret).is_ok(),
            Kind::Imported(format) => format.is_secret(secret),
        }
    }

    /// Whether `byte` may come after the prefix.
    pub(super) fn is_symbol(&self, byte: u8) -> bool {
        match &self.0 {
            Kind::Issued(_) => is_word_character(byte),
            Kind::Imported(format) => format.is_symbol(byte),
        }
    }

    pub(super) fn has_checksum(&self) -> bool {
        match &self.0 {
            Kind::Issued(_) => true,
            Kind::Imported(format) => format.has_checksum(),
        }
    }
}

impl From<KeyFormat> for AcceptedFormat {
    fn from(format: KeyFormat) -> Self {
        Self(Kind::Issued(format))
    }
}

impl From<ImportedFormat> for AcceptedFormat {
    fn from(format: ImportedFormat) -> Self {
        Self(Kind::Imported(format))
    }
}
