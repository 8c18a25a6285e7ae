//! The fields of the current span.

use std::fmt::Display;

use crate::{
    auth::{Admission, Outcome},
    trace,
};

/// Records whose key was let in.
#[inline]
pub(super) fn record_admission(admission: &Admission) {
    if trace::has_spans() {
        let consumer = admission.consumer();
        let fields: [(_, &dyn Display); 2] =
            [("api_key.id", &consumer.key_id()), ("api_key.consumer", &consumer.id())];
        trace::record(&fields);
    }
}

/// Records the outcome of the request.
#[inline]
pub(super) fn record_outcome(outcome: Outcome) {
    if trace::has_spans() {
        trace::record(&[("api_key.outcome", &outcome.as_str())]);
    }
}

/// Records what the outcome of a request in shadow mode would have been.
pub(super) fn record_shadow_outcome(outcome: Outcome) {
    if trace::has_spans() {
        trace::record(&[("api_key.shadow_outcome", &outcome.as_str())]);
    }
}

/// A span for tower-http's `TraceLayer` with the fields that
/// [`ApiKeyLayer`](crate::ApiKeyLayer) records: `api_key.id`, `api_key.consumer` and
/// `api_key.outcome`, one of `admitted`, `limited`, `forbidden`, `rejected` and `unavailable`; in
/// [shadow mode](crate::ApiKeyLayer::shadow), `api_key.shadow_outcome` has what that would have
/// been. Its other fields are `method`, `path` (without the query) and `version`. Feature
/// `tracing`.
///
/// Any other span works as well, if it declares these fields
/// ([`Empty`](https://docs.rs/tracing/latest/tracing/field/struct.Empty.html)) and is the current
/// one when the layer is called.
///
/// ```
/// use tower_api_key::layer;
/// use tower_http::trace::TraceLayer;
///
/// let layer = TraceLayer::new_for_http().make_span_with(layer::make_span);
/// # let _: axum::Router = axum::Router::new().layer(layer);
/// ```
///
/// The id of a key is not secret, and the names of consumers are those that the application chose.
/// Metrics must not be labelled with either: there may be any number of them.
#[cfg(feature = "tracing")]
pub fn make_span<B>(request: &http::Request<B>) -> trace::Span {
    trace::info_span!(
        "request",
        method = %request.method(),
        path = request.uri().path(),
        version = ?request.version(),
        api_key.id = trace::Empty,
        api_key.consumer = trace::Empty,
        api_key.outcome = trace::Empty,
        api_key.shadow_outcome = trace::Empty,
    )
}
