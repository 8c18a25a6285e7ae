use std::{
    convert::Infallible,
    future::Future,
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::Request;
use pin_project_lite::pin_project;
use tower_service::Service;

pin_project! {
    /// The future of a service that checks a request and may respond in place of its inner service.
    ///
    /// `F` is the future of the inner service, `X` [finishes](Finish) its response, and `T` is the
    /// response. `W` is a request that [waits](Wait); a service that always decides in `call` has
    /// none.
    #[project = ShortCircuitProj]
    pub(in crate::layer) enum ShortCircuit<F, X, T, W = Infallible> {
        Rejected { response: Option<T> },
        Waiting { parked: W },
        Inner { #[pin] future: F, finish: X },
    }
}

impl<F, X, T, W> ShortCircuit<F, X, T, W> {
    /// Calls the inner service.
    pub(in crate::layer) fn pass<S, Req>(inner: &mut S, request: Req, finish: X) -> Self
    where
        S: Service<Req, Future = F>,
    {
        Self::Inner { future: inner.call(request), finish }
    }

    /// Responds in place of the inner service.
    pub(in crate::layer) fn reject<S: Clone>(inner: &mut S, respond: impl FnOnce() -> T) -> Self {
        // Dropping the ready service releases what `poll_ready` reserved, such as a concurrency
        // permit: on a kept-alive connection the next call may never come.
        *inner = inner.clone();
        Self::Rejected { response: Some(respond()) }
    }
}

impl<F, X, T, W, U, E> Future for ShortCircuit<F, X, T, W>
where
    F: Future<Output = Result<U, E>>,
    X: Finish<U, T>,
    W: Wait<F, X, T>,
{
    type Output = Result<T, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let next = match self.as_mut().project() {
                ShortCircuitProj::Inner { future, finish } => {
                    let response = ready!(future.poll(cx))?;
                    return Poll::Ready(Ok(finish.finish(response)));
                }
                ShortCircuitProj::Waiting { parked } => match ready!(parked.poll_decision(cx)) {
                    Ok((future, finish)) => Self::Inner { future, finish },
                    Err(response) => Self::Rejected { response: Some(response) },
                },
                ShortCircuitProj::Rejected { response } => {
                    // Pending for ever if polled again after completion.
                    return response
                        .take()
                        .map_or(Poll::Pending, |response| Poll::Ready(Ok(response)));
                }
            };
            self.set(next);
        }
    }
}

/// Turns the response `U` of the inner service into the response `T`.
pub(in crate::layer) trait Finish<U, T> {
    /// Called once.
    fn finish(&mut self, response: U) -> T;
}

impl<T> Finish<T, T> for () {
    fn finish(&mut self, response: T) -> T {
        response
    }
}

/// A request that waits for a decision.
pub(in crate::layer) trait Wait<F, X, T> {
    /// Calls the inner service or responds in its place, once there is a decision.
    fn poll_decision(&mut self, cx: &mut Context<'_>) -> Poll<Result<(F, X), T>>;
}

impl<F, X, T> Wait<F, X, T> for Infallible {
    fn poll_decision(&mut self, _: &mut Context<'_>) -> Poll<Result<(F, X), T>> {
        match *self {}
    }
}

/// A request and a ready service that wait for the decision `D`.
pub(in crate::layer) struct Parked<D, S, B, C> {
    decision: D,
    /// `None` after the decision. Boxed, so that futures that do not wait stay small.
    parked: Option<Box<(S, Request<B>, C)>>,
}

impl<D, S: Clone, B, C> Parked<D, S, B, C> {
    /// `context` applies the decision to the request.
    pub(in crate::layer) fn new(
        inner: &mut S,
        request: Request<B>,
        decision: D,
        context: C,
    ) -> Self {
        // The clone is not ready, so it stays here and the future takes the ready service:
        // https://docs.rs/tower/latest/tower/trait.Service.html#be-careful-when-cloning-inner-services
        let clone = inner.clone();
        let ready = mem::replace(inner, clone);
        Self { decision, parked: Some(Box::new((ready, request, context))) }
    }
}

impl<D, S, B, C, X, T> Wait<S::Future, X, T> for Parked<D, S, B, C>
where
    D: Future + Unpin,
    S: Service<Request<B>>,
    C: Resume<B, D::Output, X, T>,
{
    fn poll_decision(&mut self, cx: &mut Context<'_>) -> Poll<Result<(S::Future, X), T>> {
        let decision = ready!(Pin::new(&mut self.decision).poll(cx));
        // Always `Some`: the future is in another state after the decision.
        let Some(parked) = self.parked.take() else { return Poll::Pending };
        let (mut ready, request, context) = *parked;
        let resumed = context.resume(request, decision);
        Poll::Ready(resumed.map(|(request, finish)| (ready.call(request), finish)))
    }
}

/// Applies a decision that a request waited for.
pub(in crate::layer) trait Resume<B, Decision, X, T> {
    /// Prepares the request for the inner service, or rejects it.
    fn resume(self, request: Request<B>, decision: Decision) -> Result<(Request<B>, X), T>;
}
