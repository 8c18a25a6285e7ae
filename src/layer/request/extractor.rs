use std::{convert::Infallible, error::Error, fmt};

use axum_core::{
    body::Body,
    extract::{FromRequestParts, OptionalFromRequestParts},
    response::{IntoResponse, IntoResponseParts, Response, ResponseParts},
};
use http::{HeaderValue, request::Parts};

use super::caller::{Trusted, missing};
use crate::{
    auth::{Rejection, RejectionKind},
    layer::{
        Cost, ProblemJson,
        response::{complete, grpc},
    },
    record::{Consumer, Scope},
};

impl<S: Sync> FromRequestParts<S> for Consumer {
    type Rejection = ConsumerRejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ConsumerRejection> {
        find(parts)?.ok_or_else(|| ConsumerRejection::of(missing(&parts.extensions), parts))
    }
}

/// `None` for a request without a key, admitted by an
/// [`optional`](crate::layer::ApiKeyLayer::optional) layer.
impl<S: Sync> OptionalFromRequestParts<S> for Consumer {
    type Rejection = ConsumerRejection;

    async fn from_request_parts(
        parts: &mut Parts,
        _: &S,
    ) -> Result<Option<Self>, ConsumerRejection> {
        find(parts)
    }
}

fn find(parts: &Parts) -> Result<Option<Consumer>, ConsumerRejection> {
    let caller = Trusted::default().caller(&parts.extensions);
    let rejected = |kind| ConsumerRejection::of(Rejection::new(kind), parts);
    caller.map(Option::<&Consumer>::cloned).map_err(rejected)
}

impl Consumer {
    /// Checks in a handler that the key has `scope`. The error is the response that
    /// [`RequireScope`](crate::RequireScope) gives, which suits a route whose scope is always the
    /// same:
    ///
    /// ```
    /// use axum::extract::Path;
    /// use tower_api_key::{Consumer, layer::ConsumerRejection};
    ///
    /// async fn refund(
    ///     consumer: Consumer,
    ///     Path(cents): Path<u32>,
    /// ) -> Result<String, ConsumerRejection> {
    ///     if cents > 10_000 {
    ///         consumer.require("refunds:large")?;
    ///     }
    ///     Ok(format!("refunded to {}", consumer.id()))
    /// }
    /// # let _: axum::Router =
    /// #     axum::Router::new().route("/refunds/{cents}", axum::routing::post(refund));
    /// ```
    ///
    /// # Errors
    ///
    /// 403 `insufficient_scope` when the key lacks `scope`. 500 when `scope` is not a valid
    /// [`Scope`]: no key can have it, and a challenge could not name it.
    pub fn require(&self, scope: impl AsRef<str>) -> Result<(), ConsumerRejection> {
        let scope = scope.as_ref();
        if self.has_scope(scope) {
            return Ok(());
        }
        let rejection = match Scope::new(scope) {
            Ok(scope) => Rejection::insufficient_scope(self.key_id(), [scope]),
            Err(_) => Rejection::new(RejectionKind::Internal),
        };
        Err(ConsumerRejection { rejection, grpc: None })
    }
}

/// Sets the actual cost of the request.
impl IntoResponseParts for Cost {
    type Error = Infallible;

    fn into_response_parts(self, mut response: ResponseParts) -> Result<ResponseParts, Infallible> {
        response.extensions_mut().insert(self);
        Ok(response)
    }
}

/// A handler extracted a [`Consumer`] and there is none: 401 if the request has no key and an
/// optional layer admitted it, 500 if no [`ApiKeyLayer`](crate::layer::ApiKeyLayer) is applied to
/// the route. Or the consumer's key lacks a scope that the handler [requires](Consumer::require):
/// 403.
#[derive(Clone, Debug)]
pub struct ConsumerRejection {
    rejection: Rejection,
    /// The content type of a gRPC request.
    grpc: Option<HeaderValue>,
}

impl ConsumerRejection {
    fn of(rejection: Rejection, request: &Parts) -> Self {
        Self { rejection, grpc: grpc::content_type(&request.headers).cloned() }
    }

    #[cfg(feature = "grpc")]
    pub(in crate::layer) fn into_rejection(self) -> Rejection {
        self.rejection
    }
}

impl fmt::Display for ConsumerRejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.rejection, f)
    }
}

impl Error for ConsumerRejection {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.rejection.source()
    }
}

impl IntoResponse for ConsumerRejection {
    fn into_response(self) -> Response {
        let Self { rejection, grpc } = self;
        let Some(content_type) = grpc else {
            return complete(ProblemJson::default().render(&rejection), rejection);
        };
        let mut response = grpc::response(&rejection, None, content_type, Body::empty());
        response.extensions_mut().insert(rejection);
        response
    }
}
