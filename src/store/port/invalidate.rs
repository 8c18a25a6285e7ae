use crate::{key::KeyHash, record::KeyRecord};

/// A cache of a store's answers that must be invalidated when keys change.
pub trait Invalidate: Send + Sync {
    /// Drops everything cached for the key with this hash, including that it is unknown.
    fn invalidate(&self, hash: &KeyHash);

    /// Drops everything cached for a key that this record shows as revoked. Revocations are
    /// permanent: an [`Authenticator`](crate::Authenticator) refuses the key even if its store is a
    /// replica that has not applied the revocation yet. Default: [`invalidate`](Self::invalidate).
    fn revoked(&self, record: &KeyRecord) {
        self.invalidate(&record.key_hash);
    }

    /// Drops everything cached for every key. Called when a plan was changed, since it affects the
    /// limits of an unknown set of keys.
    fn invalidate_all(&self);
}
