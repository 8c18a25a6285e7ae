//! Page limits, in rows and bytes.

use std::collections::BTreeMap;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
use std::fmt;

#[cfg(any(feature = "postgres", feature = "sqlite"))]
use super::StoreError;
use crate::record::{KeyEvent, KeyRecord};

/// Maximum size of a page of keys or events: 1 MiB, which a server holds in memory for each slow
/// client. The page ends before the row that would exceed it, but always contains at least one row.
pub(super) const MAX_PAGE_BYTES: usize = 1024 * 1024;

/// Rows that stores fetch at a time to fill a page.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(super) const CHUNK: usize = 16;

/// Rows that stores decode before yielding to other tasks: a row has up to 16 KiB of JSON.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(super) const ROWS_PER_TURN: usize = 8;

/// Size of a row without its texts: field names, ids, times.
const ROW_BYTES: usize = 768;
/// Size of a quota without its name.
const QUOTA_BYTES: usize = 128;

/// The longest network, quoted.
const NETWORK_BYTES: usize = 46;

/// Tracks how full a page is.
pub(crate) struct Filling {
    limit: usize,
    rows: usize,
    bytes: usize,
    is_full: bool,
}

impl Filling {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, rows: 0, bytes: 0, is_full: false }
    }

    /// Whether the next row, of `bytes` bytes, still fits; if not, the page is full.
    pub(crate) fn takes(&mut self, bytes: usize) -> bool {
        let bytes = self.bytes.saturating_add(bytes);
        self.is_full |= self.rows >= self.limit || (self.rows > 0 && bytes > MAX_PAGE_BYTES);
        if !self.is_full {
            self.rows += 1;
            self.bytes = bytes;
        }
        !self.is_full
    }

    /// Whether a row did not fit and belongs to the next page.
    pub(super) fn is_full(&self) -> bool {
        self.is_full
    }
}

/// Approximate size of the key in a response.
pub(crate) fn key_bytes(record: &KeyRecord) -> usize {
    let texts = [&record.name, &record.plan, &record.created_by, &record.revoked_reason];
    let texts = texts.into_iter().flatten().map(String::len).sum::<usize>();
    let scopes = record.scopes.iter().map(|scope| scope.as_str().len() + 3).sum::<usize>();
    let networks = record.networks.iter().len() * NETWORK_BYTES;
    let words = record.tags.iter().chain(record.origins.iter());
    let words = words.map(|word| word.len() + 3).sum::<usize>();
    let limits = [&record.rate_limits, &record.plan_limits].into_iter().flatten();
    let quotas = limits.flat_map(|limits| limits.iter());
    let quotas = quotas.map(|quota| quota.name().len() + QUOTA_BYTES).sum::<usize>();
    ROW_BYTES
        + texts
        + scopes
        + networks
        + words
        + quotas
        + record.consumer_id.len()
        + record.metadata.as_json().len()
        + 2 * record.key_prefix.len()
        + record.key_last4.len()
}

/// Approximate size of the event in a response.
pub(crate) fn event_bytes(event: &KeyEvent) -> usize {
    let entry = &event.entry;
    let texts = [&entry.consumer_id, &entry.origin, &entry.reason, &entry.changes];
    let texts = texts.into_iter().flatten().map(String::len).sum::<usize>();
    ROW_BYTES + texts + entry.actor.len()
}

/// A row that violates a bound, or that this version cannot parse. Shown as text, so that it is
/// neither hidden nor blocks the rest of its page.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InvalidRow {
    /// The id of the key, or the number of the event.
    pub id: String,
    /// What is wrong, and in which column. Never contains a value.
    pub problem: String,
    /// The columns as text, each truncated to 16 KiB, without nulls and without the key's hash.
    pub values: BTreeMap<&'static str, String>,
}

impl InvalidRow {
    /// The row as read by a store.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub(super) fn new(
        id: impl fmt::Display,
        error: &StoreError,
        values: impl IntoIterator<Item = (&'static str, Option<String>)>,
    ) -> Self {
        let problem = std::error::Error::source(error);
        let problem = problem.map_or_else(|| error.to_string(), ToString::to_string);
        let values = values.into_iter().filter_map(|(column, value)| Some((column, cut(value?))));
        Self { id: id.to_string(), problem, values: values.collect() }
    }

    /// Approximate size in a response, in which quotes are escaped.
    pub(crate) fn bytes(&self) -> usize {
        ROW_BYTES + self.values.values().map(|value| 2 * value.len()).sum::<usize>()
    }
}

#[cfg(any(feature = "postgres", feature = "sqlite"))]
fn cut(mut value: String) -> String {
    const MAX_LEN: usize = 16 * 1024;
    if value.len() > MAX_LEN {
        value.truncate(value.floor_char_boundary(MAX_LEN));
        value.push('…');
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_full_at_its_rows_or_its_bytes_and_never_without_a_row() {
        let fill = |limit, bytes| {
            let mut filling = Filling::new(limit);
            let rows = (0..10_000).take_while(|_| filling.takes(bytes)).count();
            (rows, filling.is_full())
        };
        assert_eq!(fill(50, 1), (50, true));
        assert_eq!(fill(1_000, 1024), (1_000, true));
        assert_eq!(fill(1_000, 2048), (512, true));
        assert_eq!(fill(1_000, 2 * MAX_PAGE_BYTES), (1, true));
        assert_eq!(fill(1_000, usize::MAX), (1, true));
        let mut filling = Filling::new(2);
        assert!(filling.takes(1) && filling.takes(1) && !filling.is_full());
    }
}
