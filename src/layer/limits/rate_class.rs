use std::{collections::BTreeMap, num::NonZeroU32, sync::Arc};

use tower_layer::Layer;

use super::{
    MeteredLayer, MeteredService,
    metered::{ChargePolicy, Outcome, take},
    refund::Receipt,
    rejected_request::RejectedRequest,
};
use crate::{
    auth::{self, Authenticator, Rejection},
    layer::{
        ProblemJson,
        response::{
            Policy, RateLimitReport,
            headers::{policy_item, state_begin},
        },
    },
    rate_limit::{InvalidQuota, Quota, RateLimits},
    record::Consumer,
};

/// A class of routes with quotas of their own, such as an expensive search. These quotas apply to
/// each key in addition to its own.
///
/// ```
/// use axum::{Router, routing::get};
/// use tower_api_key::{layer::RateClass, rate_limit::Quota};
///
/// # fn main() -> Result<(), tower_api_key::rate_limit::InvalidQuota> {
/// let search = RateClass::new("search", Quota::per_minute(10)?)?
///     .for_plan("pro", Quota::per_minute(100)?)?;
/// let app: Router = Router::new()
///     .route("/search", get(|| async {}).layer(search.clone()))
///     .route("/suggestions", get(|| async {}).layer(search));
/// # Ok(())
/// # }
/// ```
///
/// All routes of a class share its buckets: in this process or, with a shared limiter, across the
/// fleet. A request takes from the quotas of its key *and* of the class, from all or from none. The
/// headers name the policies after the class: `search`, or `search-minute` and `search-day` if it
/// has several.
///
/// Apply it inside an [`ApiKeyLayer`](crate::ApiKeyLayer). Requests admitted without a key are not
/// limited by a class.
#[derive(Clone, Debug)]
#[must_use]
pub struct RateClass(Arc<Class>);

#[derive(Clone, Debug)]
struct Class {
    name: String,
    default: Quotas,
    of_plans: BTreeMap<String, Quotas>,
}

/// Quotas named after their class, and their items in the headers.
#[derive(Clone, Debug)]
struct Quotas {
    limits: RateLimits,
    policies: Arc<[Arc<Policy>]>,
}

impl RateClass {
    /// The class `name` with these quotas for every key.
    ///
    /// # Errors
    ///
    /// If the name is empty, contains anything but letters, digits, `-`, `_` and `.`, or is too
    /// long: joined with the name of a quota, it may have at most 64 characters.
    pub fn new(
        name: impl Into<String>,
        limits: impl Into<RateLimits>,
    ) -> Result<Self, InvalidQuota> {
        let name = name.into();
        let default = Quotas::new(&name, &limits.into())?;
        // Without quotas, nothing above has validated the name.
        Quota::per_second(1)?.named(&*name)?;
        Ok(Self(Arc::new(Class { name, default, of_plans: BTreeMap::new() })))
    }

    /// Different quotas for keys on the plan `plan`.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn for_plan(
        self,
        plan: impl Into<String>,
        limits: impl Into<RateLimits>,
    ) -> Result<Self, InvalidQuota> {
        let mut class = Arc::unwrap_or_clone(self.0);
        class.of_plans.insert(plan.into(), Quotas::new(&class.name, &limits.into())?);
        Ok(Self(Arc::new(class)))
    }

    /// Renders rejections with `renderer`. Default: [`ProblemJson`].
    pub fn render_rejections<R>(self, renderer: R) -> MeteredLayer<R> {
        MeteredLayer::new(self, renderer)
    }

    /// Charges only consumers of `auth`; see [`RequireScope::of`](crate::RequireScope::of).
    pub fn of(self, auth: &Authenticator) -> MeteredLayer {
        MeteredLayer::new(self, ProblemJson::default()).of(auth)
    }
}

impl ChargePolicy for RateClass {
    fn ask(&self, consumer: &Consumer) -> Outcome {
        let quotas = self.0.quotas_of(consumer);
        let buckets = consumer.meter().and_then(|meter| {
            meter.buckets_of(&self.0.name, &quotas.limits, consumer.subject(), meter.now())
        });
        let Some(buckets) = buckets.cloned() else {
            return Outcome::Pass(Receipt::nothing(RateLimitReport::default()));
        };
        let policies = Arc::clone(&quotas.policies);
        take(consumer, buckets, NonZeroU32::MIN, move |consumer, decisions| {
            let more = policies.iter().cloned().zip(decisions.iter().copied()).collect();
            let report = RateLimitReport { more, ..RateLimitReport::default() };
            if decisions.is_admitted() {
                return Ok(report);
            }
            let violated = report.more.iter().filter(|(_, decision)| !decision.is_admitted());
            let violated = violated.map(|(policy, _)| Arc::clone(&policy.name)).collect();
            let wait = auth::wait(&decisions);
            Err(RejectedRequest::of(Rejection::beyond(consumer.key_id(), violated, wait), report))
        })
    }
}

impl Class {
    fn quotas_of(&self, consumer: &Consumer) -> &Quotas {
        consumer.plan().and_then(|plan| self.of_plans.get(plan)).unwrap_or(&self.default)
    }
}

impl Quotas {
    fn new(class: &str, limits: &RateLimits) -> Result<Self, InvalidQuota> {
        let is_only_one = limits.iter().len() == 1;
        let named = |quota: &Quota| match is_only_one {
            true => quota.clone().named(class),
            false => quota.clone().named(format!("{class}-{}", quota.name())),
        };
        let limits = RateLimits::new(limits.iter().map(named).collect::<Result<Vec<_>, _>>()?)?;
        let policy = |quota: &Quota| {
            let (name, item) = (quota.name(), policy_item(quota));
            Arc::new(Policy { name: name.into(), item, state: state_begin(name), refills: true })
        };
        let policies = limits.iter().map(policy).collect();
        Ok(Self { limits, policies })
    }
}

impl<S> Layer<S> for RateClass {
    type Service = MeteredService<S>;

    fn layer(&self, inner: S) -> MeteredService<S> {
        self.clone().render_rejections(ProblemJson::default()).layer(inner)
    }
}
