//! Webhook endpoints, lines of the audit and notices as columns.

use super::{
    error::corrupt,
    event::Event,
    time::{micros, time},
    uuid::Uuid,
    value::key_id,
};
use crate::{
    key::SigningSecret,
    record::{AuditEntry, EventFilter, KeyAction, WebhookEndpoint, WebhookId, rfc3339},
    store::{
        StoreError,
        page::Filling,
        port::{AuditLine, Notice},
    },
};

/// A [`WebhookEndpoint`] in portable types.
pub(in crate::store) struct Endpoint {
    pub(in crate::store) id: [u8; 16],
    pub(in crate::store) url: String,
    pub(in crate::store) secret: Vec<u8>,
    pub(in crate::store) previous_secret: Option<Vec<u8>>,
    pub(in crate::store) previous_until: Option<i64>,
    pub(in crate::store) events: Option<String>,
    pub(in crate::store) delivered_to: i64,
    pub(in crate::store) state: String,
    pub(in crate::store) failures: i64,
    pub(in crate::store) next_attempt_at: Option<i64>,
    pub(in crate::store) last_error: Option<String>,
    pub(in crate::store) last_delivered_at: Option<i64>,
    pub(in crate::store) created_at: i64,
    pub(in crate::store) version: i64,
}

impl Endpoint {
    pub(in crate::store) fn of(endpoint: &WebhookEndpoint) -> Result<Self, StoreError> {
        let number = |number| i64::try_from(number).map_err(|_| corrupt("a number out of range"));
        let previous = endpoint.previous_secret.as_ref();
        Ok(Self {
            id: *endpoint.id.as_bytes(),
            url: endpoint.url.clone(),
            secret: endpoint.secret.expose_bytes().to_vec(),
            previous_secret: previous.map(|(secret, _)| secret.expose_bytes().to_vec()),
            previous_until: previous.map(|(_, until)| micros(*until)).transpose()?,
            events: endpoint.events.to_stored(),
            delivered_to: number(endpoint.delivered_to)?,
            state: endpoint.state.as_str().to_owned(),
            failures: endpoint.failures.into(),
            next_attempt_at: endpoint.next_attempt_at.map(micros).transpose()?,
            last_error: endpoint.last_error.clone(),
            last_delivered_at: endpoint.last_delivered_at.map(micros).transpose()?,
            created_at: micros(endpoint.created_at)?,
            version: number(endpoint.version)?,
        })
    }

    pub(in crate::store) fn parse(self) -> Result<WebhookEndpoint, StoreError> {
        let id = WebhookId::from_bytes(self.id);
        let bad = |column: &str| corrupt(&format_args!("column `{column}` of webhook {id}"));
        let secret = |bytes, column| SigningSecret::from_bytes(bytes).map_err(|_| bad(column));
        let at = |micros, column| time(micros).ok_or_else(|| bad(column));
        let maybe =
            |micros: Option<i64>, column| micros.map(|micros| at(micros, column)).transpose();
        let previous = maybe(self.previous_until, "previous_until")?;
        let previous_secret = match (self.previous_secret, previous) {
            (Some(bytes), Some(until)) => Some((secret(bytes, "previous_secret")?, until)),
            _ => None,
        };
        let delivered_to = u64::try_from(self.delivered_to).map_err(|_| bad("delivered_to"))?;
        let mut endpoint =
            WebhookEndpoint::new(id, self.url, secret(self.secret, "secret")?, delivered_to);
        endpoint.previous_secret = previous_secret;
        endpoint.events = EventFilter::from_stored(self.events.as_deref());
        endpoint.state = self.state.parse().map_err(|_| bad("state"))?;
        endpoint.failures = u32::try_from(self.failures).map_err(|_| bad("failures"))?;
        endpoint.next_attempt_at = maybe(self.next_attempt_at, "next_attempt_at")?;
        endpoint.last_error = self.last_error;
        endpoint.last_delivered_at = maybe(self.last_delivered_at, "last_delivered_at")?;
        endpoint.created_at = at(self.created_at, "created_at")?;
        endpoint.version = u64::try_from(self.version).map_err(|_| bad("version"))?;
        Ok(endpoint)
    }
}

/// Collects lines of the audit.
pub(in crate::store) struct Lines {
    filling: Filling,
    lines: Vec<AuditLine>,
}

impl Lines {
    pub(in crate::store) fn new(limit: usize) -> Self {
        Self { filling: Filling::new(limit), lines: Vec::new() }
    }

    /// Adds rows. Returns the id of the last one, or `None` if no more fit.
    pub(in crate::store) fn add(&mut self, events: Vec<Event>) -> Result<Option<i64>, StoreError> {
        let mut last = None;
        for event in events {
            let id = event.id;
            let line = line(event)?;
            if !self.filling.takes(bytes(&line)) {
                return Ok(None);
            }
            last = Some(id);
            self.lines.push(line);
        }
        Ok(last)
    }

    pub(in crate::store) fn finish(self) -> Vec<AuditLine> {
        self.lines
    }
}

fn line(event: Event) -> Result<AuditLine, StoreError> {
    let id = u64::try_from(event.id).map_err(|_| corrupt("column `id` of an event: negative"))?;
    // A time that no clock of the library shows must not stop all events after it.
    let at = time(event.at).unwrap_or(std::time::SystemTime::UNIX_EPOCH);
    Ok(AuditLine {
        key_id: event.key_id.map(key_id),
        consumer_id: event.consumer_id,
        origin: event.origin,
        reason: event.reason,
        changes: event.changes,
        ..AuditLine::new(id, at, event.action, event.actor)
    })
}

fn bytes(line: &AuditLine) -> usize {
    const OVERHEAD: usize = 768;
    let texts = [&line.consumer_id, &line.origin, &line.reason, &line.changes];
    OVERHEAD + line.actor.len() + texts.into_iter().flatten().map(String::len).sum::<usize>()
}

/// How far the search for a notice has got: a time, if it searches by time, and a key.
#[derive(Clone, Copy)]
pub(in crate::store) struct Position {
    pub(in crate::store) at: i64,
    pub(in crate::store) key_id: Uuid,
}

/// A key that was examined for a notice.
pub(in crate::store) struct Due {
    pub(in crate::store) key_id: Uuid,
    pub(in crate::store) consumer_id: String,
    /// The time that the notice is about.
    pub(in crate::store) about: i64,
    /// Whether the notice is due.
    pub(in crate::store) is_due: bool,
}

/// What the audit names as the actor.
const ACTOR: &str = "system";

/// The lines of the audit for the keys to which `notice` applies.
pub(in crate::store) fn entries(notice: Notice, keys: &[Due]) -> Vec<AuditEntry> {
    let (action, field) = match notice {
        Notice::FirstUse => (KeyAction::FirstUse, None),
        Notice::ExpiresIn30Days | Notice::ExpiresIn7Days | Notice::ExpiresInADay => {
            (KeyAction::Expiring, Some("expires_at"))
        }
        Notice::RetiredUsed => (KeyAction::RetiredUsed, Some("expires_at")),
        Notice::Unused => (KeyAction::Unused, Some("unused_since")),
    };
    let entry = |key: &Due| {
        let at = field.zip(time(key.about).map(rfc3339));
        let days = notice
            .days_ahead()
            .map_or_else(String::new, |(days, _)| format!(r#","days":{{"to":{days}}}"#));
        AuditEntry {
            key_id: Some(key_id(key.key_id)),
            consumer_id: Some(key.consumer_id.clone()),
            changes: at.map(|(field, at)| format!(r#"{{"{field}":{{"to":"{at}"}}{days}}}"#)),
            ..AuditEntry::new(action, ACTOR)
        }
    };
    keys.iter().filter(|key| key.is_due).map(entry).collect()
}
