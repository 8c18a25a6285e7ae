//! Pages over the keys or events of several consumers, merged from a page of each.

use std::collections::BTreeSet;

use super::{KeyIssuer, ManageError};
use crate::{
    record::{KeyEvent, KeyId},
    store::{
        EventPage, EventQuery, Filling, InvalidRow, KeyPage, KeyQuery, ListedKey, event_bytes,
        key_bytes,
    },
};

/// Rows of several pages, newest first, within the limits of one page.
struct Merged<C, R> {
    limit: usize,
    /// Each with its cursor and size.
    rows: Vec<(C, usize, Result<R, InvalidRow>)>,
    /// Every row from here on upwards was seen; `None` if every row was.
    seen_to: Option<C>,
}

impl<C: Copy + Ord, R> Merged<C, R> {
    const fn new(limit: usize) -> Self {
        Self { limit, rows: Vec::new(), seen_to: None }
    }

    /// Adds a page whose next one begins after `next`.
    fn add(
        &mut self,
        rows: impl IntoIterator<Item = (C, usize, Result<R, InvalidRow>)>,
        next: Option<C>,
    ) {
        self.rows.extend(rows);
        self.seen_to = self.seen_to.max(next);
        self.rows.retain(|(cursor, ..)| self.seen_to.is_none_or(|end| *cursor >= end));
        self.rows.sort_unstable_by(|(left, ..), (right, ..)| right.cmp(left));
        let mut filling = Filling::new(self.limit);
        let fitting = self.rows.iter().take_while(|(_, bytes, _)| filling.takes(*bytes)).count();
        if fitting < self.rows.len() {
            self.rows.truncate(fitting);
            self.seen_to = self.rows.last().map(|(cursor, ..)| *cursor);
        }
    }

    fn finish(self) -> (Vec<R>, Vec<InvalidRow>, Option<C>) {
        let (mut valid, mut invalid) = (Vec::new(), Vec::new());
        for (_, _, row) in self.rows {
            match row {
                Ok(row) => valid.push(row),
                Err(row) => invalid.push(row),
            }
        }
        (valid, invalid, self.seen_to)
    }
}

impl KeyIssuer {
    /// A page of the keys of several consumers. Reads a page of each.
    pub(super) async fn list_each(
        &self,
        consumers: &BTreeSet<&str>,
        query: &KeyQuery,
    ) -> Result<KeyPage, ManageError> {
        let mut merged = Merged::<KeyId, ListedKey>::new(query.limit);
        for consumer_id in consumers {
            let query = KeyQuery { consumer_id: Some((*consumer_id).to_owned()), ..query.clone() };
            let page = self.store.list(&query).await?;
            let keys = page.keys.into_iter();
            let keys = keys.map(|key| (key.record.id, key_bytes(&key.record), Ok(key)));
            merged.add(keys.chain(page.invalid.into_iter().filter_map(invalid)), page.next);
        }
        let (keys, invalid, next) = merged.finish();
        let mut page = KeyPage::new(keys, next);
        page.invalid = invalid;
        Ok(page)
    }

    /// A page of the events of several consumers. Reads a page of each.
    pub(super) async fn events_of_each(
        &self,
        consumers: &BTreeSet<&str>,
        query: &EventQuery,
    ) -> Result<EventPage, ManageError> {
        let mut merged = Merged::<u64, KeyEvent>::new(query.limit);
        for consumer_id in consumers {
            let query =
                EventQuery { consumer_id: Some((*consumer_id).to_owned()), ..query.clone() };
            let page = self.store.events(&query).await?;
            let events = page.events.into_iter();
            let events = events.map(|event| (event.id, event_bytes(&event), Ok(event)));
            merged.add(events.chain(page.invalid.into_iter().filter_map(invalid)), page.next);
        }
        let (events, invalid, next) = merged.finish();
        let mut page = EventPage::new(events, next);
        page.invalid = invalid;
        Ok(page)
    }
}

/// A row that cannot be read, with its cursor, which the store wrote as text.
fn invalid<C: std::str::FromStr, R>(row: InvalidRow) -> Option<(C, usize, Result<R, InvalidRow>)> {
    Some((row.id.parse().ok()?, row.bytes(), Err(row)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rows of `all`, read page by page, `limit` rows at a time from each source.
    fn read(sources: &[Vec<u32>], limit: usize) -> Vec<Vec<u32>> {
        let (mut pages, mut after) = (Vec::new(), None);
        loop {
            let mut merged = Merged::<u32, u32>::new(limit);
            for source in sources {
                let mut rows =
                    source.iter().copied().filter(|row| after.is_none_or(|end| *row < end));
                let page: Vec<_> = rows.by_ref().take(limit).collect();
                let next = rows.next().and_then(|_| page.last().copied());
                merged.add(page.into_iter().map(|row| (row, 1, Ok(row))), next);
            }
            let (rows, _, next) = merged.finish();
            pages.push(rows);
            after = next;
            if next.is_none() {
                return pages;
            }
        }
    }

    #[test]
    fn every_row_of_every_source_comes_once_and_newest_first() {
        let sources = [vec![9, 8, 3, 1], vec![7, 6, 5], vec![], vec![4, 2]];
        for limit in 1..12 {
            let pages = read(&sources, limit);
            assert!(pages.iter().all(|page| page.len() <= limit), "{pages:?}");
            assert_eq!(pages.concat(), [9, 8, 7, 6, 5, 4, 3, 2, 1], "{limit} at a time");
            assert_eq!(pages.len(), 9_usize.div_ceil(limit), "full pages: {pages:?}");
        }
    }

    #[test]
    fn a_page_has_no_more_bytes_than_another() {
        let mut merged = Merged::<u32, u32>::new(10);
        for row in [1, 2, 3] {
            merged.add([(row, 600 * 1024, Ok(row))], None);
        }
        let (rows, _, next) = merged.finish();
        assert_eq!((rows, next), (vec![3], Some(3)));
    }
}
