//! Parses a line of an import. Errors never quote values: one of them may be a key.

use std::fmt::Display;

use serde_json::{Map, Value};
use tower_api_key::{
    key::KeyHash,
    manage::{KeyImport, NewKey},
    rate_limit::RateLimits,
    record::{KeyKind, Metadata, Networks, Scopes, Tags, WebOrigins},
};

use super::{super::values, formats::Formats};

const FIELDS: [&str; 19] = [
    "hash",
    "consumer_id",
    "expires",
    "name",
    "scopes",
    "rate_limits",
    "plan",
    "metadata",
    "networks",
    "tags",
    "kind",
    "origins",
    "not_before",
    "created_by",
    "prefix",
    "last4",
    "is_active",
    "created_at",
    "last_used_at",
];

/// The key that a line describes; `None` for an empty line.
pub(super) fn parse(
    line: &str,
    formats: &Formats,
    reason: Option<&str>,
) -> Result<Option<KeyImport>, String> {
    if line.is_empty() {
        return Ok(None);
    }
    let object: Map<String, Value> = serde_json::from_str(line).map_err(|error| {
        let at = error.column();
        format!(
            "not a JSON object on one line (column {at}), such as \
            {{\"hash\": \"9f86…\", \"consumer_id\": \"acme\", \"expires\": \"90d\"}}"
        )
    })?;
    if object.contains_key("id") {
        let advice = "`id` cannot be set, a key gets a new one: keep the old one in `metadata`, \
            such as {\"old_id\": \"42\"}";
        return Err(advice.into());
    }
    if let Some(unknown) = object.keys().find(|name| !FIELDS.contains(&name.as_str())) {
        return Err(format!(
            "{} is unknown; known fields: {}; keep other data in `metadata`",
            named(unknown),
            FIELDS.join(", ")
        ));
    }
    let hash = required(&object, "hash", "the key's SHA-256")?;
    let prefix = text(&object, "prefix")?.unwrap_or_default();
    let last4 = text(&object, "last4")?.unwrap_or_default();
    let hash = formats.stored_hash(hash, prefix, last4)?;
    let consumer = required(&object, "consumer_id", "the key's consumer")?;
    let expires = required(&object, "expires", "\"never\", \"2026-12-31\" or \"90d\"")?;
    let expiry = values::new_expiry(expires).map_err(|problem| format!("expires: {problem}"))?;

    let mut new = NewKey::new(consumer, expiry);
    if let Some(name) = text(&object, "name")? {
        new = new.name(name);
    }
    if let Some(scopes) = present(&object, "scopes") {
        new = new.scopes(self::scopes(scopes).map_err(|problem| format!("scopes: {problem}"))?);
    }
    if let Some(limits) = present(&object, "rate_limits") {
        new = new.rate_limits(rate_limits(limits).map_err(|e| format!("rate_limits: {e}"))?);
    }
    if let Some(plan) = text(&object, "plan")? {
        new = new.plan(plan);
    }
    if let Some(metadata) = present(&object, "metadata") {
        let metadata = Metadata::new(metadata);
        new = new.metadata(metadata.map_err(|error| format!("metadata: {error}"))?);
    }
    if let Some(networks) = list(&object, "networks", "203.0.113.0/24", Networks::parse)? {
        new = new.networks(networks);
    }
    if let Some(tags) = list(&object, "tags", "mobile", Tags::parse)? {
        new = new.tags(tags);
    }
    let kind = text(&object, "kind")?.map(str::parse::<KeyKind>).transpose();
    let kind = kind.map_err(|error| format!("kind: {error}"))?;
    let origins = list(&object, "origins", "https://shop.example", WebOrigins::parse)?;
    match (kind.unwrap_or_default(), origins.unwrap_or_default()) {
        (KeyKind::Publishable, origins) => new = new.publishable(origins),
        (_, origins) if origins.is_empty() => {}
        _ => return Err("origins: only a key of the kind \"publishable\" has origins".into()),
    }
    if let Some(at) = text(&object, "not_before")? {
        new = new.not_before(values::future(at).map_err(|e| format!("not_before: {e}"))?);
    }
    if let Some(who) = text(&object, "created_by")? {
        new = new.created_by(who);
    }
    if let Some(reason) = reason {
        new = new.reason(reason);
    }
    let mut key = KeyImport::new(hash, new).hint(prefix, last4);
    if let Some(is_active) = present(&object, "is_active") {
        key = key.is_active(is_active.as_bool().ok_or("is_active: must be true or false")?);
    }
    if let Some(at) = text(&object, "created_at")? {
        key = key.created_at(values::past(at).map_err(|e| format!("created_at: {e}"))?);
    }
    if let Some(at) = text(&object, "last_used_at")? {
        key = key.last_used_at(values::past(at).map_err(|e| format!("last_used_at: {e}"))?);
    }
    Ok(Some(key))
}

pub(super) fn hash(text: &str) -> Result<KeyHash, &'static str> {
    text.parse().map_err(|_| {
        "not a SHA-256: 64 hexadecimal digits, or 43 characters of base64. If it is the key \
            itself, hash it first: printf %s \"$KEY\" | sha256sum"
    })
}

/// The name of a field, unless it may be a secret.
fn named(field: &str) -> String {
    let is_name = field.len() <= 24
        && field.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'_' || byte == b'-');
    if is_name { format!("the field `{field}`") } else { "one of its fields".to_owned() }
}

fn present<'o>(object: &'o Map<String, Value>, field: &str) -> Option<&'o Value> {
    object.get(field).filter(|value| !value.is_null())
}

fn text<'o>(object: &'o Map<String, Value>, field: &str) -> Result<Option<&'o str>, String> {
    let Some(value) = present(object, field) else { return Ok(None) };
    value.as_str().map(Some).ok_or_else(|| format!("{field}: must be a string, in quotes"))
}

fn required<'o>(
    object: &'o Map<String, Value>,
    field: &str,
    what: &str,
) -> Result<&'o str, String> {
    text(object, field)?.ok_or_else(|| format!("`{field}` is missing: {what}"))
}

fn scopes(value: &Value) -> Result<Scopes, &'static str> {
    let scopes = serde_json::from_value::<Scopes>(value.clone())
        .map_err(|_| "must be a list of up to 128 scopes, such as [\"orders:read\"]")?;
    // `--scope` separates scopes by commas, so such a scope is a list by mistake.
    if scopes.iter().any(|scope| scope.as_str().contains(',')) {
        return Err("must be separate strings, such as [\"orders:read\", \"orders:write\"]");
    }
    Ok(scopes)
}

/// A list of texts.
fn list<T, E: Display>(
    object: &Map<String, Value>,
    field: &str,
    example: &str,
    parse: impl FnOnce(Vec<String>) -> Result<T, E>,
) -> Result<Option<T>, String> {
    let Some(value) = present(object, field) else { return Ok(None) };
    let texts =
        value.as_array().map(|list| list.iter().map(|text| text.as_str().map(str::to_owned)));
    let texts = texts.and_then(Iterator::collect::<Option<Vec<_>>>);
    let texts = texts.ok_or_else(|| format!("{field}: must be a list, such as [\"{example}\"]"))?;
    parse(texts).map(Some).map_err(|error| format!("{field}: {error}"))
}

/// Limits as written on the command line, or as printed by `show --json`.
fn rate_limits(value: &Value) -> Result<RateLimits, String> {
    let advice = "must be a list, such as [\"600/min\"] or [\"unlimited\"]";
    let list = value.as_array().ok_or(advice)?;
    if list.iter().all(Value::is_string) {
        let limits: Result<Vec<_>, _> =
            list.iter().filter_map(Value::as_str).map(values::limit).collect();
        return values::limits(&limits?);
    }
    if list.len() > RateLimits::MAX_QUOTAS {
        return Err("a key has at most 8 quotas".into());
    }
    serde_json::from_value(value.clone()).map_err(|_| advice.into()).and_then(values::bounded)
}
