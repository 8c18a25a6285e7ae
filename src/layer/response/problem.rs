use std::{borrow::Cow, sync::OnceLock};

use http::{
    HeaderValue, Response, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE},
    request::Parts,
};
use serde::{Serialize, Serializer};

use super::{
    challenges::scope_list,
    grpc,
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
/// `Fn(&Rejection, &Parts) -> Response<B>` whose body has a default. The service adds the headers
/// that the protocol requires and the response lacks, and puts the [`Rejection`] into the response's
/// extensions.
///
/// `request` has the method, URI, headers and extensions of the rejected request, so that one layer
/// can answer browsers with HTML and programs with JSON, or repeat a request id:
///
/// ```
/// use http::{Response, header, request::Parts};
/// use tower_api_key::{ApiKeyLayer, auth::Rejection};
/// # use tower_api_key::{Authenticator, key::KeyFormat, store::MemoryKeyStore};
///
/// fn response(rejection: &Rejection, request: &Parts) -> Response<String> {
///     let accept = request.headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
///     match accept {
///         Some(types) if types.contains("text/html") => Response::new("<h1>No</h1>".into()),
///         _ => Response::new(format!("{{\"code\":\"{}\"}}", rejection.kind().as_str())),
///     }
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let (auth, worker) =
/// #     Authenticator::builder(MemoryKeyStore::new(), KeyFormat::new("sk_live_")?).build();
/// # drop(worker);
/// let layer = ApiKeyLayer::new(auth).render_rejections(response);
/// # drop(layer);
/// # Ok(())
/// # }
/// ```
///
/// # gRPC
///
/// With the feature `grpc`, a request of `content-type: application/grpc` is answered with a [gRPC
/// status](crate::manual::grpc) in place of the renderer's response, unless that is itself of such a
/// content type.
///
/// # The key
///
/// `request` never has the key in it, so it can be logged or shown. The
/// [`ApiKeyLayer`](crate::ApiKeyLayer) removes `Authorization`, the headers that it reads, and every
/// other header that contains a key of a format with a prefix, and masks such a key in the URI. The
/// layers inside of it remove `Authorization`, the header that the key came in, and headers that are
/// marked sensitive.
pub trait RejectionResponse<B> {
    /// The response to a rejected request.
    fn response(&self, rejection: &Rejection, request: &Parts) -> Response<B>;

    /// A body without content, for responses to gRPC requests: their status is in the headers.
    fn empty_body(&self) -> B;
}

impl<F, B> RejectionResponse<B> for F
where
    F: Fn(&Rejection, &Parts) -> Response<B>,
    B: Default,
{
    fn response(&self, rejection: &Rejection, request: &Parts) -> Response<B> {
        self(rejection, request)
    }

    fn empty_body(&self) -> B {
        B::default()
    }
}

/// The status alone, for body types that cannot be made from text, such as that of tonic's `Server`.
#[derive(Clone, Copy, Debug, Default)]
pub struct StatusOnly;

impl<B: Default> RejectionResponse<B> for StatusOnly {
    fn response(&self, rejection: &Rejection, _: &Parts) -> Response<B> {
        let mut response = Response::new(B::default());
        *response.status_mut() = spec(rejection.kind()).status;
        response
    }

    fn empty_body(&self) -> B {
        B::default()
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

    /// The response, which is the same for every request.
    pub(crate) fn render<B: From<Cow<'static, str>>>(self, rejection: &Rejection) -> Response<B> {
        let reason = self.reason(rejection);
        let status = spec(rejection.kind()).status;
        if reason.is_none() {
            let render = || Problem::of(rejection).to_json();
            if let Some(body) = rejection.body_with_advice(render) {
                return response(status, Cow::Owned(body.to_owned()));
            }
            if let Some(body) = cached_body(rejection) {
                return response(status, Cow::Borrowed(body));
            }
        }
        Problem { reason, ..Problem::of(rejection) }.response()
    }

    /// Why the key is invalid, if clients may know.
    fn reason(self, rejection: &Rejection) -> Option<&'static str> {
        spec(rejection.kind()).reason.filter(|_| self.disclose)
    }
}

impl<B: From<Cow<'static, str>>> RejectionResponse<B> for ProblemJson {
    fn response(&self, rejection: &Rejection, request: &Parts) -> Response<B> {
        if let Some(reason) = self.reason(rejection)
            && let Some(content_type) = grpc::content_type(&request.headers)
        {
            let body = RejectionResponse::<B>::empty_body(self);
            return grpc::response(rejection, Some(reason), content_type.clone(), body);
        }
        self.render(rejection)
    }

    fn empty_body(&self) -> B {
        B::from(Cow::Borrowed(""))
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

/// The response to a rejected request: gRPC's to a gRPC request, and that of `renderer` to others.
pub(in crate::layer) fn respond<B>(
    renderer: &impl RejectionResponse<B>,
    rejection: Rejection,
    request: &Parts,
) -> Response<B> {
    let response = renderer.response(&rejection, request);
    let Some(content_type) = grpc::content_type(&request.headers) else {
        return complete(response, rejection);
    };
    let mut response = if grpc::content_type(response.headers()).is_some() {
        response
    } else {
        grpc::response(&rejection, None, content_type.clone(), renderer.empty_body())
    };
    response.extensions_mut().insert(rejection);
    response
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
