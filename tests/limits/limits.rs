//! Limits of a request beside the quotas of its key: cost, classes of routes, plans, consumers and
//! concurrency.

use std::{
    convert::Infallible,
    future::Future as _,
    num::NonZeroU32,
    sync::{Arc, Mutex},
    task::{Context, Waker},
    time::Duration,
};

use axum::{
    Extension, Router,
    body::Body,
    response::{IntoResponse, Response},
    routing::{MethodRouter, get},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use tower::ServiceExt;
use tower_api_key::{
    ApiKeyLayer, Authenticator, RequireScope,
    auth::{Attempt, Event, RejectionKind},
    layer::{ConcurrencyLimit, Cost, RateClass, StatusOnly},
    manage::{Expiry, NewKey},
    rate_limit::{
        InvalidPlan, InvalidQuota, LocalRateLimiter, Plans, Quota, RateLimiter, RateLimits,
        port::{Buckets, Check, Subject},
    },
};

use crate::app::{Answer, Keys, SECOND, send, text};

const MINUTE: Duration = Duration::from_secs(60);

async fn call(app: &Router, path: &str, key: &str) -> Answer {
    send(app.clone(), request(path, key)).await
}

fn request(path: &str, key: &str) -> Request<Body> {
    let request = Request::get(path).header("authorization", format!("Bearer {key}"));
    request.body(Body::empty()).unwrap()
}

/// Routes behind a layer whose keys have these limits.
fn guarded(keys: &Keys, limits: impl Into<RateLimits>, routes: Router) -> Router {
    let (auth, _) = keys.builder().default_rate_limits(limits).build();
    routes.layer(ApiKeyLayer::new(auth))
}

fn per_minute(limit: u32) -> Quota {
    Quota::per_minute(limit).unwrap()
}

async fn left(app: &Router, path: &str, key: &str) -> String {
    call(app, path, key).await.header("ratelimit").unwrap().to_owned()
}

/// A limiter whose decisions take time, as those of a shared limiter do.
struct Pending(LocalRateLimiter);

struct PendingBuckets(Arc<dyn Buckets>);

impl RateLimiter for Pending {
    fn buckets(
        &self,
        subject: &Subject<'_>,
        limits: &RateLimits,
        now: Duration,
    ) -> Arc<dyn Buckets> {
        Arc::new(PendingBuckets(self.0.buckets(subject, limits, now)))
    }

    fn sweep(&self, now: Duration) {
        self.0.sweep(now);
    }
}

impl Buckets for PendingBuckets {
    fn take(&self, units: NonZeroU32, now: Duration) -> Check {
        let Check::Ready(decisions) = self.0.take(units, now) else { panic!() };
        Check::Pending(Box::pin(async {
            tokio::task::yield_now().await;
            decisions
        }))
    }

    fn peek(&self, now: Duration) -> Check {
        self.0.peek(now)
    }

    fn charge(&self, units: NonZeroU32, now: Duration) {
        self.0.charge(units, now);
    }

    fn give_back(&self, units: NonZeroU32, now: Duration) {
        self.0.give_back(units, now);
    }
}

mod cost {
    use super::*;

    fn routes() -> Router {
        Router::new()
            .route("/", get(|| async {}))
            .route("/dear", get(|| async {}).layer(Cost::new(5)))
            .route("/free", get(|| async {}).layer(Cost::FREE))
            .route("/metered", get(|| async { (Cost::new(4), "done") }))
            .route("/refunded", get(|| async { (Extension(Cost::FREE), "nothing new") }))
            .route("/less", get(|| async { (Cost::new(2), "less") }).layer(Cost::new(5)))
            .route("/more", get(|| async { (Cost::new(8), "more") }).layer(Cost::new(5)))
    }

    #[tokio::test]
    async fn a_route_takes_what_it_costs() {
        let keys = Keys::new();
        let app = guarded(&keys, per_minute(20), routes());
        let key = keys.key().await;
        assert_eq!(left(&app, "/", &key).await, r#""minute";r=19;t=3"#);
        assert_eq!(left(&app, "/dear", &key).await, r#""minute";r=14;t=3"#);
        assert_eq!(left(&app, "/free", &key).await, r#""minute";r=14;t=3"#);
        assert_eq!(left(&app, "/dear", &key).await, r#""minute";r=9;t=3"#);
        assert_eq!(left(&app, "/", &key).await, r#""minute";r=8;t=3"#);
    }

    #[tokio::test]
    async fn a_request_waits_for_a_decision_on_its_cost() {
        let keys = Keys::new();
        let builder = keys.builder().rate_limiter(Pending(LocalRateLimiter::new()));
        let (auth, _) = builder.default_rate_limits(per_minute(12)).build();
        let app = routes().layer(ApiKeyLayer::new(auth));
        let key = keys.key().await;
        assert_eq!(left(&app, "/dear", &key).await, r#""minute";r=7;t=5"#);
        assert_eq!(left(&app, "/dear", &key).await, r#""minute";r=2;t=5"#);
        let denied = call(&app, "/dear", &key).await;
        assert_eq!(denied.status, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(denied.json()["violated-policies"], serde_json::json!(["minute"]));
        assert_eq!(denied.header("ratelimit"), Some(r#""minute";r=2;t=5"#));
    }

    #[tokio::test]
    async fn what_does_not_fit_is_denied_and_takes_nothing() {
        let keys = Keys::new();
        let day = Quota::per(100, 24 * 60 * MINUTE).unwrap().named("day").unwrap();
        let app = guarded(&keys, RateLimits::new([per_minute(7), day]).unwrap(), routes());
        let key = keys.key().await;
        assert_eq!(call(&app, "/dear", &key).await.status, StatusCode::OK);
        for _ in 0..3 {
            let answer = call(&app, "/dear", &key).await;
            assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
            assert_eq!(answer.kind(), Some(RejectionKind::RateLimited));
            assert_eq!(answer.json()["violated-policies"], serde_json::json!(["minute"]));
            // Three more units refill in 3 x 60 / 7 seconds.
            assert_eq!(answer.header("retry-after"), Some("26"));
            let state = r#""minute";r=2;t=9, "day";r=95;t=864"#;
            assert_eq!(answer.header("ratelimit"), Some(state));
        }
        keys.clock.advance(26 * SECOND);
        assert_eq!(call(&app, "/dear", &key).await.status, StatusCode::OK);
    }

    #[tokio::test]
    async fn a_cost_beyond_the_quota_is_never_there() {
        let keys = Keys::new();
        let app = guarded(&keys, per_minute(4), routes());
        let key = keys.key().await;
        keys.clock.advance(MINUTE);
        assert_eq!(call(&app, "/dear", &key).await.status, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(left(&app, "/", &key).await, r#""minute";r=3;t=15"#);
    }

    #[tokio::test]
    async fn a_response_says_what_its_request_has_cost_after_all() {
        let keys = Keys::new();
        let app = guarded(&keys, per_minute(60), routes());
        let key = keys.key().await;
        for (path, left_then) in
            [("/metered", 56), ("/refunded", 56), ("/less", 54), ("/more", 46), ("/", 45)]
        {
            let state = format!(r#""minute";r={left_then};t=1"#);
            assert_eq!(left(&app, path, &key).await, state, "{path}");
        }
    }

    #[tokio::test]
    async fn what_is_not_there_any_more_is_paid_off_by_waiting() {
        let keys = Keys::new();
        let app = guarded(&keys, per_minute(6), routes());
        let key = keys.key().await;
        for _ in 0..4 {
            assert_eq!(call(&app, "/", &key).await.status, StatusCode::OK);
        }
        // Two units are left, and the request costs four.
        let answer = call(&app, "/metered", &key).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.header("ratelimit"), Some(r#""minute";r=0;t=30"#));
        assert_eq!(call(&app, "/", &key).await.header("retry-after"), Some("30"));
        keys.clock.advance(30 * SECOND);
        assert_eq!(call(&app, "/", &key).await.status, StatusCode::OK);
        assert_eq!(call(&app, "/", &key).await.status, StatusCode::TOO_MANY_REQUESTS);
    }

    #[tokio::test]
    async fn a_layer_that_does_not_charge_charges_no_cost_either() {
        let keys = Keys::new();
        let (auth, _) = keys.builder().default_rate_limits(per_minute(3)).build();
        let app = routes().layer(ApiKeyLayer::new(auth).danger_without_charge());
        let key = keys.key().await;
        for path in ["/dear", "/metered", "/more"] {
            assert_eq!(left(&app, path, &key).await, r#""minute";r=3;t=0"#);
        }
    }

    #[tokio::test]
    async fn a_key_without_limits_pays_nothing() {
        let keys = Keys::new();
        let app = guarded(&keys, RateLimits::unlimited(), routes());
        let key = keys.key().await;
        for path in ["/dear", "/metered", "/free"] {
            let answer = call(&app, path, &key).await;
            assert_eq!((answer.status, answer.header("ratelimit")), (StatusCode::OK, None));
        }
    }

    #[tokio::test]
    async fn without_a_guard_there_is_nobody_to_charge() {
        let answer = send(routes(), request("/dear", "k")).await;
        assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    }

    #[tokio::test]
    async fn requests_without_a_key_cost_nothing() {
        let keys = Keys::new();
        let (auth, _) = keys.builder().default_rate_limits(per_minute(3)).build();
        let app = routes().layer(ApiKeyLayer::new(auth).optional(true));
        for _ in 0..10 {
            let request = Request::get("/dear").body(Body::empty()).unwrap();
            assert_eq!(send(app.clone(), request).await.status, StatusCode::OK);
        }
    }

    #[tokio::test]
    async fn another_renderer_answers_for_it() {
        let keys = Keys::new();
        let dear = get(|| async {}).layer(Cost::new(9).render_rejections(StatusOnly));
        let app = guarded(&keys, per_minute(3), Router::new().route("/", dear));
        let answer = call(&app, "/", &keys.key().await).await;
        assert_eq!((answer.status, answer.text()), (StatusCode::TOO_MANY_REQUESTS, ""));
        assert!(answer.header("retry-after").is_some());
    }

    #[tokio::test]
    async fn a_403_costs_what_it_would_have() {
        let keys = Keys::new();
        let admin = get(|| async {}).layer(RequireScope::one("admin").unwrap());
        let app = guarded(&keys, per_minute(3), Router::new().route("/", admin));
        let answer = call(&app, "/", &keys.key().await).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN);
        assert_eq!(answer.header("ratelimit"), Some(r#""minute";r=2;t=20"#));
    }
}

mod classes {
    use super::*;

    fn search() -> RateClass {
        RateClass::new("search", Quota::per_hour(2).unwrap()).unwrap()
    }

    fn routes() -> Router {
        let search = search();
        Router::new()
            .route("/", get(|| async {}))
            .route("/search", get(|| async {}).layer(search.clone()))
            .route("/suggest", get(|| async {}).layer(search))
    }

    #[tokio::test]
    async fn a_class_has_quotas_of_its_own_which_its_routes_share() {
        let keys = Keys::new();
        let app = guarded(&keys, per_minute(10), routes());
        let (key, other) = (keys.key().await, keys.key().await);
        let answer = call(&app, "/search", &key).await;
        let policy = r#""minute";q=10;w=60, "search";q=2;w=3600"#;
        assert_eq!(answer.header("ratelimit-policy"), Some(policy));
        let state = r#""minute";r=9;t=6, "search";r=1;t=1800"#;
        assert_eq!(answer.header("ratelimit"), Some(state));

        assert_eq!(call(&app, "/suggest", &key).await.status, StatusCode::OK);
        let answer = call(&app, "/search", &key).await;
        assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(answer.json()["violated-policies"], serde_json::json!(["search"]));
        assert_eq!(answer.header("retry-after"), Some("1800"));
        // Nothing was taken from the quota that it did fit.
        let state = r#""minute";r=8;t=6, "search";r=0;t=1800"#;
        assert_eq!(answer.header("ratelimit"), Some(state));
        assert_eq!(answer.header("ratelimit-policy"), Some(policy));

        assert_eq!(left(&app, "/", &key).await, r#""minute";r=7;t=6"#);
        assert_eq!(call(&app, "/search", &other).await.status, StatusCode::OK);
    }

    #[tokio::test]
    async fn classes_share_a_bucket_only_if_both_name_and_limits_are_the_same() {
        let keys = Keys::new();
        let class = |name: &str, limit| -> MethodRouter {
            get(|| async {}).layer(RateClass::new(name, Quota::per_hour(limit).unwrap()).unwrap())
        };
        let routes = Router::new()
            .route("/search", class("search", 2))
            .route("/export", class("export", 2))
            .route("/search/all", class("search", 3));
        let app = guarded(&keys, RateLimits::unlimited(), routes);
        let key = keys.key().await;
        assert_eq!(left(&app, "/search", &key).await, r#""search";r=1;t=1800"#);
        assert_eq!(left(&app, "/export", &key).await, r#""export";r=1;t=1800"#);
        // One bucket under one name, whose quota depends on the route.
        assert_eq!(left(&app, "/search/all", &key).await, r#""search";r=1;t=1200"#);
        assert_eq!(left(&app, "/search", &key).await, r#""search";r=0;t=1800"#);
    }

    /// What an inner limit denies is refunded, and the response tells the state after that.
    #[tokio::test]
    async fn a_class_and_a_cost_are_refunded_where_an_inner_limit_denies() {
        let keys = Keys::new();
        let inner = || RateClass::new("inner", Quota::per_hour(1).unwrap()).unwrap();
        let class: MethodRouter = get(|| async {}).layer((search(), inner()));
        let cost: MethodRouter = get(|| async {}).layer((Cost::new(3), inner()));
        let app = guarded(
            &keys,
            per_minute(9),
            Router::new().route("/class", class).route("/cost", cost),
        );
        let key = keys.key().await;
        let state = r#""minute";r=8;t=7, "search";r=1;t=1800, "inner";r=0;t=3600"#;
        assert_eq!(left(&app, "/class", &key).await, state);
        for _ in 0..3 {
            let denied = call(&app, "/class", &key).await;
            assert_eq!(denied.status, StatusCode::TOO_MANY_REQUESTS);
            assert_eq!(denied.header("ratelimit"), Some(state));
        }
        let key = keys.key().await;
        let state = r#""minute";r=6;t=7, "inner";r=0;t=3600"#;
        assert_eq!(left(&app, "/cost", &key).await, state);
        for _ in 0..3 {
            let denied = call(&app, "/cost", &key).await;
            assert_eq!(denied.status, StatusCode::TOO_MANY_REQUESTS);
            assert_eq!(denied.header("ratelimit"), Some(state));
        }
    }

    #[tokio::test]
    async fn a_class_takes_nothing_where_the_key_or_a_cost_denies() {
        let keys = Keys::new();
        let dear = get(|| async {}).layer((search(), Cost::new(5)));
        let app = guarded(&keys, per_minute(3), routes().route("/dear", dear));
        let key = keys.key().await;
        for _ in 0..4 {
            assert_eq!(call(&app, "/dear", &key).await.status, StatusCode::TOO_MANY_REQUESTS);
        }
        let state = r#""minute";r=2;t=20, "search";r=1;t=1800"#;
        assert_eq!(left(&app, "/search", &key).await, state);
    }

    #[tokio::test]
    async fn a_class_goes_by_plan_and_is_named_after_itself() {
        let keys = Keys::new();
        let day = Quota::sliding(9, 24 * 60 * MINUTE).unwrap().named("day").unwrap();
        let pro = RateLimits::new([per_minute(4), day.per_consumer()]).unwrap();
        let class = search().for_plan("pro", pro).unwrap();
        let routes = Router::new().route("/search", get(|| async {}).layer(class));
        let plans = Plans::new().plan("pro", RateLimits::unlimited()).unwrap();
        let (auth, _) = keys.builder().plans(plans).build();
        let app = routes.layer(ApiKeyLayer::new(auth));

        let pro = || NewKey::new("acme", Expiry::Never).plan("pro");
        let (one, two) = (text(&keys.issue(pro()).await), text(&keys.issue(pro()).await));
        let answer = call(&app, "/search", &one).await;
        let policy = r#""search-minute";q=4;w=60, "search-day";q=9;w=86400"#;
        assert_eq!(answer.header("ratelimit-policy"), Some(policy));
        let state = left(&app, "/search", &two).await;
        assert!(state.starts_with(r#""search-minute";r=3;t=15, "search-day";r=7;t="#), "{state}");
        let free = left(&app, "/search", &keys.key().await).await;
        assert_eq!(free, r#""search";r=1;t=1800"#);
    }

    #[tokio::test]
    async fn a_class_and_a_quota_of_one_name_are_two() {
        let keys = Keys::new();
        let own = Quota::per_hour(50).unwrap().named("search").unwrap();
        let app = guarded(&keys, own, routes());
        let state = left(&app, "/search", &keys.key().await).await;
        assert_eq!(state, r#""search";r=49;t=72, "search";r=1;t=1800"#);
    }

    #[tokio::test]
    async fn buckets_of_a_class_outlive_what_is_cached() {
        let keys = Keys::new();
        let (auth, _) = keys.builder().build();
        let app = routes().layer(ApiKeyLayer::new(auth.clone()));
        let key = keys.key().await;
        for _ in 0..2 {
            assert_eq!(call(&app, "/search", &key).await.status, StatusCode::OK);
            auth.invalidate_all();
        }
        assert_eq!(call(&app, "/search", &key).await.status, StatusCode::TOO_MANY_REQUESTS);
    }

    #[test]
    fn a_class_needs_a_name_that_fits_a_header() {
        for name in ["", "a b", "\"", &"a".repeat(65)] {
            let class = RateClass::new(name, RateLimits::unlimited());
            assert_eq!(class.unwrap_err(), InvalidQuota::Name, "{name:?}");
        }
    }
}

mod consumers {
    use super::*;

    #[tokio::test]
    async fn the_keys_of_a_consumer_share_its_quotas_and_no_others() {
        let keys = Keys::new();
        let hour = Quota::per_hour(5).unwrap().per_consumer();
        let limits = RateLimits::new([per_minute(3), hour]).unwrap();
        let app = guarded(&keys, limits, Router::new().route("/", get(|| async {})));
        let key = |consumer| keys.issue(NewKey::new(consumer, Expiry::Never));
        let (one, two) = (text(&key("acme").await), text(&key("acme").await));
        let other = text(&key("other").await);

        for remaining in ["r=2;t=20, \"hour\";r=4;t=720", "r=1;t=20, \"hour\";r=3;t=720"] {
            assert_eq!(left(&app, "/", &one).await, format!(r#""minute";{remaining}"#));
        }
        assert_eq!(left(&app, "/", &two).await, r#""minute";r=2;t=20, "hour";r=2;t=720"#);
        for _ in 0..2 {
            assert_eq!(call(&app, "/", &two).await.status, StatusCode::OK);
        }
        let answer = call(&app, "/", &two).await;
        assert_eq!(answer.json()["violated-policies"], serde_json::json!(["minute", "hour"]));
        assert_eq!(answer.header("retry-after"), Some("720"));
        let answer = call(&app, "/", &one).await;
        assert_eq!(answer.json()["violated-policies"], serde_json::json!(["hour"]));
        assert_eq!(left(&app, "/", &other).await, r#""minute";r=2;t=20, "hour";r=4;t=720"#);
    }
}

mod plans {
    use super::*;

    fn plans() -> Plans {
        let plans = Plans::new().plan("free", per_minute(2)).unwrap();
        plans.plan("pro", per_minute(60)).unwrap()
    }

    fn app(keys: &Keys) -> (Router, Authenticator, Arc<Mutex<usize>>) {
        let unknown = Arc::new(Mutex::new(0));
        let observed = Arc::clone(&unknown);
        let (auth, _) = keys
            .builder()
            .plans(plans())
            .default_rate_limits(Quota::per_hour(7).unwrap())
            .observer(move |event: &Event<'_>| {
                if matches!(event, Event::UnknownPlan { .. }) {
                    *observed.lock().unwrap() += 1;
                }
            })
            .build();
        let routes = Router::new().route("/", get(|| async {}));
        (routes.layer(ApiKeyLayer::new(auth.clone())), auth, unknown)
    }

    #[tokio::test]
    async fn a_key_has_the_limits_of_its_plan_and_its_own() {
        let keys = Keys::new();
        let (app, _, _) = app(&keys);
        let new = || NewKey::new("acme", Expiry::Never);
        let state = async |new| left(&app, "/", &text(&keys.issue(new).await)).await;
        assert_eq!(state(new()).await, r#""hour";r=6;t=515"#);
        assert_eq!(state(new().plan("free")).await, r#""minute";r=1;t=30"#);
        let own = new().plan("free").rate_limits(Quota::per_second(9).unwrap());
        assert_eq!(state(own).await, r#""second";r=8;t=1, "minute";r=1;t=30"#);
        let own = new().plan("free").rate_limits(per_minute(6));
        assert_eq!(state(own).await, r#""minute";r=5;t=10"#);
    }

    #[test]
    fn the_limits_of_other_keys_can_be_asked() {
        let (auth, _) = Keys::new().builder().default_rate_limits(per_minute(7)).build();
        assert_eq!(*auth.default_rate_limits(), per_minute(7).into());
    }

    #[tokio::test]
    async fn another_plan_applies_at_once_and_does_not_refill() {
        let keys = Keys::new();
        let (app, auth, _) = app(&keys);
        let issued = keys.issue(NewKey::new("acme", Expiry::Never).plan("free")).await;
        let key = text(&issued);
        for _ in 0..2 {
            assert_eq!(call(&app, "/", &key).await.status, StatusCode::OK);
        }
        keys.change(&issued, |record| record.plan = Some("pro".to_owned())).await;
        auth.invalidate(&issued.record.key_hash);
        // The two units already taken count against the other plan's quota, too.
        let answer = call(&app, "/", &key).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.header("ratelimit-policy"), Some(r#""minute";q=60;w=60"#));
        assert_eq!(answer.header("ratelimit"), Some(r#""minute";r=57;t=1"#));
    }

    #[tokio::test]
    async fn a_plan_nobody_defines_is_told_of_and_counts_as_none() {
        let keys = Keys::new();
        let (app, _, unknown) = app(&keys);
        let key = keys.issue(NewKey::new("acme", Expiry::Never).plan("gone")).await;
        assert_eq!(left(&app, "/", &text(&key)).await, r#""hour";r=6;t=515"#);
        assert_eq!(*unknown.lock().unwrap(), 1);
    }

    #[test]
    fn plans_have_names_of_their_own() {
        for name in ["free", "", "a b", "ü"] {
            let _: InvalidPlan = plans().plan(name, per_minute(1)).unwrap_err();
        }
    }
}

mod concurrency {
    use super::*;

    fn routes(limit: &ConcurrencyLimit) -> Router {
        let endless = || async {
            let parts = stream::once(async { Ok::<_, Infallible>(Bytes::from_static(b"first")) });
            Response::new(Body::from_stream(parts.chain(stream::pending())))
        };
        Router::new()
            .route("/", get(|| async { "done" }).layer(limit.clone()))
            .route("/endless", get(endless).layer(limit.clone()))
    }

    async fn open(app: &Router, key: &str) -> Response {
        app.clone().oneshot(request("/endless", key)).await.unwrap()
    }

    #[tokio::test]
    async fn a_request_is_under_way_until_its_body_ends_or_is_dropped() {
        let keys = Keys::new();
        let app = guarded(&keys, per_minute(60), routes(&ConcurrencyLimit::per_key(2).unwrap()));
        let (key, other) = (keys.key().await, keys.key().await);

        let mut first = open(&app, &key).await;
        let policy = r#""minute";q=60;w=60, "concurrent";q=2;qu="concurrent-requests""#;
        assert_eq!(first.headers()["ratelimit-policy"], policy);
        assert_eq!(first.headers()["ratelimit"], r#""minute";r=59;t=1, "concurrent";r=1"#);
        let second = open(&app, &key).await;
        assert!(first.body_mut().frame().await.is_some());

        let answer = call(&app, "/", &key).await;
        assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(answer.json()["violated-policies"], serde_json::json!(["concurrent"]));
        assert_eq!(answer.header("retry-after"), Some("1"));
        // A refused request costs nothing.
        let state = r#""minute";r=58;t=1, "concurrent";r=0"#;
        assert_eq!(answer.header("ratelimit"), Some(state));
        assert_eq!(call(&app, "/", &other).await.status, StatusCode::OK);

        drop(second);
        // Each of these has ended when the next begins.
        for _ in 0..5 {
            assert_eq!(call(&app, "/", &key).await.status, StatusCode::OK);
        }
    }

    #[tokio::test]
    async fn a_body_that_has_ended_is_no_longer_under_way_though_it_is_held() {
        let keys = Keys::new();
        let app = guarded(&keys, per_minute(60), routes(&ConcurrencyLimit::per_key(1).unwrap()));
        let key = keys.key().await;
        let mut held = app.clone().oneshot(request("/", &key)).await.unwrap();
        assert_eq!(call(&app, "/", &key).await.status, StatusCode::TOO_MANY_REQUESTS);
        while held.body_mut().frame().await.is_some() {}
        assert_eq!(call(&app, "/", &key).await.status, StatusCode::OK);
        drop(held);
    }

    #[tokio::test]
    async fn one_that_ends_frees_one_place_and_not_those_of_the_others() {
        let keys = Keys::new();
        let app = guarded(&keys, per_minute(60), routes(&ConcurrencyLimit::per_key(3).unwrap()));
        let key = keys.key().await;
        let (first, second) = (open(&app, &key).await, open(&app, &key).await);
        drop(first);
        let others = [open(&app, &key).await, open(&app, &key).await];
        assert_eq!(call(&app, "/", &key).await.status, StatusCode::TOO_MANY_REQUESTS);
        drop((second, others));
        assert_eq!(call(&app, "/", &key).await.status, StatusCode::OK);
    }

    #[tokio::test]
    async fn a_body_tells_its_length_and_its_end_as_before() {
        let keys = Keys::new();
        let empty = || async { StatusCode::OK };
        let limit = ConcurrencyLimit::per_key(1).unwrap();
        let layered = get(empty).layer(limit.clone());
        let app = guarded(&keys, per_minute(60), routes(&limit).route("/empty", layered));
        let key = keys.key().await;
        let full = app.clone().oneshot(request("/", &key)).await.unwrap().into_body();
        assert!(!http_body::Body::is_end_stream(&full));
        assert_eq!(http_body::Body::size_hint(&full).exact(), Some(4));
        drop(full);
        let empty = app.clone().oneshot(request("/empty", &key)).await.unwrap().into_body();
        assert!(http_body::Body::is_end_stream(&empty));
    }

    #[tokio::test]
    async fn a_request_that_is_given_up_is_no_longer_under_way() {
        let keys = Keys::new();
        let limit = ConcurrencyLimit::per_key(1).unwrap();
        let waiting = get(std::future::pending::<()>).layer(limit.clone());
        let app = guarded(&keys, per_minute(60), routes(&limit).route("/waiting", waiting));
        let key = keys.key().await;
        // Cached beforehand, so that it is let in at the first poll.
        assert_eq!(call(&app, "/", &key).await.status, StatusCode::OK);
        let mut waiting = Box::pin(app.clone().oneshot(request("/waiting", &key)));
        assert!(waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        assert_eq!(call(&app, "/", &key).await.status, StatusCode::TOO_MANY_REQUESTS);
        drop(waiting);
        assert_eq!(call(&app, "/", &key).await.status, StatusCode::OK);
    }

    #[tokio::test]
    async fn the_keys_of_a_consumer_may_share_it_and_a_plan_may_change_it() {
        let keys = Keys::new();
        let limit = ConcurrencyLimit::per_consumer(1).unwrap().for_plan("pro", 2).unwrap();
        let app = guarded(&keys, RateLimits::unlimited(), routes(&limit.named("open").unwrap()));
        let key = async |consumer: &str, plan: Option<&str>| {
            let new = NewKey::new(consumer, Expiry::Never);
            text(&keys.issue(plan.into_iter().fold(new, NewKey::plan)).await)
        };
        let (one, two) = (key("acme", None).await, key("acme", None).await);
        let pro = key("rich", Some("pro")).await;

        let held = open(&app, &one).await;
        let answer = call(&app, "/", &two).await;
        assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
        let policy = r#""open";q=1;qu="concurrent-requests""#;
        assert_eq!(answer.header("ratelimit-policy"), Some(policy));
        drop(held);
        assert_eq!(call(&app, "/", &two).await.status, StatusCode::OK);

        let _held = (open(&app, &pro).await, open(&app, &pro).await);
        assert_eq!(call(&app, "/", &pro).await.status, StatusCode::TOO_MANY_REQUESTS);
    }

    #[tokio::test]
    async fn it_holds_among_threads() {
        let keys = Keys::new();
        let limit = ConcurrencyLimit::per_key(3).unwrap();
        let under_way = Arc::new(Mutex::new((0, 0)));
        let counted = get({
            let under_way = Arc::clone(&under_way);
            move || async move {
                {
                    let mut under_way = under_way.lock().unwrap();
                    under_way.0 += 1;
                    under_way.1 = under_way.1.max(under_way.0);
                }
                tokio::task::yield_now().await;
                under_way.lock().unwrap().0 -= 1;
            }
        });
        let routes = Router::new().route("/", counted.layer(limit));
        let app = guarded(&keys, RateLimits::unlimited(), routes);
        let key = keys.key().await;
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let (app, key) = (app.clone(), key.clone());
                std::thread::spawn(move || {
                    let runtime =
                        tokio::runtime::Builder::new_current_thread().enable_all().build();
                    runtime.unwrap().block_on(async {
                        for _ in 0..200 {
                            call(&app, "/", &key).await;
                        }
                    });
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let (now, most) = *under_way.lock().unwrap();
        assert_eq!(now, 0);
        assert!((1..=3).contains(&most), "{most} at once");
        assert_eq!(call(&app, "/", &key).await.status, StatusCode::OK, "a permit was lost");
    }

    #[test]
    fn a_limit_of_nothing_is_refused() {
        assert_eq!(ConcurrencyLimit::per_key(0).unwrap_err(), InvalidQuota::Zero);
        let limit = ConcurrencyLimit::per_consumer(1).unwrap();
        assert_eq!(limit.clone().for_plan("pro", 0).unwrap_err(), InvalidQuota::Zero);
        assert_eq!(limit.named("a b").unwrap_err(), InvalidQuota::Name);
    }
}

mod usage {
    use super::*;

    #[tokio::test]
    async fn asking_what_is_left_takes_nothing_and_works_when_nothing_is() {
        let keys = Keys::new();
        let (auth, _) = keys.builder().default_rate_limits(per_minute(2)).build();
        let key = keys.key().await;
        let left = async || {
            let admission = auth.check(key.as_bytes()).without_charge().await.unwrap();
            let rate_limit_status = admission.rate_limit_status();
            let left: Vec<_> =
                rate_limit_status.iter().map(|(_, decision)| decision.remaining()).collect();
            (left, rate_limit_status.wait())
        };
        for _ in 0..3 {
            assert_eq!(left().await, (vec![2], Duration::ZERO));
        }
        assert!(auth.check(key.as_bytes()).await.is_ok());
        assert!(auth.check(key.as_bytes()).await.is_ok());
        assert_eq!(left().await, (vec![0], 30 * SECOND));
        assert!(matches!(auth.check(key.as_bytes()).try_now(), Attempt::Reject(_)));

        let rejection = auth.check(b"sk_test_nonsense").without_charge().await.unwrap_err();
        assert_eq!(rejection.kind(), RejectionKind::Malformed);
    }
}

/// The layers fit everywhere axum takes them.
#[expect(dead_code, reason = "it compiles")]
fn cost_is_part_of_a_response() -> impl IntoResponse {
    (StatusCode::CREATED, Cost::new(3), [("x-a", "b")], "text")
}
