use super::{ImportedFormat, KeyFormat, MalformedKey, PresentedKey};

/// A format whose keys are let in: issued here, or imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedFormat(Kind);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Issued(KeyFormat),
    Imported(ImportedFormat),
}

impl AcceptedFormat {
    /// Recognises a key of this format, without copying or hashing it.
    ///
    /// # Errors
    ///
    /// When the bytes are not of this format.
    pub fn parse<'h>(&self, bytes: &'h [u8]) -> Result<PresentedKey<'h>, MalformedKey> {
        match &self.0 {
            Kind::Issued(format) => format.parse(bytes),
            Kind::Imported(format) => format.parse(bytes),
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
