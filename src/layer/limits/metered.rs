use std::{
    fmt,
    future::Future,
    num::NonZeroU32,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{refund::Receipt, rejected_request::RejectedRequest};
use crate::{
    auth::{Authenticator, Rejection, catch_pending_panic, catch_request_panic},
    layer::{
        ProblemJson, RejectionResponse,
        request::caller::{Trusted, shadowed},
        response::RateLimitReport,
        short_circuit::{Parked, Resume, ShortCircuit},
    },
    rate_limit::port::{Buckets, Check, Decisions},
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
        let Self { inner, renderer, .. } = self;
        let future = match outcome {
            Outcome::Pass(receipt) => ShortCircuit::pass(inner, request, receipt),
            Outcome::Reject(rejected) => match pass_in_shadow(&request, rejected) {
                Ok(receipt) => ShortCircuit::pass(inner, request, receipt),
                Err(rejected) => {
                    ShortCircuit::reject(inner, || rejected.response(renderer, request))
                }
            },
            Outcome::Wait(charge) => {
                let parked = Parked::new(inner, request, charge, Renderer(renderer.clone()));
                ShortCircuit::Waiting { parked }
            }
        };
        MeteredFuture { future }
    }
}

/// The outcome of charging a request: pass, reject, or wait for the limiter.
pub(super) enum Outcome {
    Pass(Receipt),
    Reject(Box<RejectedRequest>),
    Wait(PendingCharge),
}

impl Outcome {
    fn panicked() -> Self {
        Self::Reject(RejectedRequest::panicked())
    }
}

type Charged = Result<Receipt, Box<RejectedRequest>>;
type PendingCharge = Pin<Box<dyn Future<Output = Charged> + Send>>;

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
        Ok(Receipt::of(report, buckets, units, consumer))
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

/// Lets a request pass that was rejected, if the layer around it is in shadow mode.
fn pass_in_shadow<B>(request: &Request<B>, rejected: Box<RejectedRequest>) -> Charged {
    let Some(would_reject) = shadowed(request.extensions()) else { return Err(rejected) };
    would_reject.note(rejected.rejection);
    Ok(Receipt::nothing(RateLimitReport::default()))
}

/// Renders the rejection of a request that waited for its charge.
struct Renderer<R>(R);

impl<R, B, T> Resume<B, Charged, Receipt, Response<T>> for Renderer<R>
where
    R: RejectionResponse<T>,
{
    fn resume(
        self,
        request: Request<B>,
        charged: Charged,
    ) -> Result<(Request<B>, Receipt), Response<T>> {
        match charged.or_else(|rejected| pass_in_shadow(&request, rejected)) {
            Ok(receipt) => Ok((request, receipt)),
            Err(rejected) => Err(rejected.response(&self.0, request)),
        }
    }
}

pin_project! {
    /// The response future of [`MeteredService`].
    pub struct MeteredFuture<S, B, R>
    where
        S: Service<Request<B>>,
    {
        #[pin]
        future: ShortCircuit<
            S::Future,
            Receipt,
            S::Response,
            Parked<PendingCharge, S, B, Renderer<R>>,
        >,
    }
}

impl<S, B, R, ResBody> Future for MeteredFuture<S, B, R>
where
    S: Service<Request<B>, Response = Response<ResBody>>,
    R: RejectionResponse<ResBody>,
{
    type Output = Result<S::Response, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().future.poll(cx)
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
