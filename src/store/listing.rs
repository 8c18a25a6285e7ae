//! Page queries of the SQL stores: each reads one index, over a bounded range.

use super::{
    InvalidRow, KeyPage, KeyQuery, ListedKey,
    page::{Filling, key_bytes},
};
use crate::record::{KeyId, KeyStatus};

/// Maximum keys that one page query examines. Further filters apply only to these keys. If few
/// match, the page is short and the next one continues after them. This bounds every query to a few
/// milliseconds, wherever the matching keys are.
pub(super) const WINDOW: usize = 1_500;

/// An index that is ordered by key id.
#[derive(Clone, Copy)]
pub(super) enum Index<'q> {
    All,
    Live,
    Revoked,
    Inactive,
    Beginning,
    Consumer(&'q str),
    LiveOfConsumer(&'q str),
    Prefix(&'q str),
    LiveOfPrefix(&'q str),
    Scope(&'q str),
    Tag(&'q str),
}

impl<'q> Index<'q> {
    /// Chooses the index with the fewest non-matching keys: a consumer has few keys, a scope or
    /// a tag more, and uncommon states have an index each. Most keys share the same few prefixes.
    ///
    /// Expiry and last use have no index: one in id order could not find them, and an index on uses
    /// would be written on every use.
    pub(super) fn of(query: &'q KeyQuery) -> Self {
        let live = query.status.is_some_and(|status| status != KeyStatus::Revoked);
        if let Some(consumer_id) = &query.consumer_id {
            return if live {
                Self::LiveOfConsumer(consumer_id)
            } else {
                Self::Consumer(consumer_id)
            };
        }
        if let Some(scope) = &query.scope {
            return Self::Scope(scope.as_str());
        }
        if let Some(tag) = &query.tag {
            return Self::Tag(tag);
        }
        match (query.status, &query.key_prefix) {
            (Some(KeyStatus::Revoked), _) => Self::Revoked,
            (Some(KeyStatus::Inactive), _) => Self::Inactive,
            (Some(KeyStatus::NotYetActive), _) => Self::Beginning,
            (Some(_), Some(key_prefix)) => Self::LiveOfPrefix(key_prefix),
            (None, Some(key_prefix)) => Self::Prefix(key_prefix),
            (Some(_), None) => Self::Live,
            (None, None) => Self::All,
        }
    }
}

/// Maximum keys on a page.
pub(super) fn size(query: &KeyQuery) -> usize {
    query.limit.min(WINDOW)
}

/// Collects the keys of a page.
pub(super) struct KeyRows {
    filling: Filling,
    page: KeyPage,
    last: Option<KeyId>,
}

/// A row of a page: a key, or a row that could not be parsed.
pub(super) type Listed = Result<ListedKey, InvalidRow>;

impl KeyRows {
    pub(super) fn new(size: usize) -> Self {
        Self { filling: Filling::new(size), page: KeyPage::default(), last: None }
    }

    /// Adds the row of key `id`. Returns false if it belongs to the next page.
    pub(super) fn add(&mut self, id: KeyId, row: Listed) -> bool {
        let bytes = row.as_ref().map_or_else(InvalidRow::bytes, |key| key_bytes(&key.record));
        if !self.filling.takes(bytes) {
            return false;
        }
        self.last = Some(id);
        match row {
            Ok(key) => self.page.keys.push(key),
            Err(row) => self.page.invalid.push(row),
        }
        true
    }

    /// The last key added.
    #[cfg(feature = "sqlite")]
    pub(super) fn last(&self) -> Option<KeyId> {
        self.last
    }

    /// Finishes the page. If the page is not full, `edge` is the last key examined, provided more
    /// may follow.
    pub(super) fn finish(self, edge: Option<KeyId>) -> KeyPage {
        let next = if self.filling.is_full() { self.last } else { edge };
        KeyPage { next, ..self.page }
    }
}
