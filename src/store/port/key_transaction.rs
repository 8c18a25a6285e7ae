use std::{future::Future, time::SystemTime};

#[cfg(doc)]
use super::ManagePlans;
use super::legacy_key::LegacyKey;
use crate::{
    key::KeyHash,
    rate_limit::RateLimits,
    record::{AuditEntry, KeyId, KeyRecord},
    store::{StoreError, StoreErrorKind},
};

/// Changes that are applied together or not at all.
///
/// A caller that changes keys through it also has to [write](Self::write_audit) the audit events:
/// the triggers that audit changes made in SQL are silent in its transactions.
///
/// Dropping it before [`commit`](Self::commit) rolls it back. Each statement sees what was
/// committed before it, whatever the database's default isolation level.
pub trait KeyTransaction: Send + 'static {
    /// Locks the keys in `ids` that exist and returns their records, ordered by id. They cannot be
    /// changed elsewhere until this transaction ends. Every transaction that locks several keys
    /// does so in this order.
    ///
    /// # Errors
    ///
    /// When the store cannot.
    fn lock(
        &mut self,
        ids: &[KeyId],
    ) -> impl Future<Output = Result<Vec<KeyRecord>, StoreError>> + Send;

    /// Locks at most `limit` of `keys`, except those in `except`, as [`lock`](Self::lock) does.
    ///
    /// # Errors
    ///
    /// When the store cannot.
    fn lock_some(
        &mut self,
        keys: &KeyFilter,
        except: &[KeyId],
        limit: usize,
    ) -> impl Future<Output = Result<Vec<KeyRecord>, StoreError>> + Send;

    /// The ids of the keys that [`lock_some`](Self::lock_some) would lock, including those whose
    /// records cannot be parsed.
    ///
    /// # Errors
    ///
    /// When the store cannot.
    fn select_some(
        &mut self,
        keys: &KeyFilter,
        except: &[KeyId],
        limit: usize,
    ) -> impl Future<Output = Result<Vec<KeyId>, StoreError>> + Send;

    /// Stores new keys and returns the ids of those inserted. A key whose id or hash already exists
    /// is skipped, and the stored key is left unchanged.
    ///
    /// # Errors
    ///
    /// [`Refused`](StoreErrorKind::Refused) when a constraint or trigger of the database refuses
    /// one of them, or when the store cannot.
    fn insert(
        &mut self,
        records: &[KeyRecord],
    ) -> impl Future<Output = Result<Vec<KeyId>, StoreError>> + Send;

    /// Replaces the mutable fields of a key: name, scopes, rate limits, plan, metadata,
    /// `is_active`, `not_before`, `expires_at` and `rotated_at`. Returns the updated record, whose
    /// [`version`](KeyRecord::version) is one higher.
    ///
    /// # Errors
    ///
    /// [`Conflict`](StoreErrorKind::Conflict) when the key is gone or its version differs from that
    /// of `record`, because it was changed concurrently.
    fn update(
        &mut self,
        record: &KeyRecord,
    ) -> impl Future<Output = Result<KeyRecord, StoreError>> + Send;

    /// Revokes keys permanently, at the current time of the store's clock. Returns the records of
    /// those that were not revoked before, ordered by id.
    ///
    /// # Errors
    ///
    /// When the store cannot.
    fn revoke(
        &mut self,
        ids: &[KeyId],
        reason: Option<&str>,
    ) -> impl Future<Output = Result<Vec<KeyRecord>, StoreError>> + Send;

    /// Counts a consumer's keys, to enforce limits on their number. Until this transaction ends,
    /// other transactions wait for their count of the same consumer, so two of them cannot both add
    /// the last permitted key. It sees the changes of this transaction.
    ///
    /// # Errors
    ///
    /// When the store cannot.
    fn count_keys(
        &mut self,
        query: &KeyCountQuery,
    ) -> impl Future<Output = Result<KeyCounts, StoreError>> + Send;

    /// When the `nth` newest replacement key in the rotation chain of `root` was issued, counted
    /// from 1; `None` if there are fewer.
    ///
    /// # Errors
    ///
    /// When the store cannot.
    fn nth_rotation(
        &mut self,
        root: KeyId,
        nth: usize,
    ) -> impl Future<Output = Result<Option<SystemTime>, StoreError>> + Send;

    /// Deletes keys and their recorded use. The audit is kept.
    ///
    /// # Errors
    ///
    /// [`Refused`](StoreErrorKind::Refused) when a constraint or trigger of the database refuses
    /// one of them, such as a foreign key of the application, or when the store cannot.
    fn delete(&mut self, ids: &[KeyId]) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Appends audit entries, in this order.
    ///
    /// # Errors
    ///
    /// When the store cannot; the transaction must then not be committed.
    fn write_audit(
        &mut self,
        entries: &[AuditEntry],
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Sets a plan's limits. Returns its previous limits as JSON; `None` if it did not exist.
    ///
    /// # Errors
    ///
    /// As [`ManagePlans::set_plan`].
    fn set_plan(
        &mut self,
        name: &str,
        limits: &RateLimits,
    ) -> impl Future<Output = Result<Option<String>, StoreError>> + Send;

    /// Removes a plan. Returns its limits as JSON; `None` if it did not exist.
    ///
    /// # Errors
    ///
    /// When the store cannot.
    fn remove_plan(
        &mut self,
        name: &str,
    ) -> impl Future<Output = Result<Option<String>, StoreError>> + Send;

    /// Records an idempotency key, or returns the earlier record of the same request. If another
    /// transaction has recorded it and is still open, waits for that transaction to end.
    ///
    /// # Errors
    ///
    /// When the store cannot.
    fn claim_idempotency_key(
        &mut self,
        claim: &IdempotencyRecord,
    ) -> impl Future<Output = Result<Option<IdempotencyRecord>, StoreError>> + Send;

    /// Deletes at most `limit` obsolete rows: idempotency records made before `before`, and
    /// recorded uses of deleted keys. Returns the number of rows deleted.
    ///
    /// # Errors
    ///
    /// When the store cannot.
    fn delete_expired(
        &mut self,
        before: SystemTime,
        limit: usize,
    ) -> impl Future<Output = Result<usize, StoreError>> + Send;

    /// Deletes at most `limit` rows of the use of keys: hourly counts of hours before
    /// `hours_before`, and the last batches of [writers](super::CountedUses::writer) that wrote
    /// none since `writers_before`. Daily counts are kept. Returns the number of rows deleted.
    /// Default: the store counts no uses.
    ///
    /// # Errors
    ///
    /// When the store cannot.
    fn delete_counted_uses(
        &mut self,
        hours_before: SystemTime,
        writers_before: SystemTime,
        limit: usize,
    ) -> impl Future<Output = Result<usize, StoreError>> + Send {
        let _ = (hours_before, writers_before, limit);
        async { Ok(0) }
    }

    /// Which of these [digests](crate::key::LegacyHash::digest) belong to legacy hashes that were
    /// inserted before, whether or not their keys have moved. Default: the store cannot.
    ///
    /// # Errors
    ///
    /// When the store cannot.
    fn known_legacy_hashes(
        &mut self,
        digests: &[[u8; 32]],
    ) -> impl Future<Output = Result<Vec<[u8; 32]>, StoreError>> + Send {
        let _ = digests;
        async { Err(no_legacy_hashes()) }
    }

    /// Keeps the legacy hashes of keys that this transaction inserted. Returns how many keys that
    /// have not moved have one of these hints, or none if one of `keys` has none: the most that any
    /// request has to be compared with. Until this transaction ends, other transactions wait for
    /// their count. Default: the store cannot.
    ///
    /// # Errors
    ///
    /// When the store cannot.
    fn insert_legacy_hashes(
        &mut self,
        keys: &[LegacyKey],
    ) -> impl Future<Output = Result<usize, StoreError>> + Send {
        let _ = keys;
        async { Err(no_legacy_hashes()) }
    }

    /// Moves a key that was [locked](Self::lock): replaces its legacy hash, by its digest, by `hash`.
    /// Returns the changed record, whose [`version`](KeyRecord::version) is one higher; `None` if the
    /// key is gone or has moved. Default: the store cannot.
    ///
    /// # Errors
    ///
    /// When the store cannot.
    fn replace_legacy_hash(
        &mut self,
        id: KeyId,
        digest: &[u8; 32],
        hash: &KeyHash,
    ) -> impl Future<Output = Result<Option<KeyRecord>, StoreError>> + Send {
        let _ = (id, digest, hash);
        async { Err(no_legacy_hashes()) }
    }

    /// Commits the transaction.
    ///
    /// # Errors
    ///
    /// When the store cannot. If the connection was lost, the transaction may have been committed.
    fn commit(self) -> impl Future<Output = Result<(), StoreError>> + Send;
}

fn no_legacy_hashes() -> StoreError {
    StoreError::new(StoreErrorKind::Other).because("this store does not keep legacy hashes")
}

/// Which keys to [count](KeyTransaction::count_keys).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyCountQuery {
    /// Keys of this consumer.
    pub consumer_id: String,
    /// Keys whose id is at least this count as recent.
    pub recent_from: KeyId,
    /// Counting stops here.
    pub limit: usize,
}

impl KeyCountQuery {
    /// Counts keys of `consumer_id` up to `limit`; keys from the id `recent_from` on are recent.
    #[must_use]
    pub const fn new(consumer_id: String, recent_from: KeyId, limit: usize) -> Self {
        Self { consumer_id, recent_from, limit }
    }
}

/// How many keys a consumer has, up to the [limit](KeyCountQuery::limit).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyCounts {
    /// Keys that are neither revoked nor expired. Inactive keys count.
    pub live: usize,
    /// Keys made recently, including those that have ended.
    pub recent: usize,
}

impl KeyCounts {
    /// These counts.
    #[must_use]
    pub const fn new(live: usize, recent: usize) -> Self {
        Self { live, recent }
    }
}

/// A set of keys to change together.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyFilter {
    /// The keys of a consumer that are not revoked.
    Consumer(String),
    /// The keys with exactly this prefix that are not revoked.
    Prefix(String),
    /// The keys of a consumer with exactly this prefix that are not revoked.
    ConsumerPrefix {
        /// The consumer.
        consumer_id: String,
        /// The prefix.
        key_prefix: String,
    },
    /// The keys that were revoked or expired before this. Keys locked by another transaction are
    /// skipped.
    EndedBefore(SystemTime),
}

/// The idempotency record of a request, which is executed once no matter how often it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct IdempotencyRecord {
    /// Identifies the request: a digest of the caller and its idempotency key.
    pub request: [u8; 32],
    /// A digest of the request's content, to detect a different request with the same idempotency
    /// key.
    pub fingerprint: [u8; 32],
    /// The key that the request creates.
    pub key_id: KeyId,
}

impl IdempotencyRecord {
    /// The request `request` creates `key_id`.
    #[must_use]
    pub const fn new(request: [u8; 32], fingerprint: [u8; 32], key_id: KeyId) -> Self {
        Self { request, fingerprint, key_id }
    }
}
