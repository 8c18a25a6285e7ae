//! An audit event as columns.

use super::{error::corrupt, time::time, uuid::Uuid, value::key_id};
use crate::{
    record::{AuditEntry, KeyEvent, rfc3339},
    store::{
        EventPage, InvalidRow, StoreError,
        page::{Filling, event_bytes},
    },
};

/// A [`KeyEvent`] in portable types, like [`Row`].
pub(in crate::store) struct Event {
    pub(in crate::store) id: i64,
    pub(in crate::store) at: i64,
    pub(in crate::store) action: String,
    pub(in crate::store) key_id: Option<Uuid>,
    pub(in crate::store) consumer_id: Option<String>,
    pub(in crate::store) actor: String,
    pub(in crate::store) origin: Option<String>,
    pub(in crate::store) reason: Option<String>,
    pub(in crate::store) changes: Option<String>,
}

impl Event {
    /// The event, or the row as text if this version cannot parse it.
    fn into_event(self) -> Result<KeyEvent, InvalidRow> {
        let bad = |column: &str, problem: &str| {
            corrupt(&format_args!("column `{column}` of event {}: {problem}", self.id))
        };
        let parsed = u64::try_from(self.id)
            .map_err(|_| bad("id", "negative"))
            .and_then(|id| Ok((id, time(self.at).ok_or_else(|| bad("at", "not a time"))?)))
            .and_then(|(id, at)| {
                let action = self.action.parse();
                Ok((id, at, action.map_err(|_| bad("action", "unknown to this version"))?))
            });
        let (id, at, action) = match parsed {
            Ok(parsed) => parsed,
            Err(error) => return Err(self.into_text(&error)),
        };
        let entry = AuditEntry {
            key_id: self.key_id.map(key_id),
            consumer_id: self.consumer_id,
            origin: self.origin,
            reason: self.reason,
            changes: self.changes,
            ..AuditEntry::new(action, self.actor)
        };
        Ok(KeyEvent::new(id, at, entry))
    }

    fn into_text(self, error: &StoreError) -> InvalidRow {
        let texts = [
            ("at", Some(time(self.at).map_or_else(|| self.at.to_string(), rfc3339))),
            ("action", Some(self.action)),
            ("key_id", self.key_id.map(|id| key_id(id).to_string())),
            ("consumer_id", self.consumer_id),
            ("actor", Some(self.actor)),
            ("origin", self.origin),
            ("reason", self.reason),
            ("changes", self.changes),
        ];
        InvalidRow::new(self.id, error, texts)
    }
}

/// Collects the events of a page.
pub(in crate::store) struct EventRows {
    filling: Filling,
    page: EventPage,
    last: Option<i64>,
}

impl EventRows {
    pub(in crate::store) fn new(limit: usize) -> Self {
        Self { filling: Filling::new(limit), page: EventPage::default(), last: None }
    }

    /// Adds rows. Returns the cursor for the next ones; `None` if the page is full.
    pub(in crate::store) fn add(&mut self, events: Vec<Event>) -> Option<i64> {
        for event in events {
            let id = event.id;
            let event = event.into_event();
            let bytes = event.as_ref().map_or_else(InvalidRow::bytes, event_bytes);
            if !self.filling.takes(bytes) {
                return None;
            }
            self.last = Some(id);
            match event {
                Ok(event) => self.page.events.push(event),
                Err(row) => self.page.invalid.push(row),
            }
        }
        self.last
    }

    pub(in crate::store) fn finish(mut self) -> EventPage {
        if self.filling.is_full() {
            self.page.next = self.last.and_then(|last| u64::try_from(last).ok());
        }
        self.page
    }
}
