use crate::{key::LegacyHash, record::KeyId};

/// A key that has not [moved](super::LegacyHashes).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LegacyKey {
    /// The key.
    pub id: KeyId,
    /// The part of the key by which it is found; `None` if there is none.
    pub hint: Option<String>,
    /// Its hash.
    pub hash: LegacyHash,
}

impl LegacyKey {
    /// The key `id` with this hint and hash.
    #[must_use]
    pub const fn new(id: KeyId, hint: Option<String>, hash: LegacyHash) -> Self {
        Self { id, hint, hash }
    }
}
