//! Protection against cross-site requests: a browser sends the cookies of a visitor with requests
//! that another site makes in the visitor's name.

use std::{error::Error, fmt};

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use tower_http::csrf::{CsrfLayer, ProtectionError};

use super::error::ApiError;

/// Refuses requests of other sites by `Sec-Fetch-Site` and `Origin`.
#[derive(Clone, Debug)]
pub(super) struct Csrf(CsrfLayer<fn(ProtectionError) -> Response>);

impl Csrf {
    pub(super) fn new() -> Self {
        Self(CsrfLayer::new().with_rejection_response(refusal))
    }

    pub(super) fn trust(self, origin: &str) -> Result<Self, InvalidOrigin> {
        self.0.add_trusted_origin(origin).map(Self).map_err(|_| InvalidOrigin)
    }

    pub(super) fn layer(self) -> CsrfLayer<fn(ProtectionError) -> Response> {
        self.0
    }
}

fn refusal(_: ProtectionError) -> Response {
    let detail = "The request comes from another site. Send it from a page of this one.";
    ApiError::new(StatusCode::FORBIDDEN, "cross_site_request", detail).into_response()
}

/// An origin is not of the form `https://app.example.com`, as browsers send it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InvalidOrigin;

impl fmt::Display for InvalidOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "an origin must be a scheme, http or https, a host, and a port other than the default, \
             such as https://app.example.com or http://localhost:8080, without a slash at its end",
        )
    }
}

impl Error for InvalidOrigin {}
