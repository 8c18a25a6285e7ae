//! The routes of the OpenAPI document; none without the feature `openapi`.

use axum::Router;

use super::{AdminState, Operation, document_settings::Settings};

/// The routes of the document: those that need a key, and those that do not.
#[cfg(feature = "openapi")]
pub(super) fn routes(
    operations: &'static [Operation],
    settings: Settings,
) -> (Router<AdminState>, Router<AdminState>) {
    let routes = super::openapi::routes(operations, settings);
    if settings.is_open { (Router::new(), routes) } else { (routes, Router::new()) }
}

#[cfg(not(feature = "openapi"))]
pub(super) fn routes(
    _: &'static [Operation],
    _: Settings,
) -> (Router<AdminState>, Router<AdminState>) {
    (Router::new(), Router::new())
}
