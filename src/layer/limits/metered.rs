use std::{
    fmt,
    future::Future,
    mem,
    num::NonZeroU32,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    auth::{Authenticator, Rejection, RejectionKind, catch_pending_panic, catch_request_panic},
    layer::{ProblemJson, RejectionResponse, caller::Trusted, response::complete, tally::Tally},
    rate_limit::{Buckets, Check, Decisions},
    record::Consumer,
};

/// A [`Cost`](super::Cost) or a [`RateClass`](super::RateClass) with its own renderer of
/// rejections, or with the authenticator whose consumers it charges.
#[derive(Clone, Debug)]
#[must_use]
pub struct MeteredLayer<R = ProblemJson> {
    toll: Arc<dyn Toll>,
    trusted: Trusted,
    renderer: R,
}

impl<R> MeteredLayer<R> {
    pub(super) fn new(toll: impl Toll + 'static, renderer: R) -> Self {
        Self { toll: Arc::new(toll), trusted: Trusted::default(), renderer }
    }

    /// Charges only consumers of `auth`; see [`RequireScope::of`](crate::RequireScope::of).
    pub fn of(self, auth: &Authenticator) -> Self {
        Self { trusted: Trusted::only(auth.id()), ..self }
    }
}

/// Charges a request before the inner service is called.
pub(super) trait Toll: fmt::Debug + Send + Sync {
    fn ask(&self, consumer: &Consumer) -> Verdict;
}

impl<S, R: Clone> Layer<S> for MeteredLayer<R> {
    type Service = MeteredService<S, R>;

    fn layer(&self, inner: S) -> Self::Service {
        let Self { toll, trusted, renderer } = self.clone();
        MeteredService { inner, toll, trusted, renderer }
    }
}

/// The service of [`Cost`](super::Cost) and [`RateClass`](super::RateClass).
#[derive(Clone, Debug)]
pub struct MeteredService<S, R = ProblemJson> {
    inner: S,
    toll: Arc<dyn Toll>,
    trusted: Trusted,
    renderer: R,
}

impl<S, R, ReqBody, ResBody> Service<Request<ReqBody>> for MeteredService<S, R>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
    R: RejectionResponse<ResBody> + Clone,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = MeteredFuture<S, ReqBody, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let caller = self.trusted.charged_caller(request.extensions()).map_err(Rejection::new);
        let verdict = match caller {
            Ok(None) => Verdict::Pass(Taken::nothing(Tally::default())),
            Ok(Some(consumer)) => catch_request_panic(|| self.toll.ask(consumer))
                .unwrap_or_else(|_| Verdict::panicked()),
            Err(rejection) => Verdict::Reject(Denied::of(rejection, Tally::default())),
        };
        let state = match verdict {
            Verdict::Pass(taken) => State::Inner { future: self.inner.call(request), taken },
            Verdict::Reject(denied) => {
                // Releases what the inner service reserved in `poll_ready`.
                self.inner = self.inner.clone();
                State::Rejected { response: Some(denied.response(&self.renderer)) }
            }
            Verdict::Wait(verdict) => {
                // The clone is not ready, so it stays here and the future takes the ready service.
                let clone = self.inner.clone();
                let ready = mem::replace(&mut self.inner, clone);
                let renderer = self.renderer.clone();
                State::Waiting { verdict, parked: Some(Parked { ready, request, renderer }) }
            }
        };
        MeteredFuture { state }
    }
}

/// The outcome of charging a request: pass, reject, or wait for the limiter.
pub(super) enum Verdict {
    Pass(Taken),
    Reject(Box<Denied>),
    Wait(Waiting),
}

impl Verdict {
    fn panicked() -> Self {
        Self::Reject(Denied::panicked())
    }
}

type Waiting = Pin<Box<dyn Future<Output = Result<Taken, Box<Denied>>> + Send>>;

/// What a request was charged before the inner service was called.
#[derive(Default)]
pub(super) struct Taken {
    tally: Tally,
    units: Option<(Arc<dyn Buckets>, NonZeroU32, Consumer)>,
}

pub(super) struct Denied {
    rejection: Rejection,
    tally: Tally,
}

/// Takes `units` from each of `buckets`. `conclude` turns the decisions into a report or a denial.
pub(super) fn take(
    consumer: &Consumer,
    buckets: Arc<dyn Buckets>,
    units: NonZeroU32,
    conclude: impl FnOnce(Consumer, Decisions) -> Result<Tally, Box<Denied>> + Send + 'static,
) -> Verdict {
    let Some(meter) = consumer.meter() else {
        return Verdict::Pass(Taken::nothing(Tally::default()));
    };
    let check = buckets.take(units, meter.now());
    let consumer = consumer.clone();
    let conclude = move |decisions| {
        let tally = conclude(consumer.clone(), decisions)?;
        Ok(Taken { tally, units: Some((buckets, units, consumer)) })
    };
    match check {
        Check::Ready(decisions) => match conclude(decisions) {
            Ok(taken) => Verdict::Pass(taken),
            Err(denied) => Verdict::Reject(denied),
        },
        Check::Pending(decisions) => {
            let work = async move { conclude(decisions.await) };
            Verdict::Wait(Box::pin(async move {
                catch_pending_panic(work).await.unwrap_or_else(|_| Err(Denied::panicked()))
            }))
        }
    }
}

impl Taken {
    pub(super) fn nothing(tally: Tally) -> Self {
        Self { tally, units: None }
    }

    fn finish<B>(self, response: &mut Response<B>) {
        let rejection = response.extensions().get::<Rejection>();
        let is_limited = rejection.is_some_and(|r| r.kind() == RejectionKind::RateLimited);
        let Self { mut tally, units } = self;
        // An inner limit rejected the request: refund the units.
        if is_limited && let Some((buckets, units, consumer)) = units {
            if let Some(meter) = consumer.meter() {
                let _ = catch_request_panic(|| buckets.give_back(units, meter.now()));
            }
            tally = Tally { units: 0, own: None, ..tally };
        }
        tally.write(response);
    }
}

impl Denied {
    pub(super) fn of(rejection: Rejection, tally: Tally) -> Box<Self> {
        Box::new(Self { rejection, tally })
    }

    /// A limiter or a clock panicked.
    fn panicked() -> Box<Self> {
        Self::of(Rejection::new(RejectionKind::Internal), Tally::default())
    }

    fn response<B>(self, renderer: &impl RejectionResponse<B>) -> Response<B> {
        let mut response = complete(renderer.response(&self.rejection), self.rejection);
        self.tally.write(&mut response);
        response
    }
}

pin_project! {
    /// The response future of [`MeteredService`].
    pub struct MeteredFuture<S, B, R>
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
        Waiting { verdict: Waiting, parked: Option<Parked<S, B, R>> },
        Inner { #[pin] future: F, taken: Taken },
    }
}

struct Parked<S, B, R> {
    ready: S,
    request: Request<B>,
    renderer: R,
}

impl<S, B, R, ResBody> Future for MeteredFuture<S, B, R>
where
    S: Service<Request<B>, Response = Response<ResBody>>,
    R: RejectionResponse<ResBody>,
{
    type Output = Result<S::Response, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let next = match state.as_mut().project() {
                StateProj::Inner { future, taken } => {
                    let mut response = ready!(future.poll(cx))?;
                    mem::take(taken).finish(&mut response);
                    return Poll::Ready(Ok(response));
                }
                StateProj::Waiting { verdict, parked } => {
                    let verdict = ready!(verdict.as_mut().poll(cx));
                    // Always `Some`: this state is replaced below.
                    let Some(parked) = parked.take() else { return Poll::Pending };
                    let Parked { mut ready, request, renderer } = parked;
                    match verdict {
                        Ok(taken) => State::Inner { future: ready.call(request), taken },
                        Err(denied) => {
                            State::Rejected { response: Some(denied.response(&renderer)) }
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

impl<S, B, R> fmt::Debug for MeteredFuture<S, B, R>
where
    S: Service<Request<B>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MeteredFuture")
    }
}
