use std::{
    convert::Infallible,
    fmt,
    task::{Context, Poll},
};

use axum::{
    Router,
    body::Body,
    middleware::{from_fn_with_state, map_response},
    response::Response,
    routing::future::RouteFuture,
};
use http::{HeaderValue, Request, StatusCode, header::CACHE_CONTROL};
use tower_service::Service;

use super::{
    AdminState, DocumentSettings, Operation, concurrency, document,
    error::ApiError,
    sign_in::{SignedIn, confirm_member, require_member},
};
#[cfg(feature = "leaks")]
use crate::layer::ClientAddress;
use crate::{auth::Authenticator, layer::ApiKeyLayer};

/// Authenticated routes as a service, to be mounted with `Router::nest_service`.
///
/// Deliberately not a [`Router`]. A route added to one later would not be authenticated:
///
/// ```compile_fail,E0599
/// # use axum::{Router, routing::get};
/// # fn extend(routes: tower_api_key::admin::GuardedRoutes) {
/// let app = routes.route("/late", get(async || "for everybody"));
/// # }
/// ```
///
/// Add further routes to the router in which they are nested:
///
/// ```
/// # use axum::{Router, routing::get};
/// # fn extend(routes: tower_api_key::admin::GuardedRoutes) {
/// let app = Router::<()>::new().nest_service("/admin", routes).route("/late", get(async || "for everybody"));
/// # }
/// ```
#[derive(Clone)]
pub struct GuardedRoutes(Router);

/// The routes of `operations`, with `auth` in front of them and of their fallback.
pub(crate) fn guard(
    state: AdminState,
    auth: Authenticator,
    operations: &'static [Operation],
    document: DocumentSettings,
) -> GuardedRoutes {
    let mut guard = ApiKeyLayer::new(auth);
    if let Some(address) = state.client_address {
        guard = guard.client_address(address);
    }
    let mut charged = Router::new();
    let mut free = Router::new();
    for operation in operations {
        let routes = if operation.is_charged() { &mut charged } else { &mut free };
        *routes = std::mem::take(routes).route(operation.path(), operation.route());
    }
    let (guarded, open) = document::routes(operations, document);
    let charged = charged
        .merge(guarded)
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(not_found)
        .layer(from_fn_with_state(concurrency::permits(), concurrency::limit_concurrency))
        .layer(guard.clone());
    let free =
        free.method_not_allowed_fallback(method_not_allowed).layer(guard.danger_without_charge());
    let open = open.method_not_allowed_fallback(method_not_allowed);
    let routes = charged.merge(free).merge(open).layer(map_response(no_store));
    GuardedRoutes(routes.with_state(state))
}

/// The routes of `operations` behind the application's own login, like their fallback.
pub(crate) fn guard_signed_in(
    state: AdminState,
    guard: &SignedIn,
    operations: &'static [Operation],
    document: DocumentSettings,
) -> GuardedRoutes {
    let mut routes = Router::new();
    for operation in operations {
        routes = routes.route(operation.path(), operation.route());
    }
    let (guarded, open) = document::routes(operations, document);
    let routes = routes
        .merge(guarded)
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(not_found)
        .layer(from_fn_with_state(guard.clone(), confirm_member))
        .layer(from_fn_with_state(concurrency::permits(), concurrency::limit_concurrency))
        .layer(from_fn_with_state(guard.clone(), require_member))
        .layer(guard.csrf.clone().layer());
    let open = open.method_not_allowed_fallback(method_not_allowed);
    let routes = routes.merge(open).layer(map_response(no_store));
    GuardedRoutes(routes.with_state(state))
}

/// Routes of another router with `auth` in front of them, which limits their concurrent requests.
#[cfg(feature = "leaks")]
pub(crate) fn guard_routes(
    routes: Router,
    auth: Authenticator,
    client_address: Option<ClientAddress>,
) -> Router {
    let mut guard = ApiKeyLayer::new(auth);
    if let Some(address) = client_address {
        guard = guard.client_address(address);
    }
    routes
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn_with_state(concurrency::permits(), concurrency::limit_concurrency))
        .layer(guard)
}

/// Routes of another router, each of which has its own guard.
#[cfg(feature = "leaks")]
pub(crate) fn open_routes(routes: Router) -> GuardedRoutes {
    let routes = routes.method_not_allowed_fallback(method_not_allowed).fallback(not_found);
    GuardedRoutes(routes.layer(map_response(no_store)))
}

async fn method_not_allowed() -> ApiError {
    let detail = "Method not allowed; see the Allow header.";
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail)
}

async fn not_found() -> ApiError {
    ApiError::not_found()
}

/// Adds `Cache-Control: no-store`: all responses are about keys, and some contain one.
async fn no_store(mut response: Response) -> Response {
    let no_store = HeaderValue::from_static("no-store");
    response.headers_mut().entry(CACHE_CONTROL).or_insert(no_store);
    response
}

impl Service<Request<Body>> for GuardedRoutes {
    type Response = Response;
    type Error = Infallible;
    type Future = RouteFuture<Infallible>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<Request<Body>>::poll_ready(&mut self.0, cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.0.call(request)
    }
}

impl fmt::Debug for GuardedRoutes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GuardedRoutes")
    }
}

#[cfg(test)]
mod tests {
    use axum::{response::IntoResponse, routing::MethodRouter};
    use tower::ServiceExt;

    use super::*;
    use crate::{key::KeyFormat, manage::KeyIssuer, store::MemoryKeyStore};

    /// Without the layer, the routes refuse all requests.
    #[tokio::test]
    async fn without_a_guard_no_operation_is_carried_out() {
        let format = KeyFormat::new("sk_test_").unwrap();
        let store = MemoryKeyStore::new();
        let (auth, _worker) = Authenticator::builder(store.clone(), format.clone()).build();
        let issuer = KeyIssuer::new(store, format);
        for state in [AdminState::new(issuer.clone(), &auth), AdminState::of_members(issuer)] {
            for operation in Operation::ALL {
                let routes: MethodRouter = operation.route().with_state(state.clone());
                let request = Request::builder().method(operation.method()).body(Body::empty());
                let response = routes.oneshot(request.unwrap()).await.into_response();
                assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR, "{operation:?}");
            }
        }
    }
}
