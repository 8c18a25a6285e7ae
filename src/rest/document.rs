//! `GET /openapi.json`; nothing without the feature `openapi`.

use axum::Router;
#[cfg(feature = "openapi")]
use {
    super::{openapi, params::NoParams},
    axum::{Json, extract::OriginalUri, routing::get},
    http::Uri,
    std::sync::Arc,
    utoipa::openapi::{OpenApi, Server},
};

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
    let document = Arc::new(openapi::document(operations, settings));
    // The base path is where the application has mounted the router.
    let json = async move |OriginalUri(original): OriginalUri, uri: Uri, _: NoParams| {
        let mount = original.path().strip_suffix(uri.path()).unwrap_or_default();
        let url = if mount.is_empty() { "/" } else { mount };
        let mut document = OpenApi::clone(&document);
        document.servers = Some(vec![Server::new(url)]);
        Json(document)
    };
    let routes = Router::new().route("/openapi.json", get(json));
    if settings.is_open { (Router::new(), routes) } else { (routes, Router::new()) }
}

#[cfg(not(feature = "openapi"))]
pub(super) fn routes(
    _: &'static [Operation],
    _: Settings,
) -> (Router<AdminState>, Router<AdminState>) {
    (Router::new(), Router::new())
}
