//! Queries for keys and audit events, and pages of answers.

use std::time::SystemTime;

use super::InvalidRow;
use crate::record::{KeyEvent, KeyId, KeyRecord, KeyStatus, Scope};

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
    /// Keys with this tag.
    pub tag: Option<String>,
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
            tag: None,
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

    /// Sets [`tag`](Self::tag).
    pub fn tag(self, tag: impl Into<String>) -> Self {
        Self { tag: Some(tag.into()), ..self }
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
