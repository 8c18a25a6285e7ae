use crate::{
    auth::lookup::BoxFuture,
    key::KeyHash,
    record::{AuditEntry, KeyAction, KeyRecord},
    store::{
        StoreError,
        port::{KeyTransaction as _, LegacyHashes, LegacyKey, MAX_KEYS_PER_HINT},
    },
};

/// [`LegacyHashes`] as a trait object.
pub(super) trait DynHashes: Send + Sync {
    /// The keys that a key with this hint has to be compared with.
    fn candidates<'a>(
        &'a self,
        hint: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<LegacyKey>, StoreError>>;

    fn count(&self) -> BoxFuture<'_, Result<u64, StoreError>>;

    /// Replaces the legacy hash of `key` by `hash`, in one transaction with the audit.
    fn replace<'a>(
        &'a self,
        key: &'a LegacyKey,
        hash: &'a KeyHash,
    ) -> BoxFuture<'a, Result<Replaced, StoreError>>;
}

/// What became of a key.
pub(super) enum Replaced {
    Moved(KeyRecord),
    /// Another node moved it first.
    Already(KeyRecord),
    /// It was deleted.
    Gone,
}

/// What the audit names as the actor.
const ACTOR: &str = "system";

impl<S: LegacyHashes> DynHashes for S {
    fn candidates<'a>(
        &'a self,
        hint: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<LegacyKey>, StoreError>> {
        Box::pin(self.legacy_keys(hint, MAX_KEYS_PER_HINT))
    }

    fn count(&self) -> BoxFuture<'_, Result<u64, StoreError>> {
        Box::pin(self.count_legacy_keys())
    }

    fn replace<'a>(
        &'a self,
        key: &'a LegacyKey,
        hash: &'a KeyHash,
    ) -> BoxFuture<'a, Result<Replaced, StoreError>> {
        Box::pin(async move {
            let mut transaction = self.begin().await?;
            // Before the row of its legacy hash, as a deletion locks them.
            transaction.lock(&[key.id]).await?;
            let digest = key.hash.digest();
            let moved = transaction.replace_legacy_hash(key.id, &digest, hash).await?;
            let Some(record) = moved else {
                drop(transaction);
                let now = self.get(key.id).await?.filter(|record| record.key_hash == *hash);
                return Ok(now.map_or(Replaced::Gone, Replaced::Already));
            };
            transaction.write_audit(&[entry(key, &record)]).await?;
            transaction.commit().await?;
            Ok(Replaced::Moved(record))
        })
    }
}

fn entry(key: &LegacyKey, record: &KeyRecord) -> AuditEntry {
    let from = key.hash.algorithm();
    AuditEntry {
        key_id: Some(key.id),
        consumer_id: Some(record.consumer_id.clone()),
        changes: Some(format!(r#"{{"key_hash":{{"from":"{from}","to":"sha256"}}}}"#)),
        ..AuditEntry::new(KeyAction::Rehashed, ACTOR)
    }
}
