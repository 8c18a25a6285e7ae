use std::{num::NonZeroU32, sync::Arc};

use tower_layer::Layer;

use super::{
    MeteredLayer, MeteredService,
    metered::{Denied, Taken, Toll, Verdict, take},
};
use crate::{
    auth::{Authenticator, Rejection, Standing},
    layer::{ProblemJson, tally::Tally},
    rate_limit::Meter,
    record::Consumer,
};

/// What a request costs: so many units of each quota of its key. Default: one.
///
/// As a layer it is what the routes inside cost, taken before they begin; a key that has fewer
/// left gets 429, and nothing is taken. In a response (its extensions, or with axum as a part of it) it
/// is what the request has cost after all: what is missing is taken even where it is not there any
/// more, and what was too much is given back.
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
/// It goes inside an [`ApiKeyLayer`](crate::ApiKeyLayer), which takes the first unit; a key with
/// nothing left is turned away there, on a free route as well. Requests without a key, where that
/// is allowed, cost nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Cost(u32);

impl Cost {
    /// Nothing: the unit that was taken is given back.
    pub const FREE: Self = Self(0);

    /// So many units of each quota.
    pub const fn new(units: u32) -> Self {
        Self(units)
    }

    /// The units.
    #[must_use]
    pub const fn units(self) -> u32 {
        self.0
    }
}

impl Cost {
    /// As a layer, renders rejections in another way. Default: [`ProblemJson`](crate::layer::ProblemJson).
    pub fn render_rejections<R>(self, renderer: R) -> MeteredLayer<R> {
        MeteredLayer::new(self, renderer)
    }

    /// As a layer, only charges consumers of `auth`; see
    /// [`RequireScope::of`](crate::RequireScope::of).
    pub fn of(self, auth: &Authenticator) -> MeteredLayer {
        MeteredLayer::new(self, ProblemJson::default()).of(auth)
    }
}

impl Toll for Cost {
    /// Takes what the route costs beyond the unit that was taken outside.
    fn ask(&self, consumer: &Consumer) -> Verdict {
        let Some(more) = self.0.checked_sub(1) else {
            let tally = Tally { wanted: Some(self.0), ..Tally::default() };
            return Verdict::Pass(Taken::nothing(tally));
        };
        let buckets = consumer.meter().and_then(Meter::buckets);
        let (Some(buckets), Some(units)) = (buckets, NonZeroU32::new(more)) else {
            return Verdict::Pass(Taken::nothing(Tally::default()));
        };
        take(consumer, Arc::clone(buckets), units, move |consumer, decisions| {
            if !decisions.is_admitted() {
                let standing = Standing::new(consumer, decisions);
                return Err(Denied::of(Rejection::rate_limited(standing), Tally::default()));
            }
            Ok(Tally { units: more, own: Some(decisions), ..Tally::default() })
        })
    }
}

impl<S> Layer<S> for Cost {
    type Service = MeteredService<S>;

    fn layer(&self, inner: S) -> MeteredService<S> {
        self.render_rejections(ProblemJson::default()).layer(inner)
    }
}
