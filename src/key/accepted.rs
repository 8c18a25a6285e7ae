use super::{ImportedFormat, KeyFormat, MalformedKey, PresentedKey};

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
    pub fn parse<'h>(&self, bytes: &'h [u8]) -> Result<PresentedKey<'h>, MalformedKey> {
        match &self.0 {
            Kind::Issued(format) => format.parse(bytes),
            Kind::Imported(format) => format.parse(bytes),
        }
    }
}

/// The parts of a key that [legacy hashes](super::LegacyHash) concern.
#[cfg(feature = "legacy-hashes")]
pub(crate) struct LegacyParts<'k> {
    /// What finds the hash; `None` if the format has no such part.
    pub(crate) hint: Option<&'k [u8]>,
    /// What was hashed.
    pub(crate) hashed: &'k [u8],
}

impl AcceptedFormat {
    /// The parts of a well-formed `key`; `None` if no other system issued keys of this format.
    #[cfg(feature = "legacy-hashes")]
    pub(crate) fn legacy_parts<'k>(&self, key: &'k [u8]) -> Option<LegacyParts<'k>> {
        match &self.0 {
            Kind::Issued(_) => None,
            Kind::Imported(format) => Some(LegacyParts { hint: format.hint_of(key), hashed: key }),
        }
    }

    /// Whether a key of this format has a prefix, so that other text hardly matches by chance.
    pub(crate) fn is_distinctive(&self) -> bool {
        match &self.0 {
            Kind::Issued(_) => true,
            Kind::Imported(format) => !format.prefix().is_empty(),
        }
    }

    /// What keys of this format begin with; may be empty.
    pub(super) fn prefix(&self) -> &str {
        match &self.0 {
            Kind::Issued(format) => format.prefix(),
            Kind::Imported(format) => format.prefix(),
        }
    }

    /// The length of a whole key.
    pub(super) fn key_len(&self) -> usize {
        match &self.0 {
            Kind::Issued(format) => format.key_len(),
            Kind::Imported(format) => format.key_len(),
        }
    }

    /// Whether `byte` may come after the prefix.
    pub(super) fn is_symbol(&self, byte: u8) -> bool {
        match &self.0 {
            Kind::Issued(_) => byte.is_ascii_alphanumeric() || byte == b'_',
            Kind::Imported(format) => format.is_symbol(byte),
        }
    }

    pub(super) fn has_checksum(&self) -> bool {
        matches!(self.0, Kind::Issued(_))
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
