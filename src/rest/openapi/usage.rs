//! Parameters and schemas of counted use.

use utoipa::openapi::{
    ContentBuilder, Response, ResponseBuilder,
    path::Parameter,
    schema::{ArrayBuilder, ObjectBuilder, Type},
};

use super::{
    parameters::{query, searched},
    types::{integer, named, or_null, record, string, time, uuid},
};
use crate::rest::DocumentSettings;

pub(super) fn range() -> [Parameter; 3] {
    let by = string().enum_values(Some(["hour", "day"])).default(Some("day".into()));
    [
        query("by", "The length of the buckets.", by),
        query(
            "from",
            "The first time, rounded down to the beginning of its bucket. Default: 24 hours before \
             `to` by hour, 30 days by day. At most 35 days before `to` by hour, and 3,660 by day.",
            time(),
        ),
        query("to", "The end, rounded up. Default: now.", time()),
    ]
}

pub(super) fn consumer(settings: DocumentSettings) -> Parameter {
    let description = if settings.is_own_account {
        "Use of the keys of this consumer. Default: of all that the caller may see."
    } else {
        "Use of the keys of this consumer. Default: of all consumers that the caller may see."
    };
    query("consumer_id", description, searched())
}

pub(super) fn response(schema: &str) -> Response {
    let json = ContentBuilder::new().schema(Some(named(schema))).build();
    let csv = string().examples(["from,admitted,limited,forbidden,refused,units\r\n"]);
    let csv = ContentBuilder::new().schema(Some(csv)).build();
    ResponseBuilder::new()
        .description("The buckets with use. Those without use are left out.")
        .content("application/json", json)
        .content("text/csv", csv)
        .build()
}

/// The use of a key.
pub(super) fn of_key() -> ObjectBuilder {
    usage(record(vec![
        ("key_id", uuid().into()),
        ("last_used_at", or_null(time(), Type::String).into()),
    ]))
}

/// The use of several keys.
pub(super) fn of_keys() -> ObjectBuilder {
    let consumer_id = or_null(string(), Type::String);
    let description = "The consumer that was asked for; null if none was.";
    usage(record(vec![("consumer_id", consumer_id.description(Some(description)).into())]))
}

fn usage(subject: ObjectBuilder) -> ObjectBuilder {
    let members = [
        ("by", string().enum_values(Some(["hour", "day"]))),
        ("from", time().description(Some("The beginning of the first bucket."))),
        ("to", time().description(Some("The end of the last bucket."))),
    ];
    members
        .into_iter()
        .fold(subject, |usage, (name, schema)| usage.property(name, schema).required(name))
        .property("buckets", ArrayBuilder::new().items(named("UsageBucket")))
        .required("buckets")
}

pub(super) fn bucket() -> ObjectBuilder {
    let count = |what| integer(i64::MIN, i64::MAX).description(Some(what));
    record(vec![
        ("from", time().description(Some("The beginning of the hour or day, in UTC.")).into()),
        ("admitted", count("Requests that were let in.").into()),
        ("limited", count("Requests beyond a rate limit: 429.").into()),
        ("forbidden", count("Requests that the key was not allowed to make: 403.").into()),
        ("refused", count("Requests while the key was not valid: 401.").into()),
        (
            "units",
            count(
                "Rate limit units that the requests cost. As every count, it may be negative in a \
                 short time, because corrections are counted when they are made.",
            )
            .into(),
        ),
    ])
}
