use std::time::SystemTime;

use serde_json::{Map, Value, json};

use crate::record::{KeyRecord, Scope, rfc3339};

/// The changed fields as a JSON object; for a new key all fields that are set. `overridden` is a
/// [`policy_override`].
pub(super) fn changes(
    before: Option<&KeyRecord>,
    after: &KeyRecord,
    overridden: Option<Value>,
) -> Option<String> {
    let mut changes = Map::new();
    changes.extend(overridden.map(|overridden| ("policy_override".to_owned(), overridden)));
    let before = before.map(fields);
    for (at, (field, to)) in fields(after).into_iter().enumerate() {
        let from = before.as_ref().and_then(|before| before.get(at));
        match from {
            None if !to.is_null() => changes.insert(field.to_owned(), json!({ "to": to })),
            Some((_, from)) if *from != to => {
                changes.insert(field.to_owned(), json!({ "from": from, "to": to }))
            }
            _ => None,
        };
    }
    (!changes.is_empty()).then(|| Value::Object(changes).to_string())
}

/// Why the policy was overridden, and the bounds that the key exceeds.
pub(super) fn policy_override(reason: &str, exceeded: &[&str]) -> Value {
    json!({ "to": { "reason": reason, "exceeded": exceeded } })
}

/// The fields of a key that the audit shows: all except its hash and the fields that never change.
pub(super) fn fields(record: &KeyRecord) -> [(&'static str, Value); 16] {
    let scopes: Vec<_> = record.scopes.iter().map(Scope::as_str).collect();
    [
        ("name", json!(record.name)),
        ("scopes", json!(scopes)),
        ("rate_limits", json!(record.rate_limits)),
        ("plan", json!(record.plan)),
        ("metadata", record.metadata.to_value()),
        ("networks", unless(record.networks.is_empty(), &record.networks)),
        ("tags", unless(record.tags.is_empty(), &record.tags)),
        ("origins", unless(record.origins.is_empty(), &record.origins)),
        ("kind", json!(record.kind.as_str())),
        ("is_active", json!(record.is_active)),
        ("not_before", time(record.not_before)),
        ("expires_at", time(record.expires_at)),
        ("revoked_at", time(record.revoked_at)),
        ("rotated_at", time(record.rotated_at)),
        ("rotated_from", json!(record.rotated_from.map(|id| id.to_string()))),
        ("key_prefix", json!(record.key_prefix)),
    ]
}

/// Null for an empty list, as the databases store it.
fn unless(is_empty: bool, list: &impl serde::Serialize) -> Value {
    if is_empty { Value::Null } else { json!(list) }
}

/// The change of a plan, as JSON. Limits are JSON, `None` without a plan.
pub(super) fn plan_changes(name: &str, before: Option<&str>, after: Option<&str>) -> String {
    let (mut names, mut limits) = (Map::new(), Map::new());
    for (side, json) in [("from", before), ("to", after)] {
        let Some(json) = json else { continue };
        names.insert(side.to_owned(), json!(name));
        // Limits that are not JSON are shown as text.
        let value = serde_json::from_str(json).unwrap_or_else(|_| json!(json));
        limits.insert(side.to_owned(), value);
    }
    json!({ "name": names, "rate_limits": limits }).to_string()
}

/// The changes of a denied attempt, as shown to a caller that sees only keys of some consumers: the
/// target is removed unless it is one of these keys.
pub(super) fn shown_to(is_seen: impl Fn(&str) -> bool, changes: &str) -> Option<String> {
    let Ok(Value::Object(mut changes)) = serde_json::from_str(changes) else { return None };
    let target = changes.get("target").and_then(|target| target.get("consumer_id"));
    if !target.and_then(Value::as_str).is_some_and(is_seen) {
        changes.remove("target");
    }
    Some(Value::Object(changes).to_string())
}

pub(super) fn time(at: Option<SystemTime>) -> Value {
    json!(at.map(rfc3339))
}
