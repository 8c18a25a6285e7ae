//! The requests and responses of each operation.

use utoipa::openapi::{
    ContentBuilder, RefOr, Required, ResponseBuilder, Schema,
    path::{Operation as Described, OperationBuilder, Parameter, ParameterBuilder, ParameterIn},
    request_body::{RequestBody, RequestBodyBuilder},
};

use super::{
    headers,
    parameters::{query, searched},
    types::{integer, named, scope, statuses, string, tag, time, uuid},
    usage,
};
use crate::{
    manage::MAX_PAGE_LIMIT,
    rest::{DocumentSettings, Operation},
    store::KeyQuery,
};

const JSON: &str = "application/json";
const MERGE_PATCH: &str = "application/merge-patch+json";
const PROBLEM: &str = "application/problem+json";

pub(super) fn describe(operation: Operation, settings: DocumentSettings) -> Described {
    let described = match operation {
        Operation::IssueKey => begin("issueKey", "Issues a key")
            .parameter(headers::idempotency_key())
            .request_body(Some(body("NewKey", &[JSON], true)))
            .response("201", created("CreatedKey"))
            .response("409", problem("The idempotency key was used before and made the key `key_id`, or the consumer has reached its limit of keys.").header("Location", headers::location())),
        Operation::ListKeys => begin("listKeys", "Lists keys, newest first")
            .parameters(Some(key_filters()))
            .parameters(Some(paging(uuid())))
            .response("200", ok("KeyPage").header("Link", headers::link())),
        Operation::RevokeKeys => begin("revokeKeys", "Revokes all keys of a consumer or with a prefix")
            .request_body(Some(body("Revocations", &[JSON], true)))
            .response("200", ok("Revoked")),
        Operation::GetKey => begin("getKey", "Shows a key")
            .parameter(headers::if_none_match())
            .response("200", ok("Key").header("ETag", headers::etag()))
            .response("304", ResponseBuilder::new().description("The key has not changed.").header("ETag", headers::etag())),
        Operation::UpdateKey => begin("updateKey", "Changes a key by a merge patch (RFC 7396)")
            .parameter(headers::if_match())
            .request_body(Some(body("KeyPatch", &[MERGE_PATCH, JSON], true)))
            .response("200", ok("Key").header("ETag", headers::etag()))
            .response("409", problem("The key is revoked."))
            .response("412", problem("The key has another version.")),
        Operation::RotateKey => begin("rotateKey", "Issues a key to replace another, which keeps working for a grace period")
            .parameter(headers::idempotency_key())
            .request_body(Some(body("Rotation", &[JSON], false)))
            .response("201", created("RotatedKey"))
            .response("409", problem("The key has ended or was already rotated, the idempotency key was used before and made the key `key_id`, or the consumer has reached its limit of keys.").header("Location", headers::location())),
        Operation::RevokeKey => begin("revokeKey", "Revokes a key permanently")
            .request_body(Some(body("Revocation", &[JSON], false)))
            .response("200", ok("Key").header("ETag", headers::etag())),
        Operation::ListEvents => begin("listEvents", "Lists the audit events of a key, newest first")
            .parameters(Some(paging(string().pattern(Some("^[0-9]{1,18}$")))))
            .response("200", ok("EventPage").header("Link", headers::link())),
        Operation::GetUsage => begin("getUsage", "Shows when a key was last used, and how often in each hour or day")
            .parameters(Some(usage::range()))
            .response("200", usage::response("Usage"))
            .response("422", problem("The range is empty or too long."))
            .response("501", problem("The key store does not keep use.")),
        Operation::GetTotalUsage => begin("getTotalUsage", "Shows how often keys were used together in each hour or day")
            .parameter(usage::consumer(settings))
            .parameters(Some(usage::range()))
            .response("200", usage::response("TotalUsage"))
            .response("422", problem("The range is empty or too long."))
            .response("501", problem("The key store does not keep use.")),
        Operation::WhoAmI if settings.is_of_members => begin("whoAmI", "Shows the signed-in member and what it may give to keys")
            .response("200", ok("Member")),
        Operation::WhoAmI => begin("whoAmI", "Shows what the calling key is and may do")
            .response("200", ok("CallingKey")),
        Operation::GetRateLimit => begin("getRateLimit", "Shows the remaining quota of the calling key, without a charge")
            .response("200", ok("Allowance")),
    };
    refusals(operation, described, settings).build()
}

fn begin(id: &str, summary: &str) -> OperationBuilder {
    OperationBuilder::new().operation_id(Some(id)).summary(Some(summary))
}

/// Adds the error responses common to all operations of its kind.
fn refusals(
    operation: Operation,
    described: OperationBuilder,
    settings: DocumentSettings,
) -> OperationBuilder {
    let (unauthorized, forbidden) = if settings.is_of_members {
        (
            problem("The visitor is not signed in. The application may respond otherwise."),
            problem(
                "The member is not allowed to do this, or the request comes from another site.",
            ),
        )
    } else {
        (
            problem("The API key is missing or invalid.")
                .header("WWW-Authenticate", headers::challenge()),
            problem("The API key is not allowed to do this.")
                .header("WWW-Authenticate", headers::challenge()),
        )
    };
    let mut described = described
        .response("400", problem("The request is malformed."))
        .response("401", unauthorized)
        .response("403", forbidden)
        .response("500", problem("The service failed."))
        .response(
            "503",
            problem("The service is temporarily unavailable.")
                .header("Retry-After", headers::retry_after()),
        );
    if operation.is_charged() {
        let detail = match operation {
            Operation::IssueKey => {
                "The quota is exhausted, the consumer has too many concurrent requests, or too \
                 many keys of the consumer were made in an hour."
            }
            Operation::RotateKey => {
                "The quota is exhausted, the consumer has too many concurrent requests, or the \
                 key was rotated too often in an hour."
            }
            _ => "The quota is exhausted, or the consumer has too many concurrent requests.",
        };
        described = described
            .response("429", problem(detail).header("Retry-After", headers::retry_after()));
    }
    if operation.path().contains("{id}") {
        described = described
            .parameter(
                ParameterBuilder::new()
                    .name("id")
                    .parameter_in(ParameterIn::Path)
                    .required(Required::True)
                    .schema(Some(uuid())),
            )
            .response("404", problem("Key not found."));
    }
    if operation.method() == http::Method::GET {
        return described;
    }
    if matches!(operation, Operation::IssueKey | Operation::RevokeKeys) {
        described = described.response("404", problem("Consumer not found."));
    }
    described
        .response("413", problem("The body is longer than 64 KiB."))
        .response("415", problem("The body is not JSON."))
        .response(
            "422",
            problem(
                "A value in the request is invalid, or exceeds the issue policy \
                 (`exceeds_policy`).",
            ),
        )
}

fn ok(schema: &str) -> ResponseBuilder {
    response("Success.", JSON, schema)
}

fn created(schema: &str) -> ResponseBuilder {
    response("The new key, shown only in this response.", JSON, schema)
        .header("Location", headers::location())
        .header("ETag", headers::etag())
}

fn problem(description: &str) -> ResponseBuilder {
    response(description, PROBLEM, "Problem")
}

fn response(description: &str, media_type: &str, schema: &str) -> ResponseBuilder {
    let content = ContentBuilder::new().schema(Some(named(schema))).build();
    ResponseBuilder::new().description(description).content(media_type, content)
}

fn body(schema: &str, media_types: &[&str], required: bool) -> RequestBody {
    let content = || ContentBuilder::new().schema(Some(named(schema))).build();
    let body = media_types
        .iter()
        .fold(RequestBodyBuilder::new(), |body, media_type| body.content(*media_type, content()));
    body.required(Some(if required { Required::True } else { Required::False })).build()
}

fn key_filters() -> [Parameter; 7] {
    [
        query("consumer_id", "Keys of this consumer.", searched()),
        query("status", "Keys with this status.", statuses()),
        query("scope", "Keys with this scope.", scope()),
        query("tag", "Keys with this tag.", tag()),
        query("prefix", "Keys with exactly this prefix.", searched()),
        query("unused_since", "Keys issued before this time and not used since.", time()),
        query("expires_before", "Keys that expire before this time, or have expired.", time()),
    ]
}

fn paging(cursor: impl Into<RefOr<Schema>>) -> [Parameter; 2] {
    let limit = integer(1, MAX_PAGE_LIMIT.into()).default(Some(KeyQuery::new().limit.into()));
    [
        query("limit", "The maximum number of entries.", limit),
        query("cursor", "The start of the page: `next` of the previous page.", cursor),
    ]
}
