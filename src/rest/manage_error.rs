use axum::response::{IntoResponse, Response};
use http::{HeaderValue, header::CACHE_CONTROL};

use super::error::ApiError;
use crate::{
    manage::{ManageError, ManageErrorKind},
    trace::warn,
};

/// The response of the routers of [`admin`](crate::admin) and [`account`](crate::account), for an
/// application's own handlers: a problem document with the `field` that was wrong, 404 for a key
/// that the actor may not manage, 503 with `Retry-After` if the store is unavailable. A failure of
/// the store is logged with its cause, which the response does not contain.
impl IntoResponse for ManageError {
    fn into_response(self) -> Response {
        let kinds = [ManageErrorKind::Rng, ManageErrorKind::Store, ManageErrorKind::Overloaded];
        if kinds.contains(&self.kind()) {
            warn!(error = ?self, "key management failed");
        }
        let mut response = ApiError::of(&self, None, |_| None).into_response();
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}
