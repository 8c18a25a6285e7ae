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

impl AcceptedFormat {
    /// Whether a key of this format has a prefix, so that other text hardly matches by chance.
    pub(crate) fn is_distinctive(&self) -> bool {
        match &self.0 {
            Kind::Issued(_) => true,
            Kind::Imported(format) => format.has_prefix(),
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
