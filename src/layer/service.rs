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
        let verdict = middleware.config.attempt(&mut request);
        if middleware.config.shadow.is_on {
            return ResponseFuture { future: pass_in_shadow(inner, middleware, request, verdict) };
        }
        let passed = |request: &Request<ReqBody>, decision, is_reported| {
            Passed::new(Arc::clone(middleware), request.headers(), decision, is_reported)
        };
        let future = match verdict {
            Verdict::Attempt(Attempt::Admit(admission)) => {
                middleware.config.attach_consumer(&mut request, &admission);
                let passed = passed(&request, Decision::Admitted(admission), false);
                ShortCircuit::pass(inner, request, passed)
            }
            Verdict::Readmission(Attempt::Admit(admission)) => {
                middleware.config.attach_consumer(&mut request, &admission);
                let passed = passed(&request, Decision::Admitted(admission), true);
                ShortCircuit::pass(inner, request, passed)
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
                let passed = passed(&request, Decision::None, true);
                ShortCircuit::pass(inner, request, passed)
            }
            Verdict::AlreadyAdmitted => {
                let passed = passed(&request, Decision::None, true);
                ShortCircuit::pass(inner, request, passed)
            }
        };
        ResponseFuture { future }
    }
}

type Call<S, B, R> = ShortCircuit<
    <S as Service<Request<B>>>::Future,
    Passed<R>,
    <S as Service<Request<B>>>::Response,
    Parked<PendingAttempt, S, B, Waiting<R>>,
>;

#[cold]
fn pass_in_shadow<S, R, ReqBody, ResBody>(
    inner: &mut S,
    middleware: &Arc<Middleware<R>>,
    mut request: Request<ReqBody>,
    verdict: Verdict,
) -> Call<S, ReqBody, R>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
{
    let config = &middleware.config;
    let decision = match verdict {
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
    let (middleware, decision) = (Arc::clone(middleware), Decision::InShadow(Box::new(decision)));
    let passed = Passed::new(middleware, request.headers(), decision, false);
    ShortCircuit::pass(inner, request, passed)
}

/// A request that the inner service handles.
struct Passed<R> {
    middleware: Arc<Middleware<R>>,
    request_type: RequestType,
    decision: Decision,
    /// Whether the observer knows of the request.
    is_reported: bool,
}

/// What the layer decided about a request that passes.
enum Decision {
    Admitted(Admission),
    /// The request has no key, or an outer layer admitted it.
    None,
    /// Boxed, so that other futures stay small.
    InShadow(Box<ShadowDecision>),
}

impl<R> Passed<R> {
    fn new(
        middleware: Arc<Middleware<R>>,
        request: &HeaderMap,
        decision: Decision,
        is_reported: bool,
    ) -> Self {
        Self { middleware, request_type: RequestType::of(request), decision, is_reported }
    }
}

impl<R: RejectionResponse<B>, B> Finish<Response<B>, Response<B>> for Passed<R> {
    fn finish(&mut self, mut response: Response<B>) -> Response<B> {
        let is_reported = mem::replace(&mut self.is_reported, true);
        let Middleware { config, renderer } = &*self.middleware;
        self.request_type.translate(&mut response, || renderer.empty_body());
        let admission = match &self.decision {
            Decision::Admitted(admission) => Some(admission),
            Decision::None => None,
            Decision::InShadow(decision) => {
                config.finish_in_shadow(&mut response, decision);
                return response;
            }
        };
        config.finish(&mut response, admission, is_reported);
        response
    }
}

/// Reports a request that has no response: the client hung up, or the inner service failed.
impl<R> Drop for Passed<R> {
    fn drop(&mut self) {
        if self.is_reported {
            return;
        }
        let config = &self.middleware.config;
        match &self.decision {
            Decision::Admitted(admission) => config.auth.admitted(admission.rate_limit_status()),
            Decision::None => {}
            Decision::InShadow(decision) => config.report_shadow(decision),
        }
    }
}

/// Continues with a request that waited for a look-up.
struct Waiting<R> {
    middleware: Arc<Middleware<R>>,
    is_reported: bool,
}

impl<R, B, T> Resume<B, Result<Admission, Rejection>, Passed<R>, Response<T>> for Waiting<R>
where
    R: RejectionResponse<T>,
{
    fn resume(
        self,
        mut request: Request<B>,
        decision: Result<Admission, Rejection>,
    ) -> Result<(Request<B>, Passed<R>), Response<T>> {
        let Self { middleware, is_reported } = self;
        let (decision, is_reported) = if middleware.config.shadow.is_on {
            let decision = middleware.config.pass_in_shadow(&mut request, Some(decision));
            (Decision::InShadow(Box::new(decision)), false)
        } else {
            match decision {
                Ok(admission) => {
                    middleware.config.attach_consumer(&mut request, &admission);
                    (Decision::Admitted(admission), is_reported)
                }
                Err(rejection) => return Err(middleware.reject(&rejection, request)),
            }
        };
        let passed = Passed::new(middleware, request.headers(), decision, is_reported);
        Ok((request, passed))
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
            Passed<R>,
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
