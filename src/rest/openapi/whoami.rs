//! The schema of who the caller is.

use utoipa::openapi::{
    Components, ComponentsBuilder,
    schema::{AnyOfBuilder, ArrayBuilder, ObjectBuilder, Type},
};

use super::types::{boolean, integer, named, null, or_null, record, scope, string, time, uuid};
use crate::rest::DocumentSettings;

pub(super) fn component(settings: DocumentSettings) -> ComponentsBuilder {
    if settings.is_of_members {
        Components::builder().schema("Grant", grant()).schema("Member", member())
    } else {
        Components::builder().schema("CallingKey", calling_key())
    }
}

fn or_nothing(array: ArrayBuilder) -> AnyOfBuilder {
    AnyOfBuilder::new().item(array).item(null())
}

fn calling_key() -> ObjectBuilder {
    let quotas = ArrayBuilder::new()
        .items(named("Quota"))
        .description(Some("The quotas in force; none if there is no limit."));
    record(vec![
        ("key_id", uuid().into()),
        ("consumer_id", string().into()),
        ("name", or_null(string(), Type::String).into()),
        ("scopes", ArrayBuilder::new().items(scope()).into()),
        ("expires_at", or_null(time(), Type::String).into()),
        ("plan", or_null(string(), Type::String).into()),
        ("quotas", quotas.into()),
    ])
}

fn member() -> ObjectBuilder {
    let consumers = or_nothing(ArrayBuilder::new().items(string()))
        .description(Some("The consumers whose keys it manages; null for all."));
    let grant = AnyOfBuilder::new()
        .item(named("Grant"))
        .item(null())
        .description(Some("What it may give to keys; null for nothing."));
    record(vec![
        ("member", string().into()),
        ("consumers", consumers.into()),
        ("grant", grant.into()),
    ])
}

fn grant() -> ObjectBuilder {
    let scopes = or_nothing(ArrayBuilder::new().items(scope()))
        .description(Some("The scopes that a key may have; null for all."));
    let lifetime = or_null(integer(0, i64::MAX), Type::Integer)
        .description(Some("Seconds from issue to expiry; null for no bound."));
    let plans = or_nothing(ArrayBuilder::new().items(or_null(string(), Type::String))).description(
        Some("The plans that a key may be on, null among them for no plan; null for any."),
    );
    let quotas = or_nothing(ArrayBuilder::new().items(named("Quota"))).description(Some(
        "The quotas within which a key may have its own; empty for any, null for none.",
    ));
    record(vec![
        ("scopes", scopes.into()),
        ("max_lifetime_s", lifetime.into()),
        ("plans", plans.into()),
        ("rate_limits", quotas.into()),
        ("metadata", boolean().description(Some("Whether a key may have metadata.")).into()),
    ])
}
