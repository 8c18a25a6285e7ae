//! The services of the layers, with their futures and bodies, for signatures that name them.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_service::Service;

use super::{
    ProblemJson, RejectionResponse,
    middleware::{Middleware, Verdict},
    request::caller,
    short_circuit::{Finish, Parked, Resume, ShortCircuit},
};
pub use super::{
    drain::{DrainRejectedBody, DrainRejectedFuture, DrainRejectedService},
    limits::{
        ConcurrencyLimitBody, ConcurrencyLimitFuture, ConcurrencyLimitService, MeteredFuture,
        MeteredService, RequireScopeFuture, RequireScopeService,
    },
};
use crate::auth::{Admission, Attempt, PendingAttempt, Rejection};

/// The service of [`ApiKeyLayer`](super::ApiKeyLayer).
///
/// A cached key is checked within `call`, which then calls the inner service directly. Only a
/// look-up makes the request wait, in the response future.
#[derive(Debug)]
pub struct ApiKeyService<S, R = ProblemJson> {
    inner: S,
    middleware: Arc<Middleware<R>>,
}

impl<S, R> ApiKeyService<S, R> {
    pub(super) fn new(inner: S, middleware: Arc<Middleware<R>>) -> Self {
        Self { inner, middleware }
    }
}

impl<S: Clone, R> Clone for ApiKeyService<S, R> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), middleware: Arc::clone(&self.middleware) }
    }
}

impl<S, R, ReqBody, ResBody> Service<Request<ReqBody>> for ApiKeyService<S, R>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
    R: RejectionResponse<ResBody>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, ReqBody, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        let Self { inner, middleware } = self;
        let future = match middleware.config.attempt(&mut request) {
            Verdict::Attempt(Attempt::Admit(admission)) => {
                middleware.config.attach_consumer(&mut request, &admission);
                let middleware = Arc::clone(middleware);
                ShortCircuit::pass(
                    inner,
                    request,
                    Admitted { middleware, admission: Some(admission) },
                )
            }
            Verdict::Attempt(Attempt::Reject(rejection)) => {
                ShortCircuit::reject(inner, || middleware.reject(&rejection))
            }
            Verdict::Attempt(Attempt::Pending(lookup)) => {
                let parked = Parked::new(inner, request, lookup, Arc::clone(middleware));
                ShortCircuit::Waiting { parked }
            }
            Verdict::Anonymous => {
                let missing = middleware.config.credentials.missing().clone();
                caller::admit_anonymous(request.extensions_mut(), missing);
                let middleware = Arc::clone(middleware);
                ShortCircuit::pass(inner, request, Admitted { middleware, admission: None })
            }
            Verdict::AlreadyAdmitted => {
                let middleware = Arc::clone(middleware);
                ShortCircuit::pass(inner, request, Admitted { middleware, admission: None })
            }
        };
        ResponseFuture { future }
    }
}

/// An admitted request; without `admission`, one without a key, or one that an outer layer
/// admitted.
struct Admitted<R> {
    middleware: Arc<Middleware<R>>,
    admission: Option<Admission>,
}

impl<R, B> Finish<Response<B>, Response<B>> for Admitted<R> {
    fn finish(&mut self, mut response: Response<B>) -> Response<B> {
        self.middleware.config.finish(&mut response, self.admission.as_ref());
        response
    }
}

impl<R, B, T> Resume<B, Result<Admission, Rejection>, Admitted<R>, Response<T>>
    for Arc<Middleware<R>>
where
    R: RejectionResponse<T>,
{
    fn resume(
        self,
        request: &mut Request<B>,
        decision: Result<Admission, Rejection>,
    ) -> Result<Admitted<R>, Response<T>> {
        match decision {
            Ok(admission) => {
                self.config.attach_consumer(request, &admission);
                Ok(Admitted { middleware: self, admission: Some(admission) })
            }
            Err(rejection) => Err(self.reject(&rejection)),
        }
    }
}

pin_project! {
    /// The response future of [`ApiKeyService`].
    pub struct ResponseFuture<S, B, R>
    where
        S: Service<Request<B>>,
    {
        #[pin]
        future: ShortCircuit<
            S::Future,
            Admitted<R>,
            S::Response,
            Parked<PendingAttempt, S, B, Arc<Middleware<R>>>,
        >,
    }
}

impl<S, B, R, ResBody> Future for ResponseFuture<S, B, R>
where
    S: Service<Request<B>, Response = Response<ResBody>>,
    R: RejectionResponse<ResBody>,
{
    type Output = Result<S::Response, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().future.poll(cx)
    }
}

impl<S, B, R> fmt::Debug for ResponseFuture<S, B, R>
where
    S: Service<Request<B>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResponseFuture")
    }
}
