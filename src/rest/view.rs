//! Keys and events as clients see them. The hash of a key is never included.

use serde::Serialize;
use serde_json::Value;

use std::collections::BTreeMap;

use super::times;
use crate::{
    rate_limit::RateLimits,
    record::{KeyEvent, KeyRecord, Metadata, Networks, Scopes, Tags, WebOrigins, shown},
    store::{InvalidRow, ListedKey},
};

/// A key as the routers show it: serialisable, without the key itself and its hash. For an
/// application's own handlers, made from a [`KeyRecord`] or a [`ListedKey`].
#[derive(Debug, Serialize)]
pub struct KeyView<'r> {
    id: String,
    consumer_id: &'r str,
    name: Option<&'r str>,
    hint: String,
    prefix: &'r str,
    scopes: &'r Scopes,
    rate_limits: Option<&'r RateLimits>,
    plan: Option<&'r str>,
    metadata: &'r Metadata,
    networks: &'r Networks,
    tags: &'r Tags,
    kind: &'static str,
    origins: &'r WebOrigins,
    status: &'static str,
    is_active: bool,
    created_at: String,
    created_by: Option<&'r str>,
    not_before: Option<String>,
    expires_at: Option<String>,
    revoked_at: Option<String>,
    revoked_reason: Option<&'r str>,
    rotated_from: Option<String>,
    rotated_at: Option<String>,
    version: u64,
    /// Absent if it was not queried.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_used_at: Option<Option<String>>,
}

impl<'r> From<&'r KeyRecord> for KeyView<'r> {
    fn from(record: &'r KeyRecord) -> Self {
        Self {
            id: record.id.to_string(),
            consumer_id: &record.consumer_id,
            name: record.name.as_deref(),
            hint: format!("{}…{}", record.key_prefix, record.key_last4),
            prefix: &record.key_prefix,
            scopes: &record.scopes,
            rate_limits: record.rate_limits.as_ref(),
            plan: record.plan.as_deref(),
            metadata: &record.metadata,
            networks: &record.networks,
            tags: &record.tags,
            kind: record.kind.as_str(),
            origins: &record.origins,
            status: record.status(record.read_at).as_str(),
            is_active: record.is_active,
            created_at: times::write(record.created_at),
            created_by: record.created_by.as_deref(),
            not_before: record.not_before.map(times::write),
            expires_at: record.expires_at.map(times::write),
            revoked_at: record.revoked_at.map(times::write),
            revoked_reason: record.revoked_reason.as_deref(),
            rotated_from: record.rotated_from.map(|id| id.to_string()),
            rotated_at: record.rotated_at.map(times::write),
            version: record.version,
            last_used_at: None,
        }
    }
}

impl<'r> From<&'r ListedKey> for KeyView<'r> {
    fn from(key: &'r ListedKey) -> Self {
        let last_used_at = key.last_used_at.map(times::write);
        Self { last_used_at: Some(last_used_at), ..Self::from(&key.record) }
    }
}

/// A new key. The only response that contains the key itself.
#[derive(Serialize)]
pub(super) struct NewKeyView<'r> {
    pub(super) key: &'r str,
    #[serde(flatten)]
    pub(super) view: KeyView<'r>,
    /// The key that it replaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) previous: Option<KeyView<'r>>,
}

#[derive(Serialize)]
pub(super) struct EventView<'e> {
    id: u64,
    at: String,
    action: &'static str,
    key_id: Option<String>,
    consumer_id: Option<&'e str>,
    actor: &'e str,
    origin: Option<&'e str>,
    reason: Option<&'e str>,
    changes: Value,
}

impl<'e> From<&'e KeyEvent> for EventView<'e> {
    fn from(event: &'e KeyEvent) -> Self {
        let entry = &event.entry;
        Self {
            id: event.id,
            at: times::write(event.at),
            action: entry.action.as_str(),
            key_id: entry.key_id.map(|id| id.to_string()),
            consumer_id: entry.consumer_id.as_deref(),
            actor: &entry.actor,
            origin: entry.origin.as_deref(),
            reason: entry.reason.as_deref(),
            changes: entry.changes.as_deref().map_or(Value::Null, shown),
        }
    }
}

/// A page of keys or events.
#[derive(Serialize)]
pub(super) struct PageView<'p, T> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) keys: Option<Vec<T>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) events: Option<Vec<T>>,
    /// Rows that cannot be read; absent if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) invalid: Vec<InvalidView<'p>>,
    pub(super) next: Option<&'p str>,
}

/// A row that cannot be read, as text.
#[derive(Serialize)]
pub(super) struct InvalidView<'r> {
    id: &'r str,
    problem: &'r str,
    values: &'r BTreeMap<&'static str, String>,
}

impl<'r> From<&'r InvalidRow> for InvalidView<'r> {
    fn from(row: &'r InvalidRow) -> Self {
        Self { id: &row.id, problem: &row.problem, values: &row.values }
    }
}
