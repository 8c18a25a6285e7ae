//! Types that schemas are made of.

use utoipa::openapi::{
    Ref, RefOr, Schema,
    schema::{AdditionalProperties, ObjectBuilder, SchemaFormat, SchemaType, Type},
};

use crate::record::{KeyStatus, TextRule};

/// RFC 6749 §3.3, with a maximum length.
const SCOPE: &str = r"^[\x21\x23-\x5b\x5d-\x7e]{1,128}$";
/// A tag, without spaces, commas, quotes and backslashes.
const TAG: &str = r"^[\x21\x23-\x26\x28-\x2b\x2d-\x5b\x5d-\x5f\x61-\x7e]{1,64}$";
/// No control characters, and none that change the direction of text or end a line.
const TEXT: &str = r"^[^\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]*$";

pub(super) fn named(name: &str) -> RefOr<Schema> {
    Ref::from_schema_name(name).into()
}

pub(super) fn string() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String)
}

pub(super) fn integer(from: i64, to: i64) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(from)).maximum(Some(to))
}

pub(super) fn format(name: &str) -> ObjectBuilder {
    string().format(Some(SchemaFormat::Custom(name.to_owned())))
}

pub(super) fn time() -> ObjectBuilder {
    format("date-time")
}

pub(super) fn uuid() -> ObjectBuilder {
    format("uuid")
}

pub(super) fn scope() -> ObjectBuilder {
    string().pattern(Some(SCOPE))
}

/// A tag of a key.
pub(super) fn tag() -> ObjectBuilder {
    string().pattern(Some(TAG))
}

pub(super) fn statuses() -> ObjectBuilder {
    string().enum_values(Some(KeyStatus::ALL.map(KeyStatus::as_str)))
}

pub(super) fn boolean() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::Boolean)
}

pub(super) fn or_null(schema: ObjectBuilder, kind: Type) -> ObjectBuilder {
    schema.schema_type(SchemaType::from_iter([kind, Type::Null]))
}

pub(super) fn null() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::Null)
}

/// A text that clients send.
pub(super) fn text() -> ObjectBuilder {
    string().max_length(Some(TextRule::SENT.max())).pattern(Some(TEXT))
}

/// The same, but not empty.
pub(super) fn named_text() -> ObjectBuilder {
    text().min_length(Some(1))
}

pub(super) fn closed() -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::Object)
        .additional_properties(Some(AdditionalProperties::FreeForm(false)))
}

pub(super) fn free() -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::Object)
        .additional_properties(Some(AdditionalProperties::FreeForm(true)))
}

/// A closed object whose members are all required.
pub(super) fn record(members: Vec<(&str, RefOr<Schema>)>) -> ObjectBuilder {
    members
        .into_iter()
        .fold(closed(), |record, (name, schema)| record.property(name, schema).required(name))
}
