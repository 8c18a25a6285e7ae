use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    auth::{Authenticator, Rejection},
    layer::{
        ProblemJson, RejectionResponse,
        request::{
            caller::{Trusted, missing, shadowed},
            parts_without_key,
        },
        response::respond,
        short_circuit::ShortCircuit,
    },
    record::{IntoScope, Scope, Scopes},
};

/// Requires certain scopes of the key; other keys get 403 `insufficient_scope`, which names the
/// required scopes.
///
/// Apply it inside an [`ApiKeyLayer`](crate::layer::ApiKeyLayer), around the routes to protect:
///
/// ```
/// # use axum::{Router, routing::get};
/// use tower_api_key::RequireScope;
///
/// tower_api_key::scopes! {
///     pub enum Scope {
///         ReportsRead = "reports:read",
///         Export = "export",
///     }
/// }
///
/// let app: Router = Router::new()
///     .route("/reports", get(|| async {}).layer(RequireScope::one(Scope::ReportsRead)))
///     .route(
///         "/export",
///         get(|| async {}).layer(RequireScope::all([Scope::ReportsRead, Scope::Export])),
///     );
/// ```
///
/// With axum, each method of a path can require its own scope if the layer is around the handler:
///
/// ```
/// use axum::{Router, handler::Handler, routing::get};
/// # use tower_api_key::RequireScope;
///
/// # async fn list() {}
/// # async fn create() {}
/// # fn main() -> Result<(), tower_api_key::record::InvalidScope> {
/// let list = list.layer(RequireScope::one("orders:read")?);
/// let create = create.layer(RequireScope::one("orders:write")?);
/// let app: Router = Router::new().route("/orders", get(list).post(create));
/// # Ok(())
/// # }
/// ```
///
/// Scopes as text are checked when the layer is made:
///
/// ```
/// # use axum::{Router, routing::get};
/// # use tower_api_key::RequireScope;
/// # fn main() -> Result<(), tower_api_key::record::InvalidScope> {
/// let app: Router = Router::new()
///     .route("/reports", get(|| async {}).layer(RequireScope::one("reports:read")?))
///     .route("/status", get(|| async {}).layer(RequireScope::any(["ops", "support"])?));
/// # Ok(())
/// # }
/// ```
///
/// Without an `ApiKeyLayer` it answers 500, because an unguarded route is a mistake. With several
/// around the route, the consumer of the innermost one counts; inside one in [shadow
/// mode](crate::ApiKeyLayer::shadow), it lets every request pass.
#[derive(Clone, Debug)]
#[must_use]
pub struct RequireScope<R = ProblemJson> {
    required: Arc<Required>,
    renderer: R,
}

#[derive(Clone, Debug)]
struct Required {
    scopes: Scopes,
    all: bool,
    trusted: Trusted,
}

impl RequireScope {
    /// The key must have `scope`. Returns a `Result` if `scope` is [text](IntoScope).
    pub fn one<S: IntoScope>(scope: S) -> S::Outcome<Self> {
        Self::all([scope])
    }

    /// The key must have all of `scopes`, of which there is at least one: an empty list does not
    /// compile. Returns a `Result` if they are [text](IntoScope).
    pub fn all<S: IntoScope, const N: usize>(scopes: [S; N]) -> S::Outcome<Self> {
        const { assert!(N > 0, "a route that requires scopes needs at least one") };
        S::make(scopes, |scopes| Self::new(scopes, true))
    }

    /// The key must have at least one of `scopes`, of which there is at least one: an empty list
    /// does not compile. Returns a `Result` if they are [text](IntoScope).
    pub fn any<S: IntoScope, const N: usize>(scopes: [S; N]) -> S::Outcome<Self> {
        const { assert!(N > 0, "a route that requires scopes needs at least one") };
        S::make(scopes, |scopes| Self::new(scopes, false))
    }

    fn new(scopes: Scopes, all: bool) -> Self {
        let required = Arc::new(Required { scopes, all, trusted: Trusted::default() });
        Self { required, renderer: ProblemJson::default() }
    }
}

impl<R> RequireScope<R> {
    /// Trusts only consumers of `auth`, for routes inside several
    /// [`ApiKeyLayer`](crate::layer::ApiKeyLayer)s: scopes of another authenticator's key do not
    /// count. If the innermost layer uses another authenticator, the request gets 500, as without
    /// any layer.
    pub fn of(mut self, auth: &Authenticator) -> Self {
        Arc::make_mut(&mut self.required).trusted = Trusted::only(auth.id());
        self
    }

    /// Renders rejections with `renderer`. Default: [`ProblemJson`].
    pub fn render_rejections<R2>(self, renderer: R2) -> RequireScope<R2> {
        RequireScope { required: self.required, renderer }
    }
}

impl<S, R: Clone> Layer<S> for RequireScope<R> {
    type Service = RequireScopeService<S, R>;

    fn layer(&self, inner: S) -> Self::Service {
        RequireScopeService {
            inner,
            required: Arc::clone(&self.required),
            renderer: self.renderer.clone(),
        }
    }
}

/// The service of [`RequireScope`].
#[derive(Clone)]
pub struct RequireScopeService<S, R = ProblemJson> {
    inner: S,
    required: Arc<Required>,
    renderer: R,
}

impl<S, R, ReqBody, ResBody> Service<Request<ReqBody>> for RequireScopeService<S, R>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
    R: RejectionResponse<ResBody>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = RequireScopeFuture<S::Future, S::Response>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let Self { inner, required, renderer } = self;
        let future = match required.evaluate(&request) {
            Ok(()) => ShortCircuit::pass(inner, request, ()),
            Err(rejection) => match shadowed(request.extensions()) {
                Some(would_reject) => {
                    would_reject.note(rejection);
                    ShortCircuit::pass(inner, request, ())
                }
                None => ShortCircuit::reject(inner, || {
                    respond(renderer, rejection, &parts_without_key(request))
                }),
            },
        };
        RequireScopeFuture { future }
    }
}

impl Required {
    fn evaluate<B>(&self, request: &Request<B>) -> Result<(), Rejection> {
        let caller = self.trusted.caller(request.extensions()).map_err(Rejection::new)?;
        let Some(consumer) = caller else { return Err(missing(request.extensions())) };
        let mut scopes = self.scopes.iter();
        let held = |scope: &Scope| consumer.has_scope(scope.as_str());
        if if self.all { scopes.all(held) } else { scopes.any(held) } {
            return Ok(());
        }
        Err(Rejection::insufficient_scope(consumer.key_id(), self.scopes.iter().cloned()))
    }
}

impl<S: fmt::Debug, R> fmt::Debug for RequireScopeService<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequireScopeService")
            .field("inner", &self.inner)
            .field("required", &self.required)
            .finish_non_exhaustive()
    }
}

pin_project! {
    /// The response future of [`RequireScopeService`].
    pub struct RequireScopeFuture<F, T> {
        #[pin]
        future: ShortCircuit<F, (), T>,
    }
}

impl<F, T, E> Future for RequireScopeFuture<F, T>
where
    F: Future<Output = Result<T, E>>,
{
    type Output = Result<T, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().future.poll(cx)
    }
}

impl<F, T> fmt::Debug for RequireScopeFuture<F, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RequireScopeFuture")
    }
}
