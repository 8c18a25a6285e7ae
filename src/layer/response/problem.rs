use std::{borrow::Cow, sync::LazyLock};

use http::{
    HeaderMap, HeaderValue, Response, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE, WWW_AUTHENTICATE},
};
use serde::{Serialize, Serializer};

use super::headers::retry_after;
use crate::{
    auth::{Rejection, RejectionKind},
    record::Scope,
};

const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

/// Turns a rejection into a response.
///
/// Implementations: [`ProblemJson`] (the default), [`StatusOnly`] (no body), and any closure
/// `Fn(&Rejection) -> Response<B>`. The service adds the headers that the protocol requires and the
/// response lacks, and puts the [`Rejection`] into the response's extensions.
pub trait RejectionResponse<B> {
    /// The response to a rejected request.
    fn response(&self, rejection: &Rejection) -> Response<B>;
}

impl<F, B> RejectionResponse<B> for F
where
    F: Fn(&Rejection) -> Response<B>,
{
    fn response(&self, rejection: &Rejection) -> Response<B> {
        self(rejection)
    }
}

/// The status alone, for body types that cannot be made from text.
#[derive(Clone, Copy, Debug, Default)]
pub struct StatusOnly;

impl<B: Default> RejectionResponse<B> for StatusOnly {
    fn response(&self, rejection: &Rejection) -> Response<B> {
        let mut response = Response::new(B::default());
        *response.status_mut() = status(rejection.kind());
        response
    }
}

/// `application/problem+json` ([RFC 9457](https://www.rfc-editor.org/rfc/rfc9457)) with a stable
/// `code` for programs. Never names the key.
///
/// | status | `code` | more |
/// |---|---|---|
/// | 400 | `invalid_request` | |
/// | 401 | `missing_api_key`, `invalid_api_key` | |
/// | 403 | `insufficient_scope` | `scope`: the scopes that the route requires |
/// | 429 | `rate_limit_exceeded` | `violated-policies` |
/// | 429 | `too_many_failures` | |
/// | 500 | `internal_error` | |
/// | 503 | `service_unavailable` | |
#[derive(Clone, Copy, Debug, Default)]
pub struct ProblemJson {
    disclose: bool,
}

impl ProblemJson {
    /// Tells clients *why* their key is invalid: adds `reason`, which is `malformed`, `unknown`,
    /// `revoked`, `expired`, `inactive` or `not_yet_active`.
    ///
    /// # Security
    ///
    /// An attacker with an old key learns that it was valid once. Use this only for services that
    /// know all of their clients.
    #[must_use]
    pub fn danger_disclose_reason(self) -> Self {
        Self { disclose: true }
    }
}

impl<B: From<Cow<'static, str>>> RejectionResponse<B> for ProblemJson {
    fn response(&self, rejection: &Rejection) -> Response<B> {
        if self.disclose
            && let Some(reason) = reason(rejection.kind())
        {
            return Problem { reason: Some(reason), ..Problem::of(rejection) }.response();
        }
        match body_without_particulars(rejection.kind()) {
            Some(body) => response(status(rejection.kind()), Cow::Borrowed(body)),
            None => Problem::of(rejection).response(),
        }
    }
}

/// A problem document (RFC 9457).
#[derive(Serialize)]
pub(crate) struct Problem<'a> {
    #[serde(rename = "type")]
    uri: &'static str,
    title: &'static str,
    #[serde(serialize_with = "as_number")]
    status: StatusCode,
    detail: &'a str,
    code: &'static str,
    /// The field of the request that was wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) field: Option<&'a str>,
    /// The key that the first request with this idempotency key created.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) key_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "String::is_empty")]
    scope: String,
    #[serde(rename = "violated-policies", skip_serializing_if = "Vec::is_empty")]
    violated_policies: Vec<&'a str>,
}

impl<'a> Problem<'a> {
    pub(crate) fn new(status: StatusCode, code: &'static str, detail: &'a str) -> Self {
        Self {
            uri: "about:blank",
            title: status.canonical_reason().unwrap_or_default(),
            status,
            detail,
            code,
            field: None,
            key_id: None,
            reason: None,
            scope: String::new(),
            violated_policies: Vec::new(),
        }
    }

    pub(crate) fn response<B: From<Cow<'static, str>>>(&self) -> Response<B> {
        // Serialising strings and numbers cannot fail.
        response(self.status, Cow::Owned(serde_json::to_string(self).unwrap_or_default()))
    }

    fn of(rejection: &'a Rejection) -> Self {
        let status = status(rejection.kind());
        match rejection.kind() {
            RejectionKind::Missing => Self::new(status, "missing_api_key", "Send an API key."),
            RejectionKind::InvalidRequest => {
                Self::new(status, "invalid_request", "Send exactly one API key.")
            }
            RejectionKind::Malformed
            | RejectionKind::Unknown
            | RejectionKind::Revoked
            | RejectionKind::Expired
            | RejectionKind::Inactive
            | RejectionKind::NotYetActive => {
                Self::new(status, "invalid_api_key", "The API key is not valid.")
            }
            RejectionKind::InsufficientScope => Self {
                scope: scope_list(rejection.required_scopes()),
                ..Self::new(
                    status,
                    "insufficient_scope",
                    "The API key lacks a scope that this route requires.",
                )
            },
            RejectionKind::RateLimited => Self {
                uri: "https://iana.org/assignments/http-problem-types#quota-exceeded",
                title: "Request cannot be satisfied as assigned quota has been exceeded",
                violated_policies: rejection.violated_policies().collect(),
                ..Self::new(
                    status,
                    "rate_limit_exceeded",
                    "Retry after the number of seconds in `Retry-After`.",
                )
            },
            RejectionKind::TooManyFailures => Self {
                uri: "https://iana.org/assignments/http-problem-types#abnormal-usage-detected",
                title: "Request not satisfied due to detection of abnormal request pattern",
                ..Self::new(
                    status,
                    "too_many_failures",
                    "Too many unknown API keys came from your network. If yours is valid, keep it \
                     and retry after the number of seconds in `Retry-After`.",
                )
            },
            RejectionKind::StoreUnavailable | RejectionKind::Overloaded => Self {
                uri: "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity",
                title: "Request cannot be satisfied due to temporary server capacity constraints",
                ..Self::new(
                    status,
                    "service_unavailable",
                    "The API key cannot be checked right now. Keep it and try again.",
                )
            },
            RejectionKind::LayerMissing => Self::new(
                status,
                "internal_error",
                "The request has no consumer. Is `ApiKeyLayer` applied to this route?",
            ),
            RejectionKind::Internal => Self::new(
                status,
                "internal_error",
                "The API key could not be checked because of an error in the service.",
            ),
        }
    }
}

fn response<B: From<Cow<'static, str>>>(
    status: StatusCode,
    body: Cow<'static, str>,
) -> Response<B> {
    let mut response = Response::new(B::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, PROBLEM_JSON);
    response
}

/// The body of rejections that never differ. Cached, because a flood of bad keys needs many.
fn body_without_particulars(kind: RejectionKind) -> Option<&'static str> {
    const KINDS: [RejectionKind; 5] = [
        RejectionKind::Missing,
        RejectionKind::InvalidRequest,
        RejectionKind::Malformed,
        RejectionKind::Overloaded,
        RejectionKind::TooManyFailures,
    ];
    static BODIES: LazyLock<[String; KINDS.len()]> = LazyLock::new(|| {
        let body = |kind| serde_json::to_string(&Problem::of(&Rejection::new(kind)));
        KINDS.map(|kind| body(kind).unwrap_or_default())
    });
    let same = match kind {
        RejectionKind::Unknown
        | RejectionKind::Revoked
        | RejectionKind::Expired
        | RejectionKind::Inactive
        | RejectionKind::NotYetActive => RejectionKind::Malformed,
        RejectionKind::StoreUnavailable => RejectionKind::Overloaded,
        kind => kind,
    };
    let at = KINDS.iter().position(|kind| *kind == same)?;
    BODIES.get(at).map(String::as_str)
}

fn as_number<S: Serializer>(status: &StatusCode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(status.as_u16())
}

fn status(kind: RejectionKind) -> StatusCode {
    match kind {
        RejectionKind::InvalidRequest => StatusCode::BAD_REQUEST,
        RejectionKind::Missing
        | RejectionKind::Malformed
        | RejectionKind::Unknown
        | RejectionKind::Revoked
        | RejectionKind::Expired
        | RejectionKind::Inactive
        | RejectionKind::NotYetActive => StatusCode::UNAUTHORIZED,
        RejectionKind::InsufficientScope => StatusCode::FORBIDDEN,
        RejectionKind::RateLimited | RejectionKind::TooManyFailures => {
            StatusCode::TOO_MANY_REQUESTS
        }
        RejectionKind::LayerMissing | RejectionKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        RejectionKind::StoreUnavailable | RejectionKind::Overloaded => {
            StatusCode::SERVICE_UNAVAILABLE
        }
    }
}

fn reason(kind: RejectionKind) -> Option<&'static str> {
    Some(match kind {
        RejectionKind::Malformed => "malformed",
        RejectionKind::Unknown => "unknown",
        RejectionKind::Revoked => "revoked",
        RejectionKind::Expired => "expired",
        RejectionKind::Inactive => "inactive",
        RejectionKind::NotYetActive => "not_yet_active",
        _ => return None,
    })
}

/// Adds the headers common to all rejections, unless the renderer set them, and the [`Rejection`]
/// to the extensions.
pub(crate) fn complete<B>(mut response: Response<B>, rejection: Rejection) -> Response<B> {
    let headers = response.headers_mut();
    headers.entry(CACHE_CONTROL).or_insert(NO_STORE);
    if let Some(wait) = rejection.retry_after() {
        let (name, value) = retry_after(wait);
        headers.entry(name).or_insert(value);
    }
    response.extensions_mut().insert(rejection);
    response
}

/// The `WWW-Authenticate` values of one realm.
#[derive(Clone, Debug)]
pub(in crate::layer) struct Challenges {
    realm: String,
    missing: HeaderValue,
    invalid_request: HeaderValue,
    invalid_token: HeaderValue,
}

impl Challenges {
    /// `None` for a realm that cannot be written as a quoted string.
    pub(in crate::layer) fn new(realm: &str) -> Option<Self> {
        let printable = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\';
        if !realm.bytes().all(printable) {
            return None;
        }
        let value =
            |rest: &str| HeaderValue::try_from(format!("Bearer realm=\"{realm}\"{rest}")).ok();
        Some(Self {
            missing: value("")?,
            invalid_request: value(
                ", error=\"invalid_request\", error_description=\"Send exactly one API key\"",
            )?,
            invalid_token: value(
                ", error=\"invalid_token\", error_description=\"The API key is not valid\"",
            )?,
            realm: realm.to_owned(),
        })
    }

    /// Adds the challenge for `rejection`, unless the renderer set one.
    pub(in crate::layer) fn add(&self, headers: &mut HeaderMap, rejection: &Rejection) {
        let challenge = match rejection.kind() {
            RejectionKind::Missing => Some(self.missing.clone()),
            RejectionKind::InvalidRequest => Some(self.invalid_request.clone()),
            RejectionKind::Malformed
            | RejectionKind::Unknown
            | RejectionKind::Revoked
            | RejectionKind::Expired
            | RejectionKind::Inactive
            | RejectionKind::NotYetActive => Some(self.invalid_token.clone()),
            RejectionKind::InsufficientScope => self.insufficient_scope(rejection),
            RejectionKind::RateLimited
            | RejectionKind::TooManyFailures
            | RejectionKind::StoreUnavailable
            | RejectionKind::Overloaded
            | RejectionKind::LayerMissing
            | RejectionKind::Internal => None,
        };
        if let Some(challenge) = challenge {
            headers.entry(WWW_AUTHENTICATE).or_insert(challenge);
        }
    }

    fn insufficient_scope(&self, rejection: &Rejection) -> Option<HeaderValue> {
        let (realm, scope) = (&self.realm, scope_list(rejection.required_scopes()));
        let challenge =
            format!("Bearer realm=\"{realm}\", error=\"insufficient_scope\", scope=\"{scope}\"");
        HeaderValue::try_from(challenge).ok()
    }
}

impl Default for Challenges {
    /// The realm `api`.
    fn default() -> Self {
        Self {
            realm: "api".to_owned(),
            missing: HeaderValue::from_static(r#"Bearer realm="api""#),
            invalid_request: HeaderValue::from_static(
                r#"Bearer realm="api", error="invalid_request", error_description="Send exactly one API key""#,
            ),
            invalid_token: HeaderValue::from_static(
                r#"Bearer realm="api", error="invalid_token", error_description="The API key is not valid""#,
            ),
        }
    }
}

/// Scopes separated by single spaces (RFC 6750 §3).
fn scope_list(scopes: &[Scope]) -> String {
    scopes.iter().map(Scope::as_str).collect::<Vec<_>>().join(" ")
}
