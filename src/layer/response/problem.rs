use std::{borrow::Cow, sync::OnceLock};

use http::{
    HeaderValue, Response, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE},
};
use serde::{Serialize, Serializer};

use super::{
    challenges::scope_list,
    headers::retry_after,
    status_codes::{Spec, Title, spec},
};
use crate::auth::{Rejection, RejectionKind};

const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");
/// Most documents are shorter, so that they take one allocation.
const TYPICAL_BYTES: usize = 384;
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
        *response.status_mut() = spec(rejection.kind()).status;
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
/// | 403 | `network_not_allowed`, `origin_not_allowed` | |
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
        let Spec { status, reason, .. } = spec(rejection.kind());
        let reason = reason.filter(|_| self.disclose);
        if reason.is_none()
            && rejection.advice().is_none()
            && let Some(body) = cached_body(rejection)
        {
            return response(status, Cow::Borrowed(body));
        }
        Problem { reason, ..Problem::of(rejection) }.response()
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
        response(self.status, Cow::Owned(self.to_json()))
    }

    fn to_json(&self) -> String {
        let mut json = Vec::with_capacity(TYPICAL_BYTES);
        // Serialising strings and numbers cannot fail, and makes UTF-8.
        let _ = serde_json::to_writer(&mut json, self);
        String::from_utf8(json).unwrap_or_default()
    }

    fn of(rejection: &'a Rejection) -> Self {
        let Spec { status, code, title, detail, .. } = spec(rejection.kind());
        let detail = rejection.advice().unwrap_or(detail);
        let problem = Self {
            scope: scope_list(rejection.required_scopes()),
            violated_policies: rejection.violated_policies().collect(),
            ..Self::new(status, code, detail)
        };
        match title {
            Title::Status => problem,
            Title::Registered { uri, title } => Self { uri, title, ..problem },
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

/// The body of a rejection that names no scope and no policy: always the same for its kind. Cached,
/// because a flood of bad keys needs many.
fn cached_body(rejection: &Rejection) -> Option<&'static str> {
    /// The bodies of kinds declared after the last one here are not cached.
    const KINDS: usize = RejectionKind::Internal as usize + 1;
    static BODIES: [OnceLock<String>; KINDS] = [const { OnceLock::new() }; KINDS];
    let kind = rejection.kind();
    let names_none =
        rejection.required_scopes().is_empty() && rejection.violated_policies().next().is_none();
    let body = BODIES.get(kind as usize).filter(|_| names_none)?;
    Some(body.get_or_init(|| Problem::of(&Rejection::new(kind)).to_json()))
}

fn as_number<S: Serializer>(status: &StatusCode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(status.as_u16())
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
