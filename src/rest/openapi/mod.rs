//! The OpenAPI document, built from the same [`Operation`]s as the routes.
//! [`document`](super::document) serves it.

mod headers;
mod operations;
mod parameters;
mod places;
mod schemas;
mod types;
mod usage;
mod whoami;

use utoipa::openapi::{
    Info, OpenApi, OpenApiBuilder, PathsBuilder,
    path::{HttpMethod, PathItem},
    security::SecurityRequirement,
};

use super::{DocumentSettings, Operation};
use crate::layer::ApiKeySecurity;

pub(super) fn document(operations: &[Operation], settings: DocumentSettings) -> OpenApi {
    let paths = operations.iter().fold(PathsBuilder::new(), |paths, operation| {
        let method = match operation.method() {
            http::Method::POST => HttpMethod::Post,
            http::Method::PATCH => HttpMethod::Patch,
            _ => HttpMethod::Get,
        };
        paths.path(
            operation.path(),
            PathItem::new(method, operations::describe(*operation, settings)),
        )
    });
    let components = schemas::components(settings);
    let mut info = Info::new(settings.title, env!("CARGO_PKG_VERSION"));
    info.description = Some(DESCRIPTION.to_owned());
    let document = OpenApiBuilder::new().info(info).paths(paths);
    if settings.is_of_members {
        // The application's session, of which only the application knows how it is sent.
        return document.components(Some(components.build())).build();
    }
    let scheme = ApiKeySecurity::scheme(None);
    let components = components.security_scheme(ApiKeySecurity::NAME, scheme).build();
    document
        .components(Some(components))
        .security(Some([SecurityRequirement::new(ApiKeySecurity::NAME, [] as [&str; 0])]))
        .build()
}

const DESCRIPTION: &str = "Every error is `application/problem+json` with a stable `code` and, \
    if one part of the request was wrong, its `field`: a JSON pointer into the body, or the name \
    of a parameter or header. 400 means a malformed request, 422 a well-formed request with an \
    invalid value. Durations are a number and `s`, `m`, `h`, `d` or `w`; a day is 24 hours.";
