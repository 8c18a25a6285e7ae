use std::{num::NonZeroU32, sync::Arc};

use tower_layer::Layer;

use super::{
    MeteredLayer, MeteredService,
    metered::{ChargePolicy, Outcome, take},
    refund::Receipt,
    rejected_request::RejectedRequest,
};
use crate::{
    auth::{Authenticator, RateLimitStatus, Rejection},
    layer::{ProblemJson, response::RateLimitReport},
    rate_limit::Meter,
    record::Consumer,
};

/// What a request costs, in units of each quota of its key. Default: one unit.
///
/// As a layer, it sets the cost of the inner routes, charged before they run; a key with fewer
/// units left gets 429, and nothing is charged. In a response (in its extensions, or with axum as a
/// response part), it sets the actual cost: a shortfall is charged even if the quota is exhausted
/// (it becomes debt); an excess is refunded.
///
/// ```
/// use axum::{Router, response::IntoResponse, routing::post};
/// use tower_api_key::layer::Cost;
///
/// async fn summarise() -> impl IntoResponse {
///     let (tokens, text) = (1_250, "...");
///     (Cost::new(1 + tokens / 1_000), text)
/// }
///
/// let app: Router = Router::new()
///     .route("/export", post(|| async {}).layer(Cost::new(5)))
///     .route("/health", post(|| async {}).layer(Cost::FREE))
///     .route("/summaries", post(summarise));
/// ```
///
/// Apply it inside an [`ApiKeyLayer`](crate::ApiKeyLayer), which charges the first unit and rejects
/// a key with nothing left, on free routes too. Requests admitted without a key cost nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Cost(u32);

impl Cost {
    /// No units: the unit that was charged is refunded.
    pub const FREE: Self = Self(0);

    /// `units` units of each quota.
    pub const fn new(units: u32) -> Self {
        Self(units)
    }

    /// The number of units.
    #[must_use]
    pub const fn units(self) -> u32 {
        self.0
    }
}

impl Cost {
    /// As a layer, renders rejections with `renderer`. Default:
    /// [`ProblemJson`](crate::layer::ProblemJson).
    pub fn render_rejections<R>(self, renderer: R) -> MeteredLayer<R> {
        MeteredLayer::new(self, renderer)
    }

    /// As a layer, charges only consumers of `auth`; see
    /// [`RequireScope::of`](crate::RequireScope::of).
    pub fn of(self, auth: &Authenticator) -> MeteredLayer {
        MeteredLayer::new(self, ProblemJson::default()).of(auth)
    }
}

impl ChargePolicy for Cost {
    /// Charges the route's cost beyond the unit that the `ApiKeyLayer` charged.
    fn ask(&self, consumer: &Consumer) -> Outcome {
        let Some(more) = self.0.checked_sub(1) else {
            let report = RateLimitReport { wanted: Some(self.0), ..RateLimitReport::default() };
            return Outcome::Pass(Receipt::nothing(report));
        };
        let buckets = consumer.meter().and_then(Meter::buckets);
        let (Some(buckets), Some(units)) = (buckets, NonZeroU32::new(more)) else {
            // A key without quotas has a cost as well.
            consumer.count_units(more.into());
            let report = RateLimitReport { units: more, ..RateLimitReport::default() };
            return Outcome::Pass(Receipt::nothing(report));
        };
        take(consumer, Arc::clone(buckets), units, move |consumer, decisions| {
            if !decisions.is_admitted() {
                let rate_limit_status = RateLimitStatus::new(consumer, decisions);
                return Err(RejectedRequest::of(
                    Rejection::rate_limited(rate_limit_status),
                    RateLimitReport::default(),
                ));
            }
            consumer.count_units(more.into());
            Ok(RateLimitReport { units: more, own: Some(decisions), ..RateLimitReport::default() })
        })
    }
}

impl<S> Layer<S> for Cost {
    type Service = MeteredService<S>;

    fn layer(&self, inner: S) -> MeteredService<S> {
        self.render_rejections(ProblemJson::default()).layer(inner)
    }
}
