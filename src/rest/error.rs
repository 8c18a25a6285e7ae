use std::{borrow::Cow, time::Duration};

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header::LOCATION};

use crate::{
    auth::{Rejection, RejectionKind},
    layer::{Problem, ProblemJson, complete, retry_after},
    manage::{ManageError, ManageErrorKind},
    record::{KeyId, Scope},
};

/// Why a request was refused, and the response to it.
#[derive(Debug)]
pub(crate) enum ApiError {
    /// Answered as by [`ApiKeyLayer`](crate::ApiKeyLayer) and
    /// [`RequireScope`](crate::RequireScope).
    Rejected(Rejection),
    Details(Box<Details>),
}

#[derive(Debug)]
pub(crate) struct Details {
    status: StatusCode,
    code: &'static str,
    detail: Cow<'static, str>,
    field: Option<Cow<'static, str>>,
    /// The key that an earlier identical request made, and its path.
    made: Option<(KeyId, Option<String>)>,
    wait: Option<Duration>,
}

impl ApiError {
    pub(crate) fn new(
        status: StatusCode,
        code: &'static str,
        detail: impl Into<Cow<'static, str>>,
    ) -> Self {
        let detail = detail.into();
        let passes = [StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS];
        let wait = passes.contains(&status).then_some(Duration::from_secs(1));
        Self::Details(Box::new(Details { status, code, detail, field: None, made: None, wait }))
    }

    /// Sets the part of the request that was wrong: a JSON pointer into the body (RFC 6901), or the
    /// name of a parameter or header.
    pub(super) fn at(mut self, field: impl Into<Cow<'static, str>>) -> Self {
        if let Self::Details(details) = &mut self {
            details.field = Some(field.into());
        }
        self
    }

    /// Sets the key that an earlier identical request made, and its location.
    fn made(mut self, id: KeyId, location: Option<String>) -> Self {
        if let Self::Details(details) = &mut self {
            details.made = Some((id, location));
        }
        self
    }

    /// Sets `Retry-After`.
    fn after(mut self, wait: Option<Duration>) -> Self {
        if let Self::Details(details) = &mut self {
            details.wait = wait;
        }
        self
    }

    /// A well-formed body with an invalid value.
    pub(super) fn invalid(
        field: impl Into<Cow<'static, str>>,
        detail: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", detail).at(field)
    }

    pub(super) fn query(
        name: impl Into<Cow<'static, str>>,
        detail: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_query", detail).at(name)
    }

    pub(super) fn header(name: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_header", detail).at(name)
    }

    /// A bug in this crate.
    pub(super) fn internal() -> Self {
        let detail = "The response could not be serialized.";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", detail)
    }

    pub(super) fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "Nothing exists at this path.")
    }

    pub(super) fn no_such_key() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "Key not found.")
    }

    pub(super) fn too_many_at_once() -> Self {
        let detail = "Too many concurrent requests of this consumer. Wait for some of them to \
            finish.";
        Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_at_once", detail)
    }

    pub(super) fn lacks_scope(caller: Option<KeyId>, scope: Scope) -> Self {
        Self::Rejected(Rejection::insufficient_scope(caller, [scope]))
    }

    /// Converts an error of the service for `caller`, a key. `locate` returns the path of a key.
    pub(super) fn of(
        error: &ManageError,
        caller: Option<KeyId>,
        locate: impl FnOnce(KeyId) -> Option<String>,
    ) -> Self {
        let details = |status, code| Self::new(status, code, sentence(error.detail()));
        let answer = match error.kind() {
            ManageErrorKind::Invalid => details(StatusCode::UNPROCESSABLE_ENTITY, "invalid"),
            ManageErrorKind::NotFound => Self::no_such_key(),
            ManageErrorKind::Denied => match error.required_scope() {
                Some(scope) => Self::lacks_scope(caller, scope.clone()),
                None => details(StatusCode::FORBIDDEN, "denied"),
            },
            ManageErrorKind::CallerEnded => Self::Rejected(Rejection::new(RejectionKind::Revoked)),
            ManageErrorKind::Conflict => details(StatusCode::CONFLICT, "conflict"),
            ManageErrorKind::Outdated => details(StatusCode::PRECONDITION_FAILED, "outdated"),
            ManageErrorKind::Repeated => {
                let answer = details(StatusCode::CONFLICT, "repeated");
                match error.key_id() {
                    Some(id) => answer.made(id, locate(id)),
                    None => answer,
                }
            }
            ManageErrorKind::IdempotencyKeyReused => {
                details(StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused")
            }
            ManageErrorKind::ExceedsPolicy => {
                details(StatusCode::UNPROCESSABLE_ENTITY, "exceeds_policy")
            }
            ManageErrorKind::TooManyKeys => details(StatusCode::CONFLICT, "too_many_keys"),
            ManageErrorKind::TooManyChanges => {
                details(StatusCode::TOO_MANY_REQUESTS, "too_many_changes")
                    .after(error.retry_after())
            }
            ManageErrorKind::Rng | ManageErrorKind::Store | ManageErrorKind::Overloaded
                if error.is_transient() =>
            {
                let detail = "The service is temporarily unavailable. Try again.";
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "service_unavailable", detail)
            }
            ManageErrorKind::Rng | ManageErrorKind::Store | ManageErrorKind::Overloaded => {
                let detail = "The service failed. Its log has the cause.";
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", detail)
            }
            ManageErrorKind::TooManyAtOnce => Self::too_many_at_once(),
            ManageErrorKind::Unsupported => details(StatusCode::NOT_IMPLEMENTED, "not_supported"),
        };
        match error.field() {
            Some(field) => answer.at(json_pointer(field)),
            None => answer,
        }
    }
}

/// The JSON pointer or header name for a `field` of the service.
fn json_pointer(field: &'static str) -> Cow<'static, str> {
    match field {
        "idempotency_key" => "Idempotency-Key".into(),
        "expires_at" => "/expires".into(),
        "key_prefix" => "/prefix".into(),
        field => format!("/{field}").into(),
    }
}

/// A detail of the service, which begins in lower case and has no full stop, as a sentence.
pub(super) fn sentence(detail: &str) -> String {
    let mut characters = detail.chars();
    let first = characters.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(characters).chain(['.']).collect()
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        match self {
            Self::Rejected(rejection) => {
                complete(ProblemJson::default().render(&rejection), rejection)
            }
            Self::Details(details) => details.into_response(),
        }
    }
}

impl IntoResponse for Box<Details> {
    fn into_response(self) -> Response {
        let mut problem = Problem::new(self.status, self.code, &self.detail);
        problem.field = self.field.as_deref();
        problem.key_id = self.made.as_ref().map(|(id, _)| id.to_string());
        let mut response: Response = problem.response();
        let headers = response.headers_mut();
        if let Some((_, Some(location))) = self.made
            && let Ok(location) = HeaderValue::try_from(location)
        {
            headers.insert(LOCATION, location);
        }
        if let Some(wait) = self.wait {
            let (name, value) = retry_after(wait);
            headers.insert(name, value);
        }
        response
    }
}
