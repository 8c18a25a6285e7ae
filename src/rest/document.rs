//! The routes of the OpenAPI document; none without the feature `openapi`.

use axum::Router;

use super::{AdminState, Operation};

/// Settings of the document.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(feature = "openapi"), expect(dead_code, reason = "there is no document"))]
pub(crate) struct Settings {
    pub(crate) title: &'static str,
    /// Whether the callers are members, not keys.
    pub(crate) is_of_members: bool,
    /// Whether a new key is for the caller's consumer unless the request says otherwise.
    pub(crate) is_own_account: bool,
    /// Whether it is served without a key.
    pub(crate) is_open: bool,
}

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
