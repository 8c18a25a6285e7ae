use std::{
    io::{self, Write as _},
    path::Path,
    time::SystemTime,
};

use anstyle::{AnsiColor, Style};
use comfy_table::{Table, presets::NOTHING};
use jiff::{SignedDuration, civil::DateTime};
use serde_json::{Value, json};
use tower_api_key::{
    rate_limit::{Algorithm, CountedPer, Quota, RateLimits},
    record::{KeyEvent, KeyKind, KeyRecord, Scope, Scopes},
    store::{InvalidRow, ListedKey},
};

use super::{failure::Failure, values};

/// Writes a line to standard output.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    let mut stdout = anstream::stdout().lock();
    writeln!(stdout, "{text}").and_then(|()| stdout.flush()).map_err(|error| unwritten(&error))
}

pub(crate) fn unwritten(error: &io::Error) -> Failure {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return Failure::pipe_closed();
    }
    Failure::new("cannot write to standard output").because(error)
}

/// Writes a line to standard error. If that is closed, the message is lost.
pub(crate) fn note(text: &str) {
    let _ = writeln!(anstream::stderr(), "{text}");
}

pub(crate) fn warn(text: &str) {
    let style = AnsiColor::Yellow.on_default();
    note(&format!("{style}warning:{style:#} {text}"));
}

/// A record as JSON, without the hash.
pub(crate) fn record(record: &KeyRecord) -> Value {
    json!({
        "id": record.id.to_string(),
        "status": record.status(record.read_at).as_str(),
        "consumer_id": record.consumer_id,
        "name": record.name,
        "key_prefix": record.key_prefix,
        "key_last4": record.key_last4,
        "scopes": record.scopes,
        "rate_limits": record.rate_limits,
        "plan": record.plan,
        "metadata": json_or_text(record.metadata.as_json()),
        "networks": record.networks,
        "tags": record.tags,
        "kind": record.kind.as_str(),
        "origins": record.origins,
        "is_active": record.is_active,
        "created_at": exact(record.created_at),
        "created_by": record.created_by,
        "not_before": record.not_before.map(exact),
        "expires_at": record.expires_at.map(exact),
        "revoked_at": record.revoked_at.map(exact),
        "revoked_reason": record.revoked_reason,
        "rotated_from": record.rotated_from.map(|id| id.to_string()),
        "rotated_at": record.rotated_at.map(exact),
        "version": record.version,
    })
}

/// A stored JSON text as a value; as a string if it cannot be parsed.
pub(crate) fn json_or_text(json: &str) -> Value {
    serde_json::from_str(json).unwrap_or_else(|_| json.into())
}

/// A row that cannot be read as a record, as it is stored.
pub(crate) fn invalid(row: &InvalidRow) -> Value {
    json!({ "id": row.id, "problem": row.problem, "values": row.values })
}

/// Warns of rows that a table leaves out.
pub(crate) fn warn_of_invalid(rows: &[InvalidRow]) {
    for row in rows {
        warn(&format!("left out of the table: {}; --json shows the row", printable(&row.problem)));
    }
}

pub(crate) fn listed(key: &ListedKey) -> Value {
    let mut value = record(&key.record);
    set(&mut value, "last_used_at", json!(key.last_used_at.map(exact)));
    value
}

pub(crate) fn set(object: &mut Value, name: &str, value: Value) {
    if let Some(object) = object.as_object_mut() {
        object.insert(name.to_owned(), value);
    }
}

pub(crate) fn event(event: &KeyEvent) -> Value {
    let entry = &event.entry;
    json!({
        "id": event.id,
        "at": exact(event.at),
        "action": entry.action.as_str(),
        "key_id": entry.key_id.map(|id| id.to_string()),
        "consumer_id": entry.consumer_id,
        "actor": entry.actor,
        "origin": entry.origin,
        "reason": entry.reason,
        "changes": entry.changes.as_deref().map(json_or_text),
    })
}

/// A time for display: whole seconds, in UTC.
pub(crate) fn time(at: SystemTime) -> String {
    format!("{:.0}Z", utc(at))
}

/// A time for programs, in full precision.
pub(crate) fn exact(at: SystemTime) -> String {
    format!("{}Z", utc(at))
}

/// A date and time in UTC. A `Timestamp` cannot hold the last day of the year 9999. Later times,
/// which only an edit in SQL can store, are shown as the latest `Timestamp` rather than as missing.
fn utc(at: SystemTime) -> DateTime {
    let since_epoch = SignedDuration::system_until(SystemTime::UNIX_EPOCH, at);
    values::EPOCH.saturating_add(since_epoch.unwrap_or(SignedDuration::MAX))
}

pub(crate) fn maybe_time(at: Option<SystemTime>, never: &str) -> String {
    at.map_or_else(|| never.to_owned(), time)
}

pub(crate) fn scopes(scopes: &Scopes) -> String {
    let scopes: Vec<_> = scopes.iter().map(Scope::as_str).collect();
    if scopes.is_empty() { "-".to_owned() } else { scopes.join(" ") }
}

fn words(words: impl Iterator<Item = impl ToString>, none: &str) -> String {
    let words: Vec<_> = words.map(|word| word.to_string()).collect();
    if words.is_empty() { none.to_owned() } else { words.join(" ") }
}

/// The plan and its limits. A plan missing in the database may be defined by the service.
fn plan_of(record: &KeyRecord) -> String {
    match (&record.plan, &record.plan_limits) {
        (None, _) => "-".to_owned(),
        (Some(plan), Some(of_plan)) => format!("{plan}: {}", limits(of_plan)),
        (Some(plan), None) => format!("{plan}: not defined here"),
    }
}

fn limits_of(record: &KeyRecord) -> String {
    match (&record.rate_limits, &record.plan) {
        (Some(own), _) => limits(own),
        (None, Some(_)) => "those of its plan".to_owned(),
        (None, None) => "the service's default".to_owned(),
    }
}

pub(crate) fn limits(limits: &RateLimits) -> String {
    let all: Vec<_> = limits.iter().map(quota).collect();
    if all.is_empty() { "unlimited".to_owned() } else { all.join("; ") }
}

fn quota(quota: &Quota) -> String {
    let (limit, burst) = (quota.limit(), quota.burst_size().get());
    let mut text = format!("{limit} in {:?}", quota.window());
    match quota.algorithm() {
        Algorithm::SlidingWindow => text += ", sliding",
        _ if burst != limit => text += &format!(", {burst} at once"),
        _ => {}
    }
    if quota.counted_per() == CountedPer::Consumer {
        text += ", all keys of the consumer together";
    }
    text
}

/// Styles a text. `anstream` strips the style if the stream is not a terminal.
pub(crate) fn painted(text: &str, style: Style) -> String {
    format!("{style}{text}{style:#}")
}

/// Rows under headings, or rows of a name and a value if `headings` is empty.
pub(crate) fn table(headings: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    if !headings.is_empty() {
        table.set_header(headings.iter().map(|heading| (*heading).to_owned()).collect::<Vec<_>>());
    }
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell)).collect::<Vec<_>>());
    }
    table.trim_fmt()
}

/// Replaces control characters: stored text could contain terminal escape sequences.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// A path for display: a folder's name may hold terminal escape sequences.
pub(crate) fn printable_path(path: &Path) -> String {
    printable(&path.display().to_string())
}

/// All properties of a key, one per line.
pub(crate) fn details(key: &ListedKey) -> String {
    let record = &key.record;
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    let some = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let status = record.status(record.read_at).as_str().to_owned();
    let mut rows = vec![
        row("id", record.id.to_string()),
        row("state", status),
        row("consumer", record.consumer_id.clone()),
        row("name", some(&record.name)),
        row("key", hint(record)),
        row("scopes", scopes(&record.scopes)),
        row("plan", plan_of(record)),
        row("rate limits", limits_of(record)),
        row("metadata", record.metadata.as_json().to_owned()),
        row("networks", words(record.networks.iter(), "anywhere")),
        row("tags", words(record.tags.iter(), "-")),
        row("created", time(record.created_at)),
        row("created by", some(&record.created_by)),
        row("begins", maybe_time(record.not_before, "at once")),
        row("expires", maybe_time(record.expires_at, "never")),
        row("last used", maybe_time(key.last_used_at, "-")),
        row("version", record.version.to_string()),
    ];
    if record.kind == KeyKind::Publishable {
        rows.push(row("publishable for", words(record.origins.iter(), "-")));
    }
    if record.kind == KeyKind::Canary {
        rows.push(row("kind", "canary: always refused".to_owned()));
    }
    if let Some(at) = record.revoked_at {
        rows.push(row("revoked", time(at)));
        rows.push(row("reason", some(&record.revoked_reason)));
    }
    if let Some(at) = record.rotated_at {
        rows.push(row("rotated", time(at)));
    }
    if let Some(id) = record.rotated_from {
        rows.push(row("replaces", id.to_string()));
    }
    table(&[], rows)
}

/// The prefix and the last characters of a key.
pub(crate) fn hint(record: &KeyRecord) -> String {
    format!("{}…{}", record.key_prefix, record.key_last4)
}
