//! How keys of another system are found that have a [legacy hash](crate::key::LegacyHash).

use super::{Body, ImportedFormat, MIN_BITS};
use crate::key::InvalidFormat;

/// The parts of a key that [legacy hashes](crate::key::LegacyHash) concern.
#[cfg(feature = "legacy-hashes")]
pub(crate) struct LegacyParts<'k> {
    /// What finds the hash; `None` if the format has no such part.
    pub(crate) hint: Option<&'k [u8]>,
    /// What was hashed.
    pub(crate) hashed: &'k [u8],
}

impl ImportedFormat {
    /// The first `characters` of the secret are the [hint](crate::manage::KeyImport::legacy_hint) of its
    /// legacy hash: the other system stored them beside it, so they are not secret. Default: the
    /// [id](Self::with_id) is the hint, if there is one.
    ///
    /// # Errors
    ///
    /// When the rest of the body holds fewer than 128 bits. A UUID has none to spare.
    pub fn hint(self, characters: usize) -> Result<Self, InvalidFormat> {
        let of_body = characters.saturating_sub(self.prefix.len());
        let is_strong = match self.body {
            Body::Characters { alphabet, len, .. } => {
                alphabet.bits(len.saturating_sub(of_body)) >= MIN_BITS
            }
            Body::Uuid => of_body == 0,
        };
        if !is_strong {
            return Err(InvalidFormat::TooWeak);
        }
        Ok(Self { hint_len: Some(characters), ..self })
    }

    /// The parts of a well-formed `key`.
    #[cfg(feature = "legacy-hashes")]
    pub(in crate::key) fn legacy_parts<'k>(&self, key: &'k [u8]) -> Option<LegacyParts<'k>> {
        let (id, secret) = self.split(key)?;
        let hint = match self.hint_len {
            Some(characters) => Some(secret.get(..characters)?),
            None => id,
        };
        Some(LegacyParts { hint, hashed: self.hashed_of(key, secret) })
    }
}
