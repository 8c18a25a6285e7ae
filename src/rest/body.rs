use std::{fmt, mem};

use axum::{
    body::{self, Bytes},
    extract::{
        DefaultBodyLimit, FromRequest, Request,
        rejection::{BytesRejection, FailedToBufferBody},
    },
};
use http::{HeaderMap, StatusCode, header::CONTENT_TYPE};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};
use serde_path_to_error::{Path, Segment};

use super::error::ApiError;

/// The maximum length of a body. A key with the most scopes and metadata takes half of it.
pub(super) const MAX_LEN: usize = 64 * 1024;

/// A JSON object. Unknown and duplicate members are errors.
pub(crate) struct Body<T>(pub(crate) T);

/// A JSON object, or no body, for which `T` has its default.
pub(super) struct OptionalBody<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let (headers, bytes) = read(request).await?;
        check_type(&headers)?;
        Ok(Self(parse(&bytes)?))
    }
}

impl<S: Send + Sync, T: DeserializeOwned + Default> FromRequest<S> for OptionalBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let (headers, bytes) = read(request).await?;
        if bytes.is_empty() && !headers.contains_key(CONTENT_TYPE) {
            return Ok(Self(T::default()));
        }
        check_type(&headers)?;
        Ok(Self(parse(&bytes)?))
    }
}

async fn read(mut request: Request) -> Result<(HeaderMap, Bytes), ApiError> {
    let headers = mem::take(request.headers_mut());
    Ok((headers, bytes(request.into_body()).await?))
}

/// Reads a body of at most [`MAX_LEN`].
pub(super) async fn bytes(body: body::Body) -> Result<Bytes, ApiError> {
    bytes_up_to(body, MAX_LEN, "The body is longer than 64 KiB.").await
}

/// Reads a body of at most `max` bytes; `too_long` is the detail of the error otherwise.
pub(crate) async fn bytes_up_to(
    body: body::Body,
    max: usize,
    too_long: &'static str,
) -> Result<Bytes, ApiError> {
    let mut request = Request::new(body);
    DefaultBodyLimit::max(max).apply(&mut request);
    match Bytes::from_request(request, &()).await {
        Ok(bytes) => Ok(bytes),
        Err(BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_))) => {
            Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", too_long))
        }
        Err(_) => Err(malformed("The body could not be read.")),
    }
}

/// Accepts `application/json` and `application/merge-patch+json`.
fn check_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    if let (Some(only), None) = (types.next(), types.next())
        && let Ok(only) = only.to_str()
    {
        let essence = only.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let rest = essence.strip_prefix("application/");
        if rest.is_some_and(|rest| rest == "json" || rest == "merge-patch+json") {
            return Ok(());
        }
    }
    let detail = "Send JSON with `Content-Type: application/json`.";
    Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail)
        .at("Content-Type"))
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    // serde would also accept an array of the members for a struct.
    if bytes.trim_ascii_start().first().is_some_and(|&first| first != b'{' && is_value(first)) {
        return Err(malformed("The body must be a JSON object.").at(""));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let field = pointer(error.path());
        malformed(describe(error.inner())).at(field)
    })?;
    match json.end() {
        Ok(()) => Ok(value),
        Err(_) => Err(malformed("The body must end after the JSON object.")),
    }
}

fn is_value(first: u8) -> bool {
    b"[\"-ntf".contains(&first) || first.is_ascii_digit()
}

fn malformed(detail: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, "invalid_body", detail.into())
}

/// The path as a JSON pointer (RFC 6901).
fn pointer(path: &Path) -> String {
    let mut pointer = String::new();
    for segment in path.iter() {
        match segment {
            Segment::Seq { index } => pointer.push_str(&format!("/{index}")),
            Segment::Map { key } => {
                pointer.push('/');
                pointer.push_str(&key.replace('~', "~0").replace('/', "~1"));
            }
            Segment::Enum { .. } | Segment::Unknown => {}
        }
    }
    pointer
}

/// What was wrong, without echoing what was sent: it may be a key in the wrong place.
fn describe(error: &serde_json::Error) -> String {
    let at = format!("line {}, column {}", error.line(), error.column());
    // serde_json does not classify this error.
    if error.to_string().starts_with("recursion limit exceeded") {
        return format!("The body must not be nested deeper than 128 levels ({at}).");
    }
    if !error.is_data() {
        return format!("The body is not valid JSON at {at}.");
    }
    let message = error.to_string();
    let message = message.split(" at line ").next().unwrap_or_default();
    match message.split_once(", expected ") {
        Some((sent, expected)) if sent.starts_with("unknown field") => {
            format!("Unknown member: expected {expected}.")
        }
        Some((_, expected)) => format!("Must be {expected}."),
        None if message.starts_with("unknown field") => "Unknown member.".into(),
        None => format!("Invalid value: {message}, at {at}."),
    }
}

/// Distinguishes an absent member from `null`, which is an error unless `T` accepts it.
pub(super) fn present<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    T::deserialize(deserializer).map(Some)
}

/// A JSON object without duplicate members at any depth.
#[derive(Clone, Debug, Default)]
pub(super) struct Object(pub(super) Map<String, Value>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Strict::deserialize(deserializer)?.0 {
            Value::Object(members) => Ok(Self(members)),
            _ => Err(D::Error::custom("not a JSON object")),
        }
    }
}

struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(Strict(value)) = values.next_element()? {
            array.push(value);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some(name) = entries.next_key::<String>()? {
            if members.contains_key(&name) {
                return Err(A::Error::custom("duplicate member"));
            }
            let Strict(value) = entries.next_value()?;
            members.insert(name, value);
        }
        Ok(Value::Object(members))
    }
}
