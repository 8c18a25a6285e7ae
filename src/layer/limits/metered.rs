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
    layer::{
        ProblemJson, RejectionResponse,
        request::caller::Trusted,
        response::{RateLimitReport, complete},
    },
    rate_limit::{Buckets, Check, Decisions},
    record::Consumer,
};

/// A [`Cost`](super::Cost) or a [`RateClass`](super::RateClass) with its own renderer of
/// rejections, or with the authenticator whose consumers it charges.
#[derive(Clone, Debug)]
#[must_use]
pub struct MeteredLayer<R = ProblemJson> {
    policy: Arc<dyn ChargePolicy>,
    trusted: Trusted,
    renderer: R,
}

impl<R> MeteredLayer<R> {
    pub(super) fn new(policy: impl ChargePolicy + 'static, renderer: R) -> Self {
        Self { policy: Arc::new(policy), trusted: Trusted::default(), renderer }
    }

    /// Charges only consumers of `auth`; see [`RequireScope::of`](crate::RequireScope::of).
    pub fn of(self, auth: &Authenticator) -> Self {
        Self { trusted: Trusted::only(auth.id()), ..self }
    }
}

/// Charges a request before the inner service is called.
pub(super) trait ChargePolicy: fmt::Debug + Send + Sync {
    fn ask(&self, consumer: &Consumer) -> Outcome;
}

impl<S, R: Clone> Layer<S> for MeteredLayer<R> {
    type Service = MeteredService<S, R>;

    fn layer(&self, inner: S) -> Self::Service {
        let Self { policy, trusted, renderer } = self.clone();
        MeteredService { inner, policy, trusted, renderer }
    }
}

/// The service of [`Cost`](super::Cost) and [`RateClass`](super::RateClass).
#[derive(Clone, Debug)]
pub struct MeteredService<S, R = ProblemJson> {
    inner: S,
    policy: Arc<dyn ChargePolicy>,
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
        let outcome = match caller {
            Ok(None) => Outcome::Pass(Receipt::nothing(RateLimitReport::default())),
            Ok(Some(consumer)) => catch_request_panic(|| self.policy.ask(consumer))
                .unwrap_or_else(|_| Outcome::panicked()),
            Err(rejection) => {
                Outcome::Reject(RejectedRequest::of(rejection, RateLimitReport::default()))
            }
        };
        let state = match outcome {
            Outcome::Pass(taken) => State::Inner { future: self.inner.call(request), taken },
            Outcome::Reject(denied) => {
                // Releases what the inner service reserved in `poll_ready`.
                self.inner = self.inner.clone();
                State::Rejected { response: Some(denied.response(&self.renderer)) }
            }
            Outcome::Wait(outcome) => {
                // The clone is not ready, so it stays here and the future takes the ready service.
                let clone = self.inner.clone();
                let ready = mem::replace(&mut self.inner, clone);
                let renderer = self.renderer.clone();
                State::Waiting { outcome, parked: Some(Parked { ready, request, renderer }) }
            }
        };
        MeteredFuture { state }
    }
}

/// The outcome of charging a request: pass, reject, or wait for the limiter.
pub(super) enum Outcome {
    Pass(Receipt),
    Reject(Box<RejectedRequest>),
    Wait(Waiting),
}

impl Outcome {
    fn panicked() -> Self {
        Self::Reject(RejectedRequest::panicked())
    }
}

type Waiting = Pin<Box<dyn Future<Output = Result<Receipt, Box<RejectedRequest>>> + Send>>;

/// What a request was charged before the inner service was called.
#[derive(Default)]
pub(super) struct Receipt {
    report: RateLimitReport,
    units: Option<(Arc<dyn Buckets>, NonZeroU32, Consumer)>,
}

pub(super) struct RejectedRequest {
    rejection: Rejection,
    report: RateLimitReport,
}

/// Takes `units` from each of `buckets`. `finish` turns the decisions into a report or a denial.
pub(super) fn take(
    consumer: &Consumer,
    buckets: Arc<dyn Buckets>,
    units: NonZeroU32,
    finish: impl FnOnce(Consumer, Decisions) -> Result<RateLimitReport, Box<RejectedRequest>>
    + Send
    + 'static,
) -> Outcome {
    let Some(meter) = consumer.meter() else {
        return Outcome::Pass(Receipt::nothing(RateLimitReport::default()));
    };
    let check = buckets.take(units, meter.now());
    let consumer = consumer.clone();
    let finish = move |decisions| {
        let report = finish(consumer.clone(), decisions)?;
        Ok(Receipt { report, units: Some((buckets, units, consumer)) })
    };
    match check {
        Check::Ready(decisions) => match finish(decisions) {
            Ok(taken) => Outcome::Pass(taken),
            Err(denied) => Outcome::Reject(denied),
        },
        Check::Pending(decisions) => {
            let work = async move { finish(decisions.await) };
            Outcome::Wait(Box::pin(async move {
                catch_pending_panic(work).await.unwrap_or_else(|_| Err(RejectedRequest::panicked()))
            }))
        }
    }
}

impl Receipt {
    pub(super) fn nothing(report: RateLimitReport) -> Self {
        Self { report, units: None }
    }

    fn finish<B>(self, response: &mut Response<B>) {
        let rejection = response.extensions().get::<Rejection>();
        let is_limited = rejection.is_some_and(|r| r.kind() == RejectionKind::RateLimited);
        let Self { mut report, units } = self;
        // An inner limit rejected the request: refund the units.
        if is_limited && let Some((buckets, units, consumer)) = units {
            if let Some(meter) = consumer.meter() {
                let _ = catch_request_panic(|| buckets.give_back(units, meter.now()));
            }
            report = RateLimitReport { units: 0, own: None, ..report };
        }
        report.write(response);
    }
}

impl RejectedRequest {
    pub(super) fn of(rejection: Rejection, report: RateLimitReport) -> Box<Self> {
        Box::new(Self { rejection, report })
    }

    /// A limiter or a clock panicked.
    fn panicked() -> Box<Self> {
        Self::of(Rejection::new(RejectionKind::Internal), RateLimitReport::default())
    }

    fn response<B>(self, renderer: &impl RejectionResponse<B>) -> Response<B> {
        let mut response = complete(renderer.response(&self.rejection), self.rejection);
        self.report.write(&mut response);
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
        Waiting { outcome: Waiting, parked: Option<Parked<S, B, R>> },
        Inner { #[pin] future: F, taken: Receipt },
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
                StateProj::Waiting { outcome, parked } => {
                    let outcome = ready!(outcome.as_mut().poll(cx));
                    // Always `Some`: this state is replaced below.
                    let Some(parked) = parked.take() else { return Poll::Pending };
                    let Parked { mut ready, request, renderer } = parked;
                    match outcome {
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
