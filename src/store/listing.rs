//! How the stores that speak SQL read a page of keys: along one index, and never too far.

use super::{
    InvalidRow, KeyPage, KeyQuery, ListedKey,
    page::{Filling, key_bytes},
};
use crate::record::{KeyId, KeyStatus};

/// How many keys a page looks at. What else is asked of a key is asked of each of these; where too
/// few match, the page is short, and the next one goes on behind them. So no question takes longer
/// than a few milliseconds, wherever the keys lie that answer it.
pub(super) const WINDOW: usize = 1_500;

/// An index that has keys in the order of their ids.
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
}

impl<'q> Index<'q> {
    /// The index in which the fewest keys are in vain: a consumer has few keys, a scope more, and
    /// states that are exceptions have an index each. Most keys have the same few prefixes.
    ///
    /// Expiry and use have none: in the order of ids no index can find them, and one of uses would
    /// be written on each use.
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

/// How many keys a page may have.
pub(super) fn size(query: &KeyQuery) -> usize {
    query.limit.min(WINDOW)
}

/// A page of keys while it is filled.
pub(super) struct KeyRows {
    filling: Filling,
    page: KeyPage,
    last: Option<KeyId>,
}

/// A row of a page: a key, or what is there in its place.
pub(super) type Listed = Result<ListedKey, InvalidRow>;

impl KeyRows {
    pub(super) fn new(size: usize) -> Self {
        Self { filling: Filling::new(size), page: KeyPage::default(), last: None }
    }

    /// Adds the row of the key `id`, or returns false: it belongs to the next page.
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

    /// The last key that was added.
    #[cfg(feature = "sqlite")]
    pub(super) fn last(&self) -> Option<KeyId> {
        self.last
    }

    /// The page. Where it has room left, `edge` is the last key that was looked at, if there may be
    /// more behind it.
    pub(super) fn finish(self, edge: Option<KeyId>) -> KeyPage {
        let next = if self.filling.is_full() { self.last } else { edge };
        KeyPage { next, ..self.page }
    }
}
