//! The services of the layers, with their futures and bodies, for signatures that name them.

use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{HeaderMap, Request, Response};
use pin_project_lite::pin_project;
use tower_service::Service;

#[cfg(feature = "test-util")]
pub use super::acting_as::ActingAsService;
use super::{
    ProblemJson, RejectionResponse,
    middleware::{Middleware, Verdict},
    request::caller,
    response::grpc::RequestType,
    shadow::ShadowDecision,
    short_circuit::{Finish, Parked, Resume, ShortCircuit},
};
pub use super::{
    drain::{DrainRejectedBody, DrainRejectedFuture, DrainRejectedService},
    limits::{
        ConcurrencyLimitBody, ConcurrencyLimitFuture, ConcurrencyLimitService, MeteredFuture,
        MeteredService, RequireScopeFuture, RequireScopeService,
    },
    stream::{UntilKeyEndsFuture, UntilKeyEndsService},
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
        if middleware.config.shadow.is_on {
            return ResponseFuture { future: call_in_shadow(inner, middleware, request) };
        }
        let future = match middleware.config.attempt(&mut request) {
            Verdict::Attempt(Attempt::Admit(admission)) => {
                middleware.config.attach_consumer(&mut request, &admission);
                let middleware = Arc::clone(middleware);
                let admitted = Admitted::new(middleware, request.headers(), admission, false);
                ShortCircuit::pass(inner, request, admitted)
            }
            Verdict::Readmission(Attempt::Admit(admission)) => {
                middleware.config.attach_consumer(&mut request, &admission);
                let middleware = Arc::clone(middleware);
                let admitted = Admitted::new(middleware, request.headers(), admission, true);
                ShortCircuit::pass(inner, request, admitted)
            }
            Verdict::Attempt(Attempt::Reject(rejection))
            | Verdict::Readmission(Attempt::Reject(rejection)) => {
                ShortCircuit::reject(inner, || middleware.reject(&rejection, request))
            }
            Verdict::Attempt(Attempt::Pending(lookup)) => {
                let waiting = Waiting { middleware: Arc::clone(middleware), is_reported: false };
                ShortCircuit::Waiting { parked: Parked::new(inner, request, lookup, waiting) }
            }
            Verdict::Readmission(Attempt::Pending(lookup)) => {
                let waiting = Waiting { middleware: Arc::clone(middleware), is_reported: true };
                ShortCircuit::Waiting { parked: Parked::new(inner, request, lookup, waiting) }
            }
            Verdict::Anonymous => {
                let missing = middleware.config.credentials.missing().clone();
                caller::admit_anonymous(request.extensions_mut(), missing);
                let admitted = Admitted::without_key(Arc::clone(middleware), request.headers());
                ShortCircuit::pass(inner, request, admitted)
            }
            Verdict::AlreadyAdmitted => {
                let admitted = Admitted::without_key(Arc::clone(middleware), request.headers());
                ShortCircuit::pass(inner, request, admitted)
            }
        };
        ResponseFuture { future }
    }
}

type Call<S, B, R> = ShortCircuit<
    <S as Service<Request<B>>>::Future,
    Admitted<R>,
    <S as Service<Request<B>>>::Response,
    Parked<PendingAttempt, S, B, Waiting<R>>,
>;

#[cold]
fn call_in_shadow<S, R, ReqBody, ResBody>(
    inner: &mut S,
    middleware: &Arc<Middleware<R>>,
    mut request: Request<ReqBody>,
) -> Call<S, ReqBody, R>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
{
    let config = &middleware.config;
    let decision = match config.attempt(&mut request) {
        Verdict::Attempt(attempt) | Verdict::Readmission(attempt) => match attempt {
            Attempt::Admit(admission) => Some(Ok(admission)),
            Attempt::Reject(rejection) => Some(Err(rejection)),
            Attempt::Pending(lookup) => {
                let lookup = config.auth.within_load_deadline(lookup);
                let waiting = Waiting { middleware: Arc::clone(middleware), is_reported: false };
                let parked = Parked::new(inner, request, lookup, waiting);
                return ShortCircuit::Waiting { parked };
            }
        },
        Verdict::Anonymous => {
            let missing = config.credentials.missing().clone();
            caller::admit_anonymous(request.extensions_mut(), missing);
            None
        }
        Verdict::AlreadyAdmitted => None,
    };
    let decision = config.pass_in_shadow(&mut request, decision);
    let admitted = Admitted::in_shadow(Arc::clone(middleware), request.headers(), decision);
    ShortCircuit::pass(inner, request, admitted)
}

/// An admitted request; without `admission`, one without a key, or one that an outer layer
/// admitted.
struct Admitted<R> {
    middleware: Arc<Middleware<R>>,
    request_type: RequestType,
    admission: Option<Admission>,
    /// Whether the observer knows of the request.
    is_reported: bool,
    /// In shadow mode, what was decided. Boxed, so that other futures stay small.
    shadow: Option<Box<ShadowDecision>>,
}

impl<R> Admitted<R> {
    fn new(
        middleware: Arc<Middleware<R>>,
        request: &HeaderMap,
        admission: Admission,
        is_reported: bool,
    ) -> Self {
        let (request_type, admission) = (RequestType::of(request), Some(admission));
        Self { middleware, request_type, admission, is_reported, shadow: None }
    }

    fn without_key(middleware: Arc<Middleware<R>>, request: &HeaderMap) -> Self {
        let request_type = RequestType::of(request);
        Self { middleware, request_type, admission: None, is_reported: true, shadow: None }
    }

    fn in_shadow(
        middleware: Arc<Middleware<R>>,
        request: &HeaderMap,
        decision: ShadowDecision,
    ) -> Self {
        let (request_type, shadow) = (RequestType::of(request), Some(Box::new(decision)));
        Self { middleware, request_type, admission: None, is_reported: true, shadow }
    }
}

impl<R: RejectionResponse<B>, B> Finish<Response<B>, Response<B>> for Admitted<R> {
    fn finish(&mut self, mut response: Response<B>) -> Response<B> {
        let empty_body = || self.middleware.renderer.empty_body();
        self.request_type.translate(&mut response, empty_body);
        if let Some(mut decision) = self.shadow.take() {
            self.middleware.config.finish_in_shadow(&mut response, &mut decision);
            return response;
        }
        let is_reported = mem::replace(&mut self.is_reported, true);
        self.middleware.config.finish(&mut response, self.admission.as_ref(), is_reported);
        response
    }
}

/// Reports a request that was admitted and has no response: the client hung up, or the inner service
/// failed.
impl<R> Drop for Admitted<R> {
    fn drop(&mut self) {
        if let Some(admission) = self.admission.as_ref().filter(|_| !self.is_reported) {
            self.middleware.config.auth.admitted(admission.rate_limit_status());
        }
        if let Some(mut decision) = self.shadow.take() {
            self.middleware.config.report_shadow(&mut decision);
        }
    }
}

/// Continues with a request that waited for a look-up.
struct Waiting<R> {
    middleware: Arc<Middleware<R>>,
    is_reported: bool,
}

impl<R, B, T> Resume<B, Result<Admission, Rejection>, Admitted<R>, Response<T>> for Waiting<R>
where
    R: RejectionResponse<T>,
{
    fn resume(
        self,
        mut request: Request<B>,
        decision: Result<Admission, Rejection>,
    ) -> Result<(Request<B>, Admitted<R>), Response<T>> {
        let Self { middleware, is_reported } = self;
        if middleware.config.shadow.is_on {
            let decision = middleware.config.pass_in_shadow(&mut request, Some(decision));
            let admitted = Admitted::in_shadow(middleware, request.headers(), decision);
            return Ok((request, admitted));
        }
        match decision {
            Ok(admission) => {
                middleware.config.attach_consumer(&mut request, &admission);
                let headers = request.headers();
                let admitted = Admitted::new(middleware, headers, admission, is_reported);
                Ok((request, admitted))
            }
            Err(rejection) => Err(middleware.reject(&rejection, request)),
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
            Parked<PendingAttempt, S, B, Waiting<R>>,
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
