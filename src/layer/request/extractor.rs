use std::convert::Infallible;

use axum_core::{
    extract::{FromRequestParts, OptionalFromRequestParts},
    response::{IntoResponse, IntoResponseParts, Response, ResponseParts},
};
use http::request::Parts;

use super::caller::Trusted;
use crate::layer::{Cost, ProblemJson, RejectionResponse, response::complete};
use crate::{
    auth::{Rejection, RejectionKind},
    record::Consumer,
};

impl<S: Sync> FromRequestParts<S> for Consumer {
    type Rejection = ConsumerRejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ConsumerRejection> {
        find(parts)?.ok_or(ConsumerRejection(RejectionKind::Missing))
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
    caller.map(Option::<&Consumer>::cloned).map_err(ConsumerRejection)
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
/// the route.
#[derive(Clone, Copy, Debug)]
pub struct ConsumerRejection(RejectionKind);

impl IntoResponse for ConsumerRejection {
    fn into_response(self) -> Response {
        let rejection = Rejection::new(self.0);
        complete(ProblemJson::default().response(&rejection), rejection)
    }
}
