//! Schemas of request and response bodies.

use serde_json::Value;
use utoipa::openapi::{
    ComponentsBuilder, RefOr, Schema,
    schema::{AnyOfBuilder, ArrayBuilder, ObjectBuilder, OneOfBuilder, SchemaType, Type},
};

use super::{
    places::{kind, networks, origins, tags},
    types::{
        boolean, closed, format, free, integer, named, named_text, null, or_null, record, scope,
        statuses, string, time, uuid,
    },
    usage, whoami,
};
use crate::{
    rate_limit::RateLimits,
    record::{KeyAction, Scopes},
    rest::{DocumentSettings, quotas::MAX_WINDOW as MAX_WINDOW_ASKED},
};

/// A scope of RFC 6749 §3.3 without a comma.
const NEW_SCOPE: &str = r"^[\x21\x23-\x2b\x2d-\x5b\x5d-\x7e]{1,128}$";
/// Names of quotas and plans.
const NAME: &str = "^[A-Za-z0-9._-]{1,64}$";
const DURATION: &str = "^[0-9]{1,9}[smhdw]$";
/// A duration other than zero, of at most [`DURATION_LEN`] characters.
const LIFETIME: &str = "^0*[1-9][0-9]*[smhdw]$";
const DURATION_LEN: usize = 10;
/// The milliseconds of 146 years, the longest time in which a bucket may refill.
const MAX_WINDOW: i64 = 4_611_686_018_427;

fn expires() -> AnyOfBuilder {
    expires_after(DURATION)
}

fn expires_after(duration: &str) -> AnyOfBuilder {
    AnyOfBuilder::new()
        .item(string().enum_values(Some(["never"])))
        .item(time())
        .item(string().pattern(Some(duration)).max_length(Some(DURATION_LEN)))
        .description(Some("When the key expires: never, at an instant, or after a duration."))
        .examples(["30d", "never"])
}

fn scopes() -> ArrayBuilder {
    ArrayBuilder::new().items(scope()).max_items(Some(Scopes::MAX_SCOPES))
}

/// The scopes in a request.
fn new_scopes() -> ArrayBuilder {
    let scope = string().pattern(Some(NEW_SCOPE));
    ArrayBuilder::new().items(scope).max_items(Some(Scopes::MAX_SCOPES))
}

/// The lifetime of a new key, which is not zero.
fn new_expires() -> AnyOfBuilder {
    expires_after(LIFETIME)
}

fn quotas(schema: &str) -> ArrayBuilder {
    ArrayBuilder::new().items(named(schema)).max_items(Some(RateLimits::MAX_QUOTAS)).description(
        Some(
            "The key's own quotas, in addition to those of its plan; at most 8 including those \
             of the plan. An empty list means no limit. Without a list and without a plan, the \
             service's default applies.",
        ),
    )
}

/// The quotas of a key.
fn quotas_or_null() -> AnyOfBuilder {
    AnyOfBuilder::new().item(quotas("Quota")).item(null())
}

/// The quotas in a request.
fn new_quotas_or_null() -> AnyOfBuilder {
    AnyOfBuilder::new().item(quotas("NewQuota")).item(null())
}

fn or_nothing(array: ArrayBuilder) -> AnyOfBuilder {
    AnyOfBuilder::new().item(array).item(null())
}

fn plan_or_null() -> ObjectBuilder {
    or_null(string().pattern(Some(NAME)), Type::String)
        .description(Some("The plan of the key: a set of limits for many keys."))
}

fn page(items: &str, schema: &str) -> ObjectBuilder {
    record(vec![
        (items, ArrayBuilder::new().items(named(schema)).into()),
        (
            "next",
            or_null(string(), Type::String)
                .description(Some(
                    "The `cursor` of the next page. A page may have fewer entries than requested \
                     even if there is another page.",
                ))
                .into(),
        ),
    ])
    .property(
        "invalid",
        ArrayBuilder::new().items(named("InvalidRow")).description(Some(
            "Rows of this page that exceed the bounds of their columns, as text. Absent if there \
             are none.",
        )),
    )
}

pub(super) fn components(settings: DocumentSettings) -> ComponentsBuilder {
    let new_key = if settings.is_own_account {
        let own = "The consumer of the key. Default: the caller's, if there is only one.";
        let own = or_null(named_text(), Type::String).description(Some(own));
        closed().property("consumer_id", own)
    } else {
        closed()
            .property("consumer_id", named_text().description(Some("The consumer of the key.")))
            .required("consumer_id")
    };
    let new_key = new_key
        .property("expires", new_expires())
        .required("expires")
        .property("name", or_null(named_text(), Type::String))
        .property("scopes", or_nothing(new_scopes()))
        .property("rate_limits", new_quotas_or_null())
        .property("plan", plan_or_null())
        .property("metadata", or_null(free(), Type::Object).description(Some(METADATA)))
        .property("networks", or_nothing(networks()))
        .property("tags", or_nothing(tags()))
        .property("kind", AnyOfBuilder::new().item(kind()).item(null()))
        .property("origins", or_nothing(origins()))
        .property("not_before", or_null(time(), Type::String))
        .property("created_by", or_null(named_text(), Type::String))
        .property(
            "reason",
            or_null(named_text(), Type::String).description(Some("For the audit.")),
        );
    let patch = closed()
        .property("name", or_null(named_text(), Type::String))
        .property("scopes", new_scopes())
        .property("rate_limits", new_quotas_or_null())
        .property("plan", plan_or_null())
        .property("metadata", or_null(free(), Type::Object).description(Some(METADATA)))
        .property("networks", networks())
        .property("tags", tags())
        .property("origins", origins().min_items(Some(1)))
        .property("expires", expires())
        .property("is_active", boolean())
        .property(
            "reason",
            or_null(named_text(), Type::String).description(Some("For the audit.")),
        );
    let rotation = closed()
        .property(
            "grace",
            or_null(string().pattern(Some(DURATION)), Type::String)
                .default(Some(Value::from("24h")))
                .description(Some(
                    "How long the old key keeps working, but never past its own expiry.",
                )),
        )
        .property("expires", new_expires().item(null()))
        .property(
            "reason",
            or_null(named_text(), Type::String).description(Some("For the audit.")),
        );
    let reason =
        || or_null(named_text(), Type::String).description(Some("For the audit and the key."));
    let revocations = OneOfBuilder::new()
        .item(
            closed()
                .property("consumer_id", named_text())
                .required("consumer_id")
                .property("reason", reason()),
        )
        .item(
            closed()
                .property("prefix", named_text())
                .required("prefix")
                .property("reason", reason()),
        );
    whoami::component(settings)
        .schema("Allowance", record(vec![("quotas", ArrayBuilder::new().items(left()).into())]))
        .schema("CreatedKey", key().property("key", secret()).required("key"))
        .schema("Event", event())
        .schema("EventPage", page("events", "Event"))
        .schema("InvalidRow", invalid_row())
        .schema("Key", key())
        .schema("KeyPage", page("keys", "Key"))
        .schema("KeyPatch", patch)
        .schema("NewKey", new_key)
        .schema("NewQuota", quota_to_have(asked_window()))
        .schema("Problem", problem())
        .schema("Quota", quota_to_have(integer(1, MAX_WINDOW)))
        .schema("Revocation", closed().property("reason", reason()))
        .schema("Revocations", revocations)
        .schema(
            "Revoked",
            record(vec![
                ("revoked", integer(0, i64::MAX).into()),
                ("skipped", integer(0, i64::MAX).into()),
            ]),
        )
        .schema(
            "RotatedKey",
            key()
                .property("key", secret())
                .required("key")
                .property("previous", named("Key"))
                .required("previous"),
        )
        .schema("Rotation", rotation)
        .schema("TotalUsage", usage::of_keys())
        .schema("Usage", usage::of_key())
        .schema("UsageBucket", usage::bucket())
}

const METADATA: &str = "Data of the application: at most 16 KiB, with numbers counted as written \
    out without exponents, and 32 levels, without the character U+0000.";

fn secret() -> ObjectBuilder {
    string().description(Some("The key itself, shown only in this response."))
}

fn key() -> ObjectBuilder {
    record(vec![
        ("id", uuid().into()),
        ("consumer_id", string().into()),
        ("name", or_null(string(), Type::String).into()),
        ("hint", string().description(Some("The beginning and the end of the key.")).into()),
        ("prefix", string().into()),
        ("scopes", scopes().into()),
        ("rate_limits", quotas_or_null().into()),
        ("plan", plan_or_null().into()),
        ("metadata", free().into()),
        ("networks", networks().into()),
        ("tags", tags().into()),
        ("kind", kind().into()),
        ("origins", origins().into()),
        ("status", statuses().into()),
        ("is_active", boolean().into()),
        ("created_at", time().into()),
        ("created_by", or_null(string(), Type::String).into()),
        ("not_before", or_null(time(), Type::String).into()),
        ("expires_at", or_null(time(), Type::String).into()),
        ("revoked_at", or_null(time(), Type::String).into()),
        ("revoked_reason", or_null(string(), Type::String).into()),
        ("rotated_from", or_null(uuid(), Type::String).into()),
        ("rotated_at", or_null(time(), Type::String).into()),
        ("version", integer(1, i64::MAX).into()),
    ])
    .property(
        "last_used_at",
        or_null(time(), Type::String)
            .description(Some("The last recorded use. Absent from responses to changes.")),
    )
}

/// 400 days.
fn asked_window() -> ObjectBuilder {
    integer(1, i64::try_from(MAX_WINDOW_ASKED.as_millis()).unwrap_or(MAX_WINDOW))
        .description(Some("At most 400 days; the time to refill a burst is limited to the same."))
}

/// The members common to all quotas.
fn quota(window: ObjectBuilder) -> ObjectBuilder {
    let limit = integer(1, u32::MAX.into());
    record(vec![
        ("name", string().pattern(Some(NAME)).into()),
        ("limit", limit.description(Some("Requests in each window.")).into()),
        ("window_ms", window.into()),
    ])
}

fn burst() -> ObjectBuilder {
    integer(1, u32::MAX.into()).description(Some("Requests allowed at once."))
}

fn counted_per() -> ObjectBuilder {
    string()
        .enum_values(Some(["key", "consumer"]))
        .description(Some("Whether each key is counted, or all keys of the consumer together."))
}

fn sliding() -> ObjectBuilder {
    boolean().description(Some(
        "A sliding window: never more than the limit in any window, which may be used all at \
         once. Requires a window of at least 100 ms, a limit of at most 2147483647, and no burst \
         other than the limit.",
    ))
}

fn quota_to_have(window: ObjectBuilder) -> ObjectBuilder {
    let strict = "Never more than the limit in any window: requests beyond the burst are paced.";
    quota(window)
        .property(
            "burst",
            burst().description(Some("Requests allowed at once. Default: the limit.")),
        )
        .property("strict", boolean().default(Some(false.into())).description(Some(strict)))
        .property("sliding", sliding().default(Some(false.into())))
        .property("counted_per", counted_per().default(Some("key".into())))
}

fn left() -> ObjectBuilder {
    quota(integer(1, MAX_WINDOW))
        .property("burst", burst())
        .required("burst")
        .property("sliding", sliding())
        .required("sliding")
        .property("counted_per", counted_per())
        .required("counted_per")
        .property("remaining", integer(0, u32::MAX.into()))
        .required("remaining")
        .property("next_unit_in_ms", integer(0, i64::MAX))
        .required("next_unit_in_ms")
}

fn event() -> ObjectBuilder {
    let nullable = || or_null(string(), Type::String);
    record(vec![
        ("id", integer(0, i64::MAX).into()),
        ("at", time().into()),
        ("action", string().enum_values(Some(KeyAction::ALL.map(KeyAction::as_str))).into()),
        ("key_id", or_null(uuid(), Type::String).into()),
        ("consumer_id", nullable().into()),
        ("actor", string().into()),
        ("origin", nullable().into()),
        ("reason", nullable().into()),
        (
            "changes",
            free()
                .schema_type(SchemaType::from_iter([Type::Object, Type::String, Type::Null]))
                .description(Some(
                    "`from` and `to` of each changed field. For a denied attempt, the attempt \
                     and its `target`, if the caller may see it; for a leak, where the key was \
                     found. A string if the stored value is not JSON or is nested too deep.",
                ))
                .into(),
        ),
    ])
}

fn invalid_row() -> ObjectBuilder {
    let values = ObjectBuilder::new()
        .schema_type(Type::Object)
        .additional_properties(Some(RefOr::<Schema>::from(string())))
        .description(Some("The columns as text, each cut after 16 KiB."));
    record(vec![
        ("id", string().into()),
        ("problem", string().description(Some("What is wrong, and in which column.")).into()),
        ("values", values.into()),
    ])
}

fn problem() -> ObjectBuilder {
    record(vec![
        ("type", format("uri-reference").into()),
        ("title", string().into()),
        ("status", integer(400, 599).into()),
        ("detail", string().into()),
        ("code", string().into()),
    ])
    .property("field", string())
    .property("key_id", uuid())
    .property("scope", string())
    .property("violated-policies", ArrayBuilder::new().items(string()))
}
