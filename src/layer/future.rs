use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_service::Service;

use super::{RejectionResponse, middleware::Middleware};
use crate::auth::{Admission, PendingAttempt};

pin_project! {
    /// The response future of [`ApiKeyService`](super::ApiKeyService).
    pub struct ResponseFuture<S, B, R>
    where
        S: Service<Request<B>>,
    {
        #[pin]
        state: State<S, B, R, S::Future, S::Response>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, B, R, F, T> {
        Rejected { response: Option<T> },
        LookingUp { lookup: PendingAttempt, parked: Option<Box<Parked<S, B, R>>> },
        Inner { #[pin] future: F, middleware: Arc<Middleware<R>>, admission: Option<Admission> },
    }
}

/// A request that waits for a look-up. Boxed, so that futures without a look-up stay small.
struct Parked<S, B, R> {
    ready: S,
    request: Request<B>,
    middleware: Arc<Middleware<R>>,
}

impl<S, B, R> ResponseFuture<S, B, R>
where
    S: Service<Request<B>>,
{
    pub(super) fn rejected(response: S::Response) -> Self {
        Self { state: State::Rejected { response: Some(response) } }
    }

    pub(super) fn inner(
        future: S::Future,
        middleware: Arc<Middleware<R>>,
        admission: Option<Admission>,
    ) -> Self {
        Self { state: State::Inner { future, middleware, admission } }
    }

    pub(super) fn looking_up(
        lookup: PendingAttempt,
        ready: S,
        request: Request<B>,
        middleware: Arc<Middleware<R>>,
    ) -> Self {
        let parked = Some(Box::new(Parked { ready, request, middleware }));
        Self { state: State::LookingUp { lookup, parked } }
    }
}

impl<S, B, R, ResBody> Future for ResponseFuture<S, B, R>
where
    S: Service<Request<B>, Response = Response<ResBody>>,
    R: RejectionResponse<ResBody>,
{
    type Output = Result<S::Response, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let next = match state.as_mut().project() {
                StateProj::Inner { future, middleware, admission } => {
                    let mut response = ready!(future.poll(cx))?;
                    middleware.config.finish(&mut response, admission.as_ref());
                    return Poll::Ready(Ok(response));
                }
                StateProj::LookingUp { lookup, parked } => {
                    let outcome = ready!(Pin::new(lookup).poll(cx));
                    // Always `Some`: this state is replaced below.
                    let Some(parked) = parked.take() else { return Poll::Pending };
                    let Parked { mut ready, mut request, middleware } = *parked;
                    match outcome {
                        Ok(admission) => {
                            middleware.config.attach_consumer(&mut request, &admission);
                            let future = ready.call(request);
                            State::Inner { future, middleware, admission: Some(admission) }
                        }
                        Err(rejection) => {
                            State::Rejected { response: Some(middleware.reject(&rejection)) }
                        }
                    }
                }
                StateProj::Rejected { response } => {
                    // Pending for ever if polled again after completion.
                    return response
                        .take()
                        .map_or(Poll::Pending, |response| Poll::Ready(Ok(response)));
                }
            };
            state.set(next);
        }
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
