//! What is counted: each request once, and each decision of the cache.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    future::{Future, pending, ready},
    pin::pin,
    sync::{Arc, Mutex},
    task::{Context, Waker},
    time::Duration,
};

use axum::{Router, body::Body, routing::get};
use http::{Request, StatusCode};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};
use tower::ServiceExt;
use tower_api_key::{
    ApiKeyLayer, Authenticator, Consumer, RequireScope,
    auth::{Builder, Event, FeedHealth, LoadOutcome, RejectionKind, StoreHealth},
    layer::{ConsumerRejection, Cost},
    manage::{Expiry, ManageErrorKind, NewKey},
    rate_limit::{LimiterHealth, LocalRateLimiter, Quota, RateLimiter, RateLimits, port},
    store::StoreErrorKind,
};

use crate::{
    app::{Keys, text, unknown_key, with_key},
    doubles::{Answers, DOWN, Service, within},
};

/// An authenticator whose metrics and events the test reads.
struct Observed {
    auth: Authenticator,
    recorder: PrometheusRecorder,
    events: Arc<Mutex<Vec<String>>>,
}

impl Observed {
    fn new(builder: Builder) -> Self {
        let recorder = PrometheusBuilder::new().build_recorder();
        let events = Arc::new(Mutex::new(Vec::new()));
        let observer = {
            let events = Arc::clone(&events);
            move |event: &Event<'_>| events.lock().unwrap().push(told(event))
        };
        let (auth, worker) =
            metrics::with_local_recorder(&recorder, || builder.observer(observer).build());
        drop(worker);
        Self { auth, recorder, events }
    }

    fn text(&self) -> String {
        metrics::with_local_recorder(&self.recorder, || self.auth.refresh_metrics());
        self.recorder.handle().render()
    }

    /// The samples that are not 0, without the common beginning of their names.
    fn samples(&self) -> BTreeMap<String, f64> {
        samples(&self.text())
    }

    fn requests(&self) -> BTreeMap<String, f64> {
        let samples = self.samples().into_iter();
        samples
            .filter(|(name, _)| name.starts_with("requests") || name.starts_with("rejec"))
            .collect()
    }

    fn events(&self) -> Vec<String> {
        std::mem::take(&mut self.events.lock().unwrap())
    }
}

fn samples(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("api_key_"));
    let samples = lines.map(|line| {
        let (name, value) = line.rsplit_once(' ').unwrap();
        (name.to_owned(), value.parse().unwrap())
    });
    samples.filter(|(_, value)| *value != 0.0).collect()
}

fn told(event: &Event<'_>) -> String {
    match event {
        Event::Admitted { consumer, decisions, .. } => {
            let left: Vec<_> = decisions.iter().map(|decision| decision.remaining()).collect();
            format!("admitted {} {left:?}", consumer.id())
        }
        Event::Rejected { kind, .. } => format!("rejected {}", kind.as_str()),
        Event::Loaded { outcome, took, .. } => format!("loaded {} {took:?}", outcome.as_str()),
        other => format!("{other:?}"),
    }
}

fn expected(samples: &[(&str, f64)]) -> BTreeMap<String, f64> {
    samples.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
}

async fn status(app: &Router, request: Request<Body>) -> StatusCode {
    app.clone().oneshot(request).await.unwrap().status()
}

#[tokio::test]
async fn each_request_is_counted_once_by_its_outcome() {
    let keys = Keys::new();
    let quota = Quota::per_hour(4).unwrap();
    let observed = Observed::new(keys.builder().default_rate_limits(quota));
    let lacking =
        async |consumer: Consumer| -> Result<(), ConsumerRejection> { consumer.require("no") };
    let app = Router::new()
        .route("/", get(async || "ok"))
        .route("/scope", get(async || "ok").layer(RequireScope::one("no").unwrap()))
        .route("/handler", get(lacking))
        .route("/dear", get(async || "ok").layer(Cost::new(99)))
        .layer(ApiKeyLayer::new(observed.auth.clone()));
    let key = keys.key().await;
    let to = |path: &str| {
        let mut request = with_key(&key);
        *request.uri_mut() = path.parse().unwrap();
        request
    };
    for (request, expected) in [
        (to("/"), StatusCode::OK),
        (to("/scope"), StatusCode::FORBIDDEN),
        (to("/handler"), StatusCode::FORBIDDEN),
        (to("/dear"), StatusCode::TOO_MANY_REQUESTS),
        (to("/"), StatusCode::OK),
        (to("/"), StatusCode::TOO_MANY_REQUESTS),
        (with_key(&unknown_key()), StatusCode::UNAUTHORIZED),
        (with_key("junk"), StatusCode::UNAUTHORIZED),
        (crate::app::get("/"), StatusCode::UNAUTHORIZED),
    ] {
        assert_eq!(status(&app, request).await, expected);
    }
    let counted = expected(&[
        ("requests_total{outcome=\"admitted\"}", 2.0),
        ("requests_total{outcome=\"forbidden\"}", 2.0),
        ("requests_total{outcome=\"limited\"}", 2.0),
        ("requests_total{outcome=\"rejected\"}", 3.0),
        ("rejections_total{reason=\"insufficient_scope\"}", 2.0),
        ("rejections_total{reason=\"rate_limited\"}", 2.0),
        ("rejections_total{reason=\"unknown\"}", 1.0),
        ("rejections_total{reason=\"malformed\"}", 1.0),
        ("rejections_total{reason=\"missing\"}", 1.0),
    ]);
    assert_eq!(observed.requests(), counted);
    let events = observed.events();
    assert_eq!(events[..2], ["loaded found 0ns", "admitted acme [3]"], "{events:?}");
    let of_requests = events.iter().filter(|event| !event.starts_with("loaded"));
    assert_eq!(of_requests.count(), 9, "{events:?}");
}

#[tokio::test]
async fn a_request_is_counted_by_the_outermost_layer_of_its_authenticator() {
    let keys = Keys::new();
    let observed = Observed::new(keys.builder().default_rate_limits(Quota::per_hour(9).unwrap()));
    let layer = ApiKeyLayer::new(observed.auth.clone());
    let app = Router::new()
        .route("/", get(async || "ok"))
        .layer(layer.clone())
        .layer(layer.clone().danger_without_charge())
        .layer(layer);
    let key = keys.key().await;
    assert_eq!(status(&app, with_key(&key)).await, StatusCode::OK);
    assert_eq!(status(&app, with_key("junk")).await, StatusCode::UNAUTHORIZED);
    let counted = expected(&[
        ("requests_total{outcome=\"admitted\"}", 1.0),
        ("requests_total{outcome=\"rejected\"}", 1.0),
        ("rejections_total{reason=\"malformed\"}", 1.0),
    ]);
    assert_eq!(observed.requests(), counted);
}

#[tokio::test]
async fn requests_in_shadow_mode_are_counted_apart() {
    let keys = Keys::new();
    let observed = Observed::new(keys.builder());
    let app = Router::new()
        .route("/", get(async || "ok"))
        .route("/scope", get(async || "ok").layer(RequireScope::one("no").unwrap()))
        .route("/held", get(async || pending::<()>().await))
        .layer(ApiKeyLayer::new(observed.auth.clone()).shadow(true));
    let key = keys.key().await;
    let to = |path: &str| {
        let mut request = with_key(&key);
        *request.uri_mut() = path.parse().unwrap();
        request
    };
    for request in [to("/"), to("/scope"), with_key(&unknown_key()), crate::app::get("/")] {
        assert_eq!(status(&app, request).await, StatusCode::OK);
    }
    // Its client hangs up.
    let mut held = Box::pin(app.oneshot(to("/held")));
    assert!(held.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    drop(held);
    assert_eq!(observed.requests(), expected(&[]));
    let counted = expected(&[
        ("shadow_requests_total{outcome=\"admitted\"}", 2.0),
        ("shadow_requests_total{outcome=\"forbidden\"}", 1.0),
        ("shadow_requests_total{outcome=\"rejected\"}", 2.0),
        ("shadow_rejections_total{reason=\"insufficient_scope\"}", 1.0),
        ("shadow_rejections_total{reason=\"unknown\"}", 1.0),
        ("shadow_rejections_total{reason=\"missing\"}", 1.0),
    ]);
    let samples = observed.samples().into_iter();
    let shadow: BTreeMap<_, _> = samples.filter(|(name, _)| name.starts_with("shadow")).collect();
    assert_eq!(shadow, counted);
}

#[tokio::test]
async fn a_request_whose_client_hangs_up_is_counted_if_its_key_was_let_in() {
    let keys = Keys::new();
    let observed = Observed::new(keys.builder());
    let app = Router::new()
        .route("/", get(async || pending::<()>().await))
        .layer(ApiKeyLayer::new(observed.auth.clone()));
    let key = keys.key().await;
    observed.auth.check(key.as_bytes()).await.unwrap();
    assert_eq!(observed.requests(), expected(&[("requests_total{outcome=\"admitted\"}", 1.0)]));
    {
        let mut request = pin!(app.clone().oneshot(with_key(&key)));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(request.as_mut().poll(&mut cx).is_pending());
        assert_eq!(observed.requests(), expected(&[("requests_total{outcome=\"admitted\"}", 1.0)]));
    }
    assert_eq!(observed.requests(), expected(&[("requests_total{outcome=\"admitted\"}", 2.0)]));
    // It was not decided yet.
    let mut request = pin!(app.oneshot(with_key(&unknown_key())));
    assert!(request.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    assert_eq!(observed.requests(), expected(&[("requests_total{outcome=\"admitted\"}", 2.0)]));
}

#[tokio::test]
async fn the_cache_counts_hits_misses_and_queries() {
    let keys = Keys::new();
    let observed = Observed::new(keys.builder());
    let (key, unknown) = (keys.key().await, unknown_key());
    for _ in 0..5 {
        observed.auth.check(key.as_bytes()).await.unwrap();
    }
    for _ in 0..3 {
        observed.auth.check(unknown.as_bytes()).await.unwrap_err();
    }
    observed.auth.check(b"junk").await.unwrap_err();
    let samples = observed.samples();
    assert_eq!(samples["cache_hits_total"], 4.0 + 2.0, "{samples:?}");
    assert_eq!(samples["cache_misses_total"], 2.0);
    assert_eq!(samples["lookup_seconds_count"], 2.0);
    assert_eq!(samples["cache_entries"], 1.0);
    assert_eq!(samples["store_up"], 1.0);
    // Hits are published once, however often they are.
    assert_eq!(observed.samples()["cache_hits_total"], 6.0);
    let events = observed.events();
    let loaded: Vec<_> = events.iter().filter(|event| event.starts_with("loaded")).collect();
    assert_eq!(loaded, ["loaded found 0ns", "loaded not_found 0ns"]);
}

#[tokio::test(start_paused = true)]
async fn old_records_flushes_and_uses_without_room_are_counted() {
    const ROOM: usize = 16_384;
    let recorder = PrometheusBuilder::new().build_recorder();
    let (service, worker) =
        metrics::with_local_recorder(&recorder, || Service::and_worker(|builder| builder));
    let counted = || samples(&recorder.handle().render());
    let key = service.issue("acme").await;
    service.get(&key.text).await.is_for("acme");
    service.store.answer(DOWN);
    service.clock.advance(Duration::from_secs(120));
    for stale in [1.0, 2.0] {
        service.get(&key.text).await.is_for("acme");
        assert_eq!(counted()["cache_stale_total"], stale);
    }

    // The worker does not run yet. The first use waits for it, and so does that of each record that
    // is loaded again.
    service.store.answer(Answers::Truthfully);
    service.clock.advance(Duration::from_secs(120));
    for _ in 1..ROOM {
        service.auth.invalidate_all();
        service.auth.check(key.text.as_bytes()).await.unwrap();
    }
    assert_eq!(counted().get("usage_dropped_total"), None);
    service.auth.invalidate_all();
    for dropped in [1.0, 2.0, 3.0] {
        service.auth.check(key.text.as_bytes()).await.unwrap();
        assert_eq!(counted()["usage_dropped_total"], dropped);
    }
    assert_eq!(counted().get("usage_flush_seconds_count"), None);
    within(worker.run(ready(()))).await;
    assert_eq!(counted()["usage_flush_seconds_count"], 1.0);
}

/// Counts locally, and says what it is told to say.
struct Limiter(LocalRateLimiter, LimiterHealth);

impl RateLimiter for Limiter {
    fn buckets(
        &self,
        subject: &port::Subject<'_>,
        limits: &RateLimits,
        now: Duration,
    ) -> Arc<dyn port::Buckets> {
        self.0.buckets(subject, limits, now)
    }

    fn health(&self) -> LimiterHealth {
        self.1
    }
}

#[tokio::test]
async fn a_limiter_that_is_not_shared_by_design_has_no_gauge() {
    for (health, gauge) in [
        (LimiterHealth::Local, None),
        (LimiterHealth::Unknown, None),
        (LimiterHealth::Shared, Some("api_key_limiter_shared 1")),
        (LimiterHealth::Down, Some("api_key_limiter_shared 0")),
    ] {
        let limiter = Arc::new(Limiter(LocalRateLimiter::new(), health));
        let observed = Observed::new(Keys::new().builder().rate_limiter(limiter));
        assert_eq!(observed.auth.health().limiter, health);
        let text = observed.text();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let found = lines.filter(|line| line.contains("limiter_shared")).collect::<Vec<_>>();
        assert_eq!(found, gauge.into_iter().collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn several_authenticators_are_told_apart_by_the_prefix_of_their_keys() {
    let keys = Keys::new();
    let observed = Observed::new(keys.builder().label_metrics(true));
    let issued = keys.issue(NewKey::new("acme", Expiry::Never)).await;
    keys.revoke(&issued).await;
    let rejected = observed.auth.check(text(&issued).as_bytes()).await.unwrap_err();
    assert_eq!(rejected.kind(), RejectionKind::Revoked);
    let sample = "rejections_total{prefix=\"sk_test_\",reason=\"revoked\"}";
    assert_eq!(observed.samples()[sample], 1.0, "{:?}", observed.samples());
    assert_eq!(observed.samples()["store_up{prefix=\"sk_test_\"}"], 1.0);
}

/// `StoreUnavailable` is `store_unavailable`.
fn snake_case(kind: &impl Debug) -> String {
    let name = format!("{kind:?}");
    let name = name.split(' ').next().unwrap();
    let mut words = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !words.is_empty() {
            words.push('_');
        }
        words.extend(letter.to_lowercase());
    }
    words
}

macro_rules! names {
    ($($kind:ident { $($variant:ident),+ $(,)? })+) => {
        [$($(($kind::$variant.as_str(), snake_case(&$kind::$variant))),+),+]
    };
}

#[test]
fn names_for_metrics_are_those_of_the_variants() {
    let names = names! {
        RejectionKind {
            Missing, InvalidRequest, Malformed, Unknown, Revoked, Expired, Inactive, NotYetActive,
            InsufficientScope, RateLimited, TooManyFailures, StoreUnavailable, Overloaded,
            LayerMissing, ForeignLayer, Internal,
        }
        StoreErrorKind { Unavailable, Overloaded, Conflict, Corrupt, Refused, Migration, Other }
        ManageErrorKind {
            Invalid, NotFound, Denied, CallerEnded, Conflict, Outdated, Repeated,
            IdempotencyKeyReused, TooManyKeys, TooManyChanges, Rng, Store, Overloaded,
            TooManyAtOnce,
        }
        LoadOutcome { Found, NotFound, Failed }
        LimiterHealth { Local, Unknown, Shared, Down }
        StoreHealth { Unknown, Up, Down }
        FeedHealth { Off, Gap }
    };
    for (name, expected) in names {
        assert_eq!(name, expected);
    }
    assert_eq!(FeedHealth::Live { lag: None }.as_str(), "live");
    assert_eq!(FeedHealth::Behind { lag: None }.as_str(), "behind");
}
