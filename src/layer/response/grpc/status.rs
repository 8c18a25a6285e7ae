use std::{
    borrow::Cow,
    collections::HashMap,
    error::Error as _,
    sync::{Arc, OnceLock},
    time::Duration,
};

use http::{
    Extensions, HeaderMap, HeaderValue, Response, StatusCode,
    header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
};
use tonic::{Code, Status, metadata::MetadataMap};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{
    auth::{Rejection, RejectionKind},
    layer::{
        KeyEndedError,
        response::{challenges::scope_list, headers::ceil_secs, status_codes::spec},
    },
};

/// The `domain` of every `ErrorInfo`. An infrastructure that several services share has one name
/// (google/rpc/error_details.proto).
const DOMAIN: &str = "tower-api-key";

/// When a client may retry, in milliseconds (gRFC A6).
const RETRY_PUSHBACK: &str = "grpc-retry-pushback-ms";

const PREFIX: &[u8] = b"application/grpc";
const WEB: &[u8] = b"-web";

/// The content type of a request or response of gRPC or gRPC-Web.
pub(in crate::layer) fn content_type(headers: &HeaderMap) -> Option<&HeaderValue> {
    headers.get(CONTENT_TYPE).filter(|value| {
        let rest = value.as_bytes().get(PREFIX.len()..).unwrap_or_default();
        let is_grpc = matches!(rest, [] | [b'+' | b';', ..]) || has_prefix(rest, WEB);
        is_grpc && has_prefix(value.as_bytes(), PREFIX)
    })
}

/// Whether a response ends with the trailers of gRPC. gRPC-Web has them in its body.
pub(in crate::layer) fn ends_with_trailers(headers: &HeaderMap) -> bool {
    let is_web = |value: &HeaderValue| {
        value.as_bytes().get(PREFIX.len()..).is_some_and(|rest| has_prefix(rest, WEB))
    };
    content_type(headers).is_some_and(|value| !is_web(value))
}

fn has_prefix(text: &[u8], prefix: &[u8]) -> bool {
    text.get(..prefix.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(prefix))
}

/// The response to a gRPC request: no body, and a head that is also the trailers.
///
/// It has no `WWW-Authenticate` and `Retry-After`: they explain an HTTP status, and this one is always
/// 200. For that reason caches must be told not to store it: any request can have the content type.
pub(in crate::layer) fn response<B>(
    rejection: &Rejection,
    reason: Option<&'static str>,
    content_type: HeaderValue,
    body: B,
) -> Response<B> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, content_type);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    match cached(rejection).filter(|_| reason.is_none()) {
        Some(cached) => headers.extend(cached.clone()),
        None => write(&status(rejection, reason), headers),
    }
    response
}

/// The headers of a rejection without details of its own. A flood of bad keys needs many.
fn cached(rejection: &Rejection) -> Option<&'static HeaderMap> {
    /// Kinds declared after the last one here are not cached.
    const KINDS: usize = RejectionKind::Internal as usize + 1;
    static HEADERS: [OnceLock<HeaderMap>; KINDS] = [const { OnceLock::new() }; KINDS];
    let kind = rejection.kind();
    let varies = rejection.advice().is_some()
        || !rejection.required_scopes().is_empty()
        || matches!(kind, RejectionKind::RateLimited | RejectionKind::TooManyFailures);
    let headers = HEADERS.get(kind as usize).filter(|_| !varies)?;
    Some(headers.get_or_init(|| headers_of(&status(&Rejection::new(kind), None))))
}

fn headers_of(status: &Status) -> HeaderMap {
    let mut headers = HeaderMap::new();
    write(status, &mut headers);
    headers
}

fn write(status: &Status, headers: &mut HeaderMap) {
    // Cannot fail: the message is percent-encoded, the details are base64.
    let _ = status.add_header(headers);
}

/// The content type of a request, if it is of gRPC, for the response to it.
pub(in crate::layer) struct RequestType(Option<HeaderValue>);

impl RequestType {
    pub(in crate::layer) fn of(request: &HeaderMap) -> Self {
        Self(content_type(request).cloned())
    }

    /// Makes gRPC's response of a rejection that a handler answered as over HTTP, because it did
    /// not know its request: that of [`Consumer::require`](crate::Consumer::require), for instance.
    pub(in crate::layer) fn translate<B>(
        &self,
        handled: &mut Response<B>,
        empty_body: impl FnOnce() -> B,
    ) {
        if let Some(requested) = &self.0
            && let Some(rejection) = handled.extensions().get::<Rejection>()
            && content_type(handled.headers()).is_none()
        {
            let (head, body) =
                response(rejection, None, requested.clone(), empty_body()).into_parts();
            *handled.status_mut() = head.status;
            *handled.body_mut() = body;
            for of_http in [CONTENT_LENGTH, RETRY_AFTER, WWW_AUTHENTICATE] {
                handled.headers_mut().remove(of_http);
            }
            handled.headers_mut().extend(head.headers);
        }
    }
}

/// The rejection that a tonic handler returned as an error.
pub(in crate::layer) fn rejection(response: &Extensions) -> Option<&Rejection> {
    response.get::<Status>()?.source()?.downcast_ref()
}

/// The trailers of a stream that ends with its key.
pub(in crate::layer) fn key_ended() -> HeaderMap {
    static TRAILERS: OnceLock<HeaderMap> = OnceLock::new();
    TRAILERS.get_or_init(|| headers_of(&KeyEndedError.into())).clone()
}

/// The status that a gRPC client gets for a rejection, for handlers and interceptors: the layer
/// observes it as it observes its own rejections.
impl From<Rejection> for Status {
    fn from(rejection: Rejection) -> Self {
        let mut status = status(&rejection, None);
        status.set_source(Arc::new(rejection));
        status
    }
}

#[cfg(feature = "axum")]
impl From<crate::layer::ConsumerRejection> for Status {
    fn from(rejection: crate::layer::ConsumerRejection) -> Self {
        rejection.into_rejection().into()
    }
}

/// `UNAUTHENTICATED`, for a stream that ends with its key.
impl From<KeyEndedError> for Status {
    fn from(ended: KeyEndedError) -> Self {
        let info = error_info(&Rejection::new(RejectionKind::Revoked), None);
        let mut status = Self::with_error_details(Code::Unauthenticated, ended.to_string(), info);
        status.set_source(Arc::new(ended));
        status
    }
}

fn status(rejection: &Rejection, reason: Option<&'static str>) -> Status {
    let mut details = error_info(rejection, reason);
    let mut metadata = MetadataMap::new();
    if let Some(wait) = rejection.retry_after() {
        // Rounded up, and never 0, which clients take for "at once". Java reads 32 bits.
        let millis = wait.as_nanos().div_ceil(1_000_000).clamp(1, i32::MAX as u128);
        let millis = u64::try_from(millis).unwrap_or(1);
        details.set_retry_info(Some(Duration::from_millis(millis)));
        metadata.insert(RETRY_PUSHBACK, millis.into());
    }
    let code = code(spec(rejection.kind()).status);
    Status::with_error_details_and_metadata(code, message(rejection), details, metadata)
}

/// The code of a rejection, by its status over HTTP.
fn code(status: StatusCode) -> Code {
    match status {
        StatusCode::BAD_REQUEST => Code::InvalidArgument,
        StatusCode::UNAUTHORIZED => Code::Unauthenticated,
        StatusCode::FORBIDDEN => Code::PermissionDenied,
        StatusCode::TOO_MANY_REQUESTS => Code::ResourceExhausted,
        StatusCode::SERVICE_UNAVAILABLE => Code::Unavailable,
        _ => Code::Internal,
    }
}

/// As the `detail` of a problem document, for a client that shows nothing else.
fn message(rejection: &Rejection) -> Cow<'_, str> {
    let seconds = || ceil_secs(rejection.retry_after().unwrap_or_default()).max(1);
    match rejection.kind() {
        RejectionKind::InsufficientScope => {
            let scopes = scope_list(rejection.required_scopes());
            format!("The API key lacks a scope that this method requires: {scopes}").into()
        }
        RejectionKind::RateLimited => {
            format!("The API key has used up a quota. Retry in {} s.", seconds()).into()
        }
        RejectionKind::TooManyFailures => format!(
            "Too many unknown API keys came from your network. If yours is valid, keep it and retry \
             in {} s.",
            seconds()
        )
        .into(),
        kind => rejection.advice().unwrap_or_else(|| spec(kind).detail).into(),
    }
}

/// The same facts as in a problem document: its `code` in upper case, as `ErrorInfo` demands.
fn error_info(rejection: &Rejection, reason: Option<&'static str>) -> ErrorDetails {
    let policies: Vec<_> = rejection.violated_policies().collect();
    let metadata = [
        ("scope", scope_list(rejection.required_scopes())),
        ("violated-policies", policies.join(" ")),
        ("reason", reason.unwrap_or_default().to_owned()),
    ];
    let present = metadata.into_iter().filter(|(_, value)| !value.is_empty());
    let metadata: HashMap<_, _> = present.map(|(name, value)| (name.to_owned(), value)).collect();
    let code = spec(rejection.kind()).code.to_ascii_uppercase();
    ErrorDetails::with_error_info(code, DOMAIN, metadata)
}
