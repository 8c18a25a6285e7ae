use std::{
    collections::HashMap,
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{
    concurrency_body::ConcurrencyLimitBody,
    in_flight::{Holder, InFlight, Permit},
    rejected_request::RejectedRequest,
};
use crate::{
    auth::{Authenticator, Rejection},
    layer::{
        ProblemJson, RejectionResponse,
        request::caller::{Trusted, shadowed},
        response::{Policy, RateLimitReport, headers::state_begin},
        short_circuit::{Finish, ShortCircuit},
    },
    rate_limit::{CountedPer, Decision, InvalidQuota, Quota},
    record::Consumer,
};

/// `Retry-After` of a rejected request. When another request will end is unknown.
const RETRY: Duration = Duration::from_secs(1);

/// Limits how many requests of one key or consumer may be in flight at once. Further requests get
/// 429.
///
/// A request is in flight until the body of its response has ended or is dropped, so downloads and
/// streams count for as long as they last. An upgraded request, such as a WebSocket, counts only
/// until its handshake is done.
///
/// ```
/// use axum::{Router, routing::get};
/// use tower_api_key::{Consumer, layer::ConcurrencyLimit};
///
/// # fn main() -> Result<(), tower_api_key::rate_limit::InvalidQuota> {
/// let exports = ConcurrencyLimit::per_key(2)?;
/// let answers = ConcurrencyLimit::per_consumer(5)?.for_plan("pro", 50)?;
/// let app: Router = Router::new()
///     .route("/export", get(|| async {}).layer(exports))
///     .route("/answers", get(|| async {}).layer(answers));
/// # Ok(())
/// # }
/// ```
///
/// Apply it inside an [`ApiKeyLayer`](crate::ApiKeyLayer), around the routes that share the limit:
/// clones count together. It counts per process, so a fleet of `n` nodes admits up to `n` times as
/// many. `RateLimit-Policy` names it `concurrent`, with `qu="concurrent-requests"`. Requests
/// admitted without a key are not counted. Inside a layer in [shadow
/// mode](crate::ApiKeyLayer::shadow), further requests pass and are not counted either.
#[derive(Clone, Debug)]
#[must_use]
pub struct ConcurrencyLimit<R = ProblemJson> {
    terms: Arc<Config>,
    in_flight: Arc<InFlight>,
    trusted: Trusted,
    renderer: R,
}

#[derive(Clone, Debug)]
struct Config {
    per: CountedPer,
    name: String,
    default: Limit,
    of_plans: HashMap<String, Limit>,
}

#[derive(Clone, Debug)]
struct Limit {
    most: u32,
    policy: Arc<Policy>,
}

impl ConcurrencyLimit {
    /// At most `limit` requests at once of each key together with its successors by rotation.
    ///
    /// # Errors
    ///
    /// If `limit` is zero.
    pub fn per_key(limit: u32) -> Result<Self, InvalidQuota> {
        Self::new(CountedPer::Key, limit)
    }

    /// At most `limit` requests at once of all keys of a consumer together.
    ///
    /// # Errors
    ///
    /// If `limit` is zero.
    pub fn per_consumer(limit: u32) -> Result<Self, InvalidQuota> {
        Self::new(CountedPer::Consumer, limit)
    }

    fn new(per: CountedPer, most: u32) -> Result<Self, InvalidQuota> {
        let name = "concurrent".to_owned();
        let default = Limit::new(&name, most)?;
        Ok(Self {
            terms: Arc::new(Config { per, name, default, of_plans: HashMap::new() }),
            in_flight: Arc::default(),
            trusted: Trusted::default(),
            renderer: ProblemJson::default(),
        })
    }
}

impl<R> ConcurrencyLimit<R> {
    /// A different limit for keys on the plan `plan`.
    ///
    /// # Errors
    ///
    /// If `limit` is zero.
    pub fn for_plan(mut self, plan: impl Into<String>, limit: u32) -> Result<Self, InvalidQuota> {
        let terms = Arc::make_mut(&mut self.terms);
        terms.of_plans.insert(plan.into(), Limit::new(&terms.name, limit)?);
        Ok(self)
    }

    /// Names the policy, for requests that pass several of these layers. Default: `concurrent`.
    ///
    /// # Errors
    ///
    /// As [`Quota::named`].
    pub fn named(mut self, name: impl Into<String>) -> Result<Self, InvalidQuota> {
        let name = name.into();
        Quota::per_second(1)?.named(&*name)?;
        let terms = Arc::make_mut(&mut self.terms);
        for limit in terms.of_plans.values_mut().chain([&mut terms.default]) {
            *limit = Limit::new(&name, limit.most)?;
        }
        terms.name = name;
        Ok(self)
    }

    /// Renders rejections with `renderer`. Default: [`ProblemJson`].
    pub fn render_rejections<R2>(self, renderer: R2) -> ConcurrencyLimit<R2> {
        let Self { terms, in_flight, trusted, .. } = self;
        ConcurrencyLimit { terms, in_flight, trusted, renderer }
    }

    /// Counts only consumers of `auth`; see [`RequireScope::of`](crate::RequireScope::of).
    pub fn of(self, auth: &Authenticator) -> Self {
        Self { trusted: Trusted::only(auth.id()), ..self }
    }
}

impl Limit {
    fn new(name: &str, most: u32) -> Result<Self, InvalidQuota> {
        if most == 0 {
            return Err(InvalidQuota::Zero);
        }
        let item = format!("\"{name}\";q={most};qu=\"concurrent-requests\"").into();
        let (state, refills) = (state_begin(name), false);
        Ok(Self { most, policy: Arc::new(Policy { name: name.into(), item, state, refills }) })
    }
}

impl Config {
    /// Admits one more request and reports the remaining limit, or denies it.
    fn enter(
        &self,
        in_flight: &Arc<InFlight>,
        consumer: &Consumer,
    ) -> Result<Entered, Box<RejectedRequest>> {
        let plan = consumer.plan().and_then(|plan| self.of_plans.get(plan));
        let &Limit { most, ref policy } = plan.unwrap_or(&self.default);
        let subject = consumer.subject();
        let holder = match self.per {
            CountedPer::Consumer => Holder::Consumer(subject.consumer().into()),
            CountedPer::Key => Holder::Key(subject.root()),
        };
        match in_flight.enter(holder, most) {
            Some((permit, left)) => {
                let decision = Decision::admit(left, Duration::ZERO);
                Ok(Entered { permit, report: RateLimitReport::of(Arc::clone(policy), decision) })
            }
            None => {
                let violated = [Arc::clone(&policy.name)].into();
                let rejection = Rejection::beyond(consumer.key_id(), violated, RETRY);
                let report = RateLimitReport::of(Arc::clone(policy), Decision::deny(RETRY));
                Err(RejectedRequest::of(rejection, report))
            }
        }
    }
}

struct Entered {
    permit: Permit,
    report: RateLimitReport,
}

impl<S, R: Clone> Layer<S> for ConcurrencyLimit<R> {
    type Service = ConcurrencyLimitService<S, R>;

    fn layer(&self, inner: S) -> Self::Service {
        ConcurrencyLimitService { inner, limit: self.clone() }
    }
}

/// The service of [`ConcurrencyLimit`].
#[derive(Clone, Debug)]
pub struct ConcurrencyLimitService<S, R = ProblemJson> {
    inner: S,
    limit: ConcurrencyLimit<R>,
}

impl<S, R, ReqBody, ResBody> Service<Request<ReqBody>> for ConcurrencyLimitService<S, R>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
    R: RejectionResponse<ResBody>,
{
    type Response = Response<ConcurrencyLimitBody<ResBody>>;
    type Error = S::Error;
    type Future = ConcurrencyLimitFuture<S::Future, ResBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let Self { inner, limit } = self;
        let ConcurrencyLimit { terms, in_flight, trusted, renderer } = &*limit;
        let entered = match trusted.caller(request.extensions()).map_err(Rejection::new) {
            Ok(None) => Ok(None),
            Ok(Some(consumer)) => terms.enter(in_flight, consumer).map(Some),
            Err(rejection) => Err(RejectedRequest::of(rejection, RateLimitReport::default())),
        };
        let future = match entered {
            Ok(entered) => ShortCircuit::pass(inner, request, entered),
            Err(rejected) => match shadowed(request.extensions()) {
                Some(would_reject) => {
                    would_reject.note(rejected.rejection);
                    ShortCircuit::pass(inner, request, None)
                }
                None => ShortCircuit::reject(inner, || {
                    let response = rejected.response(renderer, request);
                    response.map(|body| ConcurrencyLimitBody::new(body, None))
                }),
            },
        };
        ConcurrencyLimitFuture { future }
    }
}

impl<B> Finish<Response<B>, Response<ConcurrencyLimitBody<B>>> for Option<Entered> {
    fn finish(&mut self, mut response: Response<B>) -> Response<ConcurrencyLimitBody<B>> {
        let permit = self.take().map(|Entered { permit, report }| {
            report.write(&mut response);
            permit
        });
        response.map(|body| ConcurrencyLimitBody::new(body, permit))
    }
}

pin_project! {
    /// The response future of [`ConcurrencyLimitService`].
    pub struct ConcurrencyLimitFuture<F, B> {
        #[pin]
        future: ShortCircuit<F, Option<Entered>, Response<ConcurrencyLimitBody<B>>>,
    }
}

impl<F, B, E> Future for ConcurrencyLimitFuture<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<ConcurrencyLimitBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().future.poll(cx)
    }
}

impl<F, B> fmt::Debug for ConcurrencyLimitFuture<F, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ConcurrencyLimitFuture")
    }
}
