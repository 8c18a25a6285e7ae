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
/// None of this is on a request's path. [`KeyIssuer`](crate::manage::KeyIssuer) is built on it, and
/// has the rules; a store only keeps its word.
pub trait ManageKeys: KeyStore + ManagePlans {
    /// What [`begin`](Self::begin) begins.
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

    /// A page of keys, the newest first.
    ///
    /// It ends where the next key would make it longer than 1 MiB, so that no page takes more memory
    /// than that, whatever is stored with keys. What cannot be read is in [`KeyPage::invalid`].
    ///
    /// # Errors
    ///
    /// When the store cannot answer.
    fn list(&self, query: &KeyQuery) -> impl Future<Output = Result<KeyPage, StoreError>> + Send;

    /// A page of the audit, the newest first. Bounded as that of [keys](Self::list).
    ///
    /// # Errors
    ///
    /// When the store cannot answer.
    fn events(
        &self,
        query: &EventQuery,
    ) -> impl Future<Output = Result<EventPage, StoreError>> + Send;

    /// When the key was last used, as far as it has been recorded.
    ///
    /// # Errors
    ///
    /// When the store cannot answer.
    fn last_used_at(
        &self,
        id: KeyId,
    ) -> impl Future<Output = Result<Option<SystemTime>, StoreError>> + Send;
}

/// Changes that are made together or not at all.
///
/// A caller that changes keys through it also [writes](Self::record) the lines of the audit: the
/// triggers that write lines for changes in SQL are silent in its transactions.
///
/// Dropped before [`commit`](Self::commit), it leaves nothing behind. It sees what others committed
/// before it asked, whatever isolation is the database's default.
pub trait KeyTransaction: Send + 'static {
    /// The records of those of `ids` that exist, ordered by id. Nobody changes them before this
    /// transaction ends, and all who lock several do so in that order.
    ///
    /// # Errors
    ///
    /// When the store cannot.
    fn lock(
        &mut self,
        ids: &[KeyId],
    ) -> impl Future<Output = Result<Vec<KeyRecord>, StoreError>> + Send;

    /// At most `limit` of `keys` other than `except`, locked as by [`lock`](Self::lock).
    ///
    /// # Errors
    ///
    /// When the store cannot.
    fn lock_some(
        &mut self,
        keys: &Selection,
        except: &[KeyId],
        limit: usize,
    ) -> impl Future<Output = Result<Vec<KeyRecord>, StoreError>> + Send;

    /// The ids of the keys that [`lock_some`](Self::lock_some) would lock, those included whose
    /// records cannot be read.
    ///
    /// # Errors
    ///
    /// When the store cannot.
    fn select_some(
        &mut self,
        keys: &Selection,
        except: &[KeyId],
        limit: usize,
    ) -> impl Future<Output = Result<Vec<KeyId>, StoreError>> + Send;

    /// Stores new keys, and says which. One whose id or hash is known already is left out, and what
    /// is stored of that stays as it is.
    ///
    /// # Errors
    ///
    /// [`Refused`](StoreErrorKind::Refused) when a rule of the database refuses one of them, or when
    /// the store cannot.
    fn insert(
        &mut self,
        records: &[KeyRecord],
    ) -> impl Future<Output = Result<Vec<KeyId>, StoreError>> + Send;

    /// Replaces what may change of a key: name, scopes, rate limits, plan, metadata, `is_active`,
    /// `not_before`, `expires_at` and `rotated_at`. Returns the record as it is now, one
    /// [`version`](KeyRecord::version) on.
    ///
    /// # Errors
    ///
    /// [`Conflict`](StoreErrorKind::Conflict) when the key is gone or its version is no longer
    /// that of `record`: somebody else changed it.
    fn update(
        &mut self,
        record: &KeyRecord,
    ) -> impl Future<Output = Result<KeyRecord, StoreError>> + Send;

    /// Revokes keys for good, as of the store's clock, and returns the records of those that were
    /// not revoked before, ordered by id.
    ///
    /// # Errors
    ///
    /// When the store cannot.
    fn revoke(
        &mut self,
        ids: &[KeyId],
        reason: Option<&str>,
    ) -> impl Future<Output = Result<Vec<KeyRecord>, StoreError>> + Send;

    /// Counts keys of a consumer, for bounds on how many it may have. Until this transaction ends,
    /// no other one gets an answer to this for the same consumer, so two of them cannot both add the
    /// last key there is room for. It sees what this transaction has changed.
    ///
    /// # Errors
    ///
    /// When the store cannot.
    fn count_keys(
        &mut self,
        query: &KeyCountQuery,
    ) -> impl Future<Output = Result<KeyCounts, StoreError>> + Send;

    /// When the `nth` newest of the keys was issued that replaced others in the chain of rotations
    /// of `root`, counted from 1; `None` where there are fewer.
    ///
    /// # Errors
    ///
    /// When the store cannot.
    fn nth_rotation(
        &mut self,
        root: KeyId,
        nth: usize,
    ) -> impl Future<Output = Result<Option<SystemTime>, StoreError>> + Send;

    /// Deletes keys, and what was recorded of their use. The audit stays.
    ///
    /// # Errors
    ///
    /// [`Refused`](StoreErrorKind::Refused) when a rule of the database refuses one of them, such as a
    /// foreign key of the application, or when the store cannot.
    fn delete(&mut self, ids: &[KeyId]) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Writes entries of the audit, in this order.
    ///
    /// # Errors
    ///
    /// When the store cannot; nothing else of this transaction may happen then.
    fn record(
        &mut self,
        entries: &[AuditEntry],
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Gives a plan these limits. Returns the limits that it had, as JSON; `None` if it was not
    /// there.
    ///
    /// # Errors
    ///
    /// As [`ManagePlans::set_plan`].
    fn set_plan(
        &mut self,
        name: &str,
        limits: &RateLimits,
    ) -> impl Future<Output = Result<Option<String>, StoreError>> + Send;

    /// Removes a plan. Returns the limits that it had, as JSON; `None` if it was not there.
    ///
    /// # Errors
    ///
    /// When the store cannot.
    fn remove_plan(
        &mut self,
        name: &str,
    ) -> impl Future<Output = Result<Option<String>, StoreError>> + Send;

    /// Notes that a request is being carried out, or returns what was noted when it came first.
    /// Whoever asks for a request that another transaction has noted waits for that to end.
    ///
    /// # Errors
    ///
    /// When the store cannot.
    fn claim(
        &mut self,
        claim: &Claim,
    ) -> impl Future<Output = Result<Option<Claim>, StoreError>> + Send;

    /// Deletes at most `limit` of what is no longer needed: claims made before `before`, and uses
    /// of keys that are gone. Returns how much it was.
    ///
    /// # Errors
    ///
    /// When the store cannot.
    fn sweep(
        &mut self,
        before: SystemTime,
        limit: usize,
    ) -> impl Future<Output = Result<usize, StoreError>> + Send;

    /// Makes it all so.
    ///
    /// # Errors
    ///
    /// When the store cannot. Where the connection was lost on the way it may have happened.
    fn commit(self) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// Which keys, and which page of them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[must_use]
pub struct KeyQuery {
    /// Of this consumer.
    pub consumer_id: Option<String>,
    /// In this state at the time of the query, by the store's clock.
    pub status: Option<KeyStatus>,
    /// With this scope.
    pub scope: Option<Scope>,
    /// With exactly this prefix.
    pub key_prefix: Option<String>,
    /// Issued and, if ever, last used before this.
    pub unused_since: Option<SystemTime>,
    /// Expiring before this, or expired.
    pub expires_before: Option<SystemTime>,
    /// After this key of an earlier page: what that called [`next`](KeyPage::next).
    pub after: Option<KeyId>,
    /// At most this many. Default: 50.
    pub limit: usize,
}

impl KeyQuery {
    /// The newest of all keys.
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

/// Some of the keys that were asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyPage {
    /// The newest first. They may be fewer than were asked for, even none, though there are more:
    /// a store looks at so many keys for each page and no further, and a page has 1 MiB at most.
    pub keys: Vec<ListedKey>,
    /// Rows among them that are beyond the [bounds](crate::manual::bounds) of a key, as a change by
    /// hand may make them, the newest first. Such a key is not let in.
    pub invalid: Vec<InvalidRow>,
    /// Where the next page begins; `None` on the last.
    pub next: Option<KeyId>,
}

impl KeyPage {
    /// A page.
    #[must_use]
    pub const fn new(keys: Vec<ListedKey>, next: Option<KeyId>) -> Self {
        Self { keys, invalid: Vec::new(), next }
    }
}

/// A key, and its use.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListedKey {
    /// What is known of it.
    pub record: KeyRecord,
    /// When it was last used, as far as it has been recorded.
    pub last_used_at: Option<SystemTime>,
}

impl ListedKey {
    /// A key, and its use.
    #[must_use]
    pub const fn new(record: KeyRecord, last_used_at: Option<SystemTime>) -> Self {
        Self { record, last_used_at }
    }
}

/// Which events, and which page of them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[must_use]
pub struct EventQuery {
    /// Of this key.
    pub key_id: Option<KeyId>,
    /// Of keys of this consumer.
    pub consumer_id: Option<String>,
    /// After this event of an earlier page: what that called [`next`](EventPage::next).
    pub after: Option<u64>,
    /// At most this many. Default: 50.
    pub limit: usize,
}

impl EventQuery {
    /// The newest of all events.
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

/// Some of the events that were asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EventPage {
    /// The newest first. They may be fewer than were asked for though there are more: a page has
    /// 1 MiB at most.
    pub events: Vec<KeyEvent>,
    /// Rows among them that this version does not understand, such as those of an action that a
    /// later one writes down, the newest first.
    pub invalid: Vec<InvalidRow>,
    /// Where the next page begins; `None` on the last.
    pub next: Option<u64>,
}

impl EventPage {
    /// A page.
    #[must_use]
    pub const fn new(events: Vec<KeyEvent>, next: Option<u64>) -> Self {
        Self { events, invalid: Vec::new(), next }
    }
}

/// Which keys are [counted](KeyTransaction::count_keys).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyCountQuery {
    /// Of this consumer.
    pub consumer_id: String,
    /// As recent are those with an id that is not below this.
    pub recent_from: KeyId,
    /// Counted no further than this.
    pub limit: usize,
}

impl KeyCountQuery {
    /// Keys of `consumer_id`, recent from the id `recent_from` on, no further than `limit`.
    #[must_use]
    pub const fn new(consumer_id: String, recent_from: KeyId, limit: usize) -> Self {
        Self { consumer_id, recent_from, limit }
    }
}

/// How many keys a consumer has, counted no further than was [asked](KeyCountQuery::limit).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyCounts {
    /// Neither revoked nor expired. One that is switched off counts.
    pub live: usize,
    /// Made recently, those that have ended included.
    pub recent: usize,
}

impl KeyCounts {
    /// What was counted.
    #[must_use]
    pub const fn new(live: usize, recent: usize) -> Self {
        Self { live, recent }
    }
}

/// Keys that are changed together.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Selection {
    /// Those of a consumer that are not revoked.
    Consumer(String),
    /// Those with exactly this prefix that are not revoked.
    Prefix(String),
    /// Those of a consumer with exactly this prefix that are not revoked.
    ConsumerPrefix {
        /// The consumer.
        consumer_id: String,
        /// The prefix.
        key_prefix: String,
    },
    /// Those that were revoked or expired before this. One that somebody else has locked is left
    /// out.
    EndedBefore(SystemTime),
}

/// A request that is carried out once, however often it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Claim {
    /// Which: a digest of who asks and of what they call it.
    pub request: [u8; 32],
    /// A digest of what was asked for, so that another request of the same name is not taken for
    /// this one.
    pub fingerprint: [u8; 32],
    /// The key it makes.
    pub key_id: KeyId,
}

impl Claim {
    /// `request` makes `key_id`.
    #[must_use]
    pub const fn new(request: [u8; 32], fingerprint: [u8; 32], key_id: KeyId) -> Self {
        Self { request, fingerprint, key_id }
    }
}
