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

use super::{AdminState, Operation, document_settings::Settings};

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
