//! Headers of requests and responses.

use utoipa::openapi::{
    HeaderBuilder, ObjectBuilder, Required,
    header::Header,
    path::{Parameter, ParameterBuilder, ParameterIn},
};

use super::types::{integer, string};
use crate::manage::MAX_IDEMPOTENCY_KEY;

pub(super) fn location() -> Header {
    header("The path of the key.", string())
}

pub(super) fn etag() -> Header {
    header("The version of the key.", string().pattern(Some("^\"[0-9]+\"$")))
}

pub(super) fn link() -> Header {
    header("The next page, if there is one: `rel=\"next\"` (RFC 8288).", string())
}

pub(super) fn challenge() -> Header {
    header("The required credentials (RFC 6750).", string())
}

pub(super) fn retry_after() -> Header {
    header("Seconds to wait before a retry.", integer(1, i64::MAX))
}

fn header(
    description: &str,
    schema: impl Into<utoipa::openapi::RefOr<utoipa::openapi::Schema>>,
) -> Header {
    HeaderBuilder::new().description(Some(description)).schema(Some(schema)).build()
}

pub(super) fn if_match() -> Parameter {
    let description = "Changes the key only if it has this version; otherwise 412.";
    parameter("If-Match", description, string())
}

pub(super) fn if_none_match() -> Parameter {
    let description = "Returns 304 if the key still has this version.";
    parameter("If-None-Match", description, string())
}

pub(super) fn idempotency_key() -> Parameter {
    let description = "Makes the request safe to repeat: a repeated request makes no second key.";
    let pattern = format!(r"^[\x21-\x7e]{{1,{MAX_IDEMPOTENCY_KEY}}}$");
    parameter("Idempotency-Key", description, string().pattern(Some(pattern)))
}

fn parameter(name: &str, description: &str, schema: ObjectBuilder) -> Parameter {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(description))
        .schema(Some(schema))
        .build()
}
