use std::future::Future;

#[cfg(doc)]
use super::KeyTransaction;
use super::{legacy_key::LegacyKey, manage_keys::ManageKeys};
#[cfg(doc)]
use crate::key::LegacyHash;
use crate::store::StoreError;

/// How many keys that have not moved may have the same hint, or none. A request may have to be
/// compared with all of them.
pub const MAX_KEYS_PER_HINT: usize = 64;

/// Keeps the [legacy hashes](LegacyHash) of imported keys until the keys are first used.
///
/// A key has *moved* when it has a [`KeyHash`](crate::key::KeyHash) like any other. The transactions
/// of the store have to implement [`known_legacy_hashes`](KeyTransaction::known_legacy_hashes),
/// [`insert_legacy_hashes`](KeyTransaction::insert_legacy_hashes) and
/// [`replace_legacy_hash`](KeyTransaction::replace_legacy_hash). What is kept of a key ends with it.
pub trait LegacyHashes: ManageKeys {
    /// At most `limit` of the keys that have not moved and have exactly this hint, or none: those
    /// used last come first. In any state: whether a key is revoked or has expired is decided after
    /// it has been verified.
    ///
    /// # Errors
    ///
    /// When the store cannot answer.
    fn legacy_keys(
        &self,
        hint: Option<&str>,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<LegacyKey>, StoreError>> + Send;

    /// How many keys have not moved.
    ///
    /// # Errors
    ///
    /// When the store cannot answer.
    fn count_legacy_keys(&self) -> impl Future<Output = Result<u64, StoreError>> + Send;
}
