//! Where the routes describe themselves, if the feature `openapi` is there.

use axum::Router;

use super::{Desk, Operation};

/// What a document says of its routes, and to whom.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(feature = "openapi"), expect(dead_code, reason = "there is no document"))]
pub(crate) struct Settings {
    pub(crate) title: &'static str,
    /// Without a key.
    pub(crate) is_open: bool,
}

/// The routes of the document: those for the guard, and those that are open.
#[cfg(feature = "openapi")]
pub(super) fn routes(
    operations: &'static [Operation],
    settings: Settings,
) -> (Router<Desk>, Router<Desk>) {
    let routes = super::openapi::routes(operations, settings.title);
    if settings.is_open { (Router::new(), routes) } else { (routes, Router::new()) }
}

#[cfg(not(feature = "openapi"))]
pub(super) fn routes(_: &'static [Operation], _: Settings) -> (Router<Desk>, Router<Desk>) {
    (Router::new(), Router::new())
}
