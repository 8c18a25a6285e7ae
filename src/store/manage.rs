use std::{future::Future, time::SystemTime};

#[cfg(doc)]
use super::StoreErrorKind;
use super::{InvalidRow, KeyStore, ManagePlans, StoreError};
use crate::{
    rate_limit::RateLimits,
    record::{AuditEntry, KeyEvent, KeyId, KeyRecord, KeyStatus, Scope},
};

/// Lists keys, and changes them in transactions.
///
/// Not used on the request path. [`KeyIssuer`](crate::manage::KeyIssuer) builds on it and
/// implements the rules; a store only has to keep the guarantees documented here.
pub trait ManageKeys: KeyStore + ManagePlans {
    /// The type of transaction that [`begin`](Self::begin) starts.
    type Transaction: KeyTransaction;

    /// Begins a transaction.
    ///
    /// # Errors
    ///
    /// When the store cannot.
    fn begin(&self) -> impl Future<Output = Result<Self::Transaction, StoreError>> + Send;

    /// The record of the key with this id.
    ///
    /// # Errors
    ///
    /// When the store cannot answer.
    fn get(&self, id: KeyId) -> impl Future<Output = Result<Option<KeyRecord>, StoreError>> + Send;

    /// A page of keys, newest first.
    ///
    /// It ends before the key that would make it larger than 1 MiB, which bounds memory regardless
    /// of what is stored with keys. Rows that cannot be parsed are in [`KeyPage::invalid`].
    ///
    /// # Errors
    ///
    /// When the store cannot answer.
    fn list(&self, query: &KeyQuery) -> impl Future<Output = Result<KeyPage, StoreError>> + Send;

    /// A page of the audit, newest first. Bounded like a page of [keys](Self::list).
    ///
    /// # Errors
    ///
    /// When the store cannot answer.
    fn events(
        &self,
        query: &EventQuery,
    ) -> impl Future<Output = Result<EventPage, StoreError>> + Send;

    /// When the key was last used, as far as recorded.
    ///
    /// # Errors
    ///
    /// When the store cannot answer.
    fn last_used_at(
        &self,
        id: KeyId,
    ) -> impl Future<Output = Result<Option<SystemTime>, StoreError>> + Send;
}

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

    /// Commits the transaction.
    ///
    /// # Errors
    ///
    /// When the store cannot. If the connection was lost, the transaction may have been committed.
    fn commit(self) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// Filters for keys, and the page to return.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[must_use]
pub struct KeyQuery {
    /// Keys of this consumer.
    pub consumer_id: Option<String>,
    /// Keys in this state at the time of the query, by the store's clock.
    pub status: Option<KeyStatus>,
    /// Keys with this scope.
    pub scope: Option<Scope>,
    /// Keys with exactly this prefix.
    pub key_prefix: Option<String>,
    /// Keys issued before this and not used since.
    pub unused_since: Option<SystemTime>,
    /// Keys that expire or expired before this.
    pub expires_before: Option<SystemTime>,
    /// Cursor: the [`next`](KeyPage::next) of the previous page.
    pub after: Option<KeyId>,
    /// Page size. Default: 50.
    pub limit: usize,
}

impl KeyQuery {
    /// The newest keys, without filters.
    pub const fn new() -> Self {
        Self {
            consumer_id: None,
            status: None,
            scope: None,
            key_prefix: None,
            unused_since: None,
            expires_before: None,
            after: None,
            limit: DEFAULT_LIMIT,
        }
    }

    /// Sets [`consumer_id`](Self::consumer_id).
    pub fn consumer_id(self, id: impl Into<String>) -> Self {
        Self { consumer_id: Some(id.into()), ..self }
    }

    /// Sets [`status`](Self::status).
    pub fn status(self, status: KeyStatus) -> Self {
        Self { status: Some(status), ..self }
    }

    /// Sets [`scope`](Self::scope).
    pub fn scope(self, scope: Scope) -> Self {
        Self { scope: Some(scope), ..self }
    }

    /// Sets [`key_prefix`](Self::key_prefix).
    pub fn key_prefix(self, prefix: impl Into<String>) -> Self {
        Self { key_prefix: Some(prefix.into()), ..self }
    }

    /// Sets [`unused_since`](Self::unused_since).
    pub fn unused_since(self, since: SystemTime) -> Self {
        Self { unused_since: Some(since), ..self }
    }

    /// Sets [`expires_before`](Self::expires_before).
    pub fn expires_before(self, end: SystemTime) -> Self {
        Self { expires_before: Some(end), ..self }
    }

    /// Sets [`after`](Self::after).
    pub fn after(self, id: KeyId) -> Self {
        Self { after: Some(id), ..self }
    }

    /// Sets [`limit`](Self::limit).
    pub fn limit(self, limit: usize) -> Self {
        Self { limit, ..self }
    }
}

impl Default for KeyQuery {
    fn default() -> Self {
        Self::new()
    }
}

const DEFAULT_LIMIT: usize = 50;

/// A page of keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyPage {
    /// Newest first. There may be fewer than requested, even none, although more follow: a store
    /// examines a limited number of keys per page, and a page has at most 1 MiB.
    pub keys: Vec<ListedKey>,
    /// Rows of this page that violate the [bounds](crate::manual::bounds) of a key, for instance
    /// after an edit by hand; newest first. Such a key is refused.
    pub invalid: Vec<InvalidRow>,
    /// Cursor for the next page; `None` on the last.
    pub next: Option<KeyId>,
}

impl KeyPage {
    /// A page.
    #[must_use]
    pub const fn new(keys: Vec<ListedKey>, next: Option<KeyId>) -> Self {
        Self { keys, invalid: Vec::new(), next }
    }
}

/// A key and its last use.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListedKey {
    /// The key's record.
    pub record: KeyRecord,
    /// When it was last used, as far as recorded.
    pub last_used_at: Option<SystemTime>,
}

impl ListedKey {
    /// A key and its last use.
    #[must_use]
    pub const fn new(record: KeyRecord, last_used_at: Option<SystemTime>) -> Self {
        Self { record, last_used_at }
    }
}

/// Filters for audit events, and the page to return.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[must_use]
pub struct EventQuery {
    /// Events of this key.
    pub key_id: Option<KeyId>,
    /// Events of this consumer's keys.
    pub consumer_id: Option<String>,
    /// Cursor: the [`next`](EventPage::next) of the previous page.
    pub after: Option<u64>,
    /// Page size. Default: 50.
    pub limit: usize,
}

impl EventQuery {
    /// The newest events, without filters.
    pub const fn new() -> Self {
        Self { key_id: None, consumer_id: None, after: None, limit: DEFAULT_LIMIT }
    }

    /// Sets [`key_id`](Self::key_id).
    pub fn key_id(self, id: KeyId) -> Self {
        Self { key_id: Some(id), ..self }
    }

    /// Sets [`consumer_id`](Self::consumer_id).
    pub fn consumer_id(self, id: impl Into<String>) -> Self {
        Self { consumer_id: Some(id.into()), ..self }
    }

    /// Sets [`after`](Self::after).
    pub fn after(self, id: u64) -> Self {
        Self { after: Some(id), ..self }
    }

    /// Sets [`limit`](Self::limit).
    pub fn limit(self, limit: usize) -> Self {
        Self { limit, ..self }
    }
}

impl Default for EventQuery {
    fn default() -> Self {
        Self::new()
    }
}

/// A page of audit events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EventPage {
    /// Newest first. There may be fewer than requested although more follow: a page has at most 1
    /// MiB.
    pub events: Vec<KeyEvent>,
    /// Rows of this page that this version cannot parse, such as an action added by a newer
    /// version; newest first.
    pub invalid: Vec<InvalidRow>,
    /// Cursor for the next page; `None` on the last.
    pub next: Option<u64>,
}

impl EventPage {
    /// A page.
    #[must_use]
    pub const fn new(events: Vec<KeyEvent>, next: Option<u64>) -> Self {
        Self { events, invalid: Vec::new(), next }
    }
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
