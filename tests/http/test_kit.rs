//! The test kit, as a service uses it.

use std::{future::IntoFuture as _, time::Duration};

use axum::{Router, body::Body, routing::get};
use http::{Request, StatusCode, header};
use tower::ServiceExt as _;
use tower_api_key::{
    ApiKeys, ApiKeysBuilder, Consumer, RequireScope,
    auth::{CachePolicy, StoreHealth},
    clock::{Clock as _, ManualClock},
    layer::{Cost, RateClass},
    manage::{IssueRules, ManageErrorKind},
    rate_limit::Quota,
    record::Scopes,
    store::{
        KeyQuery, KeyStore as _, ManageKeys as _, MemoryKeyStore, StoreErrorKind,
        port::KeyTransaction as _,
    },
    test_util::{FaultStore, TestKey, TestKeys},
};

use crate::wait::within;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

fn app(keys: &ApiKeys) -> Router {
    routes().layer(keys.layer())
}

fn routes() -> Router {
    let orders = get(async |consumer: Consumer| format!("orders of {}", consumer.id()));
    Router::new().route("/orders", orders.layer(RequireScope::one("orders:read").unwrap()))
}

async fn status(app: &Router, request: Request<Body>) -> u16 {
    within(app.clone().oneshot(request)).await.unwrap().status().as_u16()
}

fn without_key() -> Request<Body> {
    Request::get("/orders").body(Body::empty()).unwrap()
}

async fn opened() -> (TestKeys, Router, TestKey) {
    let keys = TestKeys::new();
    let (app, key) = (app(&keys), keys.issue("acme").scopes(["orders:read"]).await);
    (keys, app, key)
}

#[tokio::test]
async fn a_key_is_admitted_by_its_scopes() {
    let (keys, app, key) = opened().await;
    let other = keys.issue("globex").await;
    assert_eq!(status(&app, key.get("/orders")).await, 200);
    assert_eq!(status(&app, other.get("/orders")).await, 403);
    assert_eq!(status(&app, without_key()).await, 401);
    let request = key.request(http::Method::GET, "/orders").body(Body::empty()).unwrap();
    assert!(request.headers()[header::AUTHORIZATION].is_sensitive());
    assert_eq!(status(&app, request).await, 200);
}

#[tokio::test]
async fn a_revocation_is_seen_at_once() {
    let (keys, app, key) = opened().await;
    assert_eq!(status(&app, key.get("/orders")).await, 200);
    keys.revoke(&key).await;
    assert_eq!(status(&app, key.get("/orders")).await, 401);
}

#[tokio::test]
async fn a_key_expires_when_the_clock_is_advanced() {
    let keys = TestKeys::new();
    let key = keys.issue("acme").scopes(["orders:read"]).expires_in(HOUR).await;
    let app = app(&keys);
    keys.advance(HOUR - Duration::from_nanos(1));
    assert_eq!(status(&app, key.get("/orders")).await, 200);
    keys.advance(Duration::from_nanos(1));
    assert_eq!(status(&app, key.get("/orders")).await, 401);
}

#[tokio::test]
async fn a_quota_refills_when_the_clock_is_advanced() {
    let keys = TestKeys::new();
    let minute = Quota::per_minute(2).unwrap();
    let key = keys.issue("acme").scopes(["orders:read"]).rate_limits(minute).await;
    let app = app(&keys);
    for expected in [200, 200, 429] {
        assert_eq!(status(&app, key.get("/orders")).await, expected);
    }
    keys.forget();
    assert_eq!(status(&app, key.get("/orders")).await, 429, "the cache does not hold quotas");
    keys.advance(30 * SECOND);
    for expected in [200, 429] {
        assert_eq!(status(&app, key.get("/orders")).await, expected);
    }
}

#[tokio::test]
async fn a_use_is_seen_at_once() {
    let (keys, app, key) = opened().await;
    assert_eq!(keys.last_used_at(&key).await, None);
    for _ in 0..3 {
        keys.advance(SECOND);
        assert_eq!(status(&app, key.get("/orders")).await, 200);
        let now = Some(keys.clock().now());
        assert_eq!(keys.last_used_at(&key).await, now);
        assert_eq!(keys.issuer().get(key.id()).await.unwrap().last_used_at, now);
        let page = keys.issuer().list(&KeyQuery::new()).await.unwrap();
        assert_eq!(page.keys[0].last_used_at, now);
    }
}

#[tokio::test]
async fn a_store_that_is_down_is_an_outage_and_comes_back_at_once() {
    let (keys, app, key) = opened().await;
    let cached = keys.issue("acme").scopes(["orders:read"]).await;
    assert_eq!(status(&app, cached.get("/orders")).await, 200);
    keys.go_down();
    // More often than the circuit breaker of the store bears.
    for _ in 0..10 {
        assert_eq!(status(&app, key.get("/orders")).await, 503);
    }
    assert_eq!(keys.health().store, StoreHealth::Down);
    assert_eq!(status(&app, cached.get("/orders")).await, 200, "it is in the cache");
    let error = keys.issuer().get(key.id()).await.unwrap_err();
    assert_eq!(error.kind(), ManageErrorKind::Store);
    keys.forget();
    assert_eq!(status(&app, cached.get("/orders")).await, 503);

    keys.come_back();
    assert_eq!(status(&app, key.get("/orders")).await, 200);
    assert_eq!(status(&app, cached.get("/orders")).await, 200);
    assert_eq!(keys.health().store, StoreHealth::Up);
}

#[tokio::test]
async fn a_use_during_an_outage_is_written_after_it() {
    let (keys, app, key) = opened().await;
    assert_eq!(status(&app, key.get("/orders")).await, 200);
    keys.go_down();
    keys.advance(SECOND);
    assert_eq!(status(&app, key.get("/orders")).await, 200);
    keys.store().record_usage(&[].into()).await.unwrap_err();
    keys.come_back();
    assert_eq!(keys.last_used_at(&key).await, Some(keys.clock().now()));
}

#[tokio::test]
async fn the_settings_are_those_of_the_service() {
    fn configured(keys: ApiKeysBuilder) -> ApiKeysBuilder {
        keys.default_rate_limits(Quota::per_minute(1).unwrap())
            .issue_policy(IssueRules::new().allowed_scopes(Scopes::parse(["orders:read"]).unwrap()))
            .cache(CachePolicy::default().fresh(Duration::ZERO).unwrap())
    }

    let keys = TestKeys::with(configured);
    let (app, key) = (app(&keys), keys.issue("acme").scopes(["orders:read"]).await);
    assert_eq!(status(&app, key.get("/orders")).await, 200);
    assert_eq!(status(&app, key.get("/orders")).await, 429);
    keys.issuer().revoke(key.id(), None).await.unwrap();
    let refused = keys.issue("acme").scopes(["orders:write"]);
    assert!(tokio::spawn(refused.into_future()).await.is_err_and(|error| error.is_panic()));
}

#[tokio::test]
async fn a_change_by_another_process_is_seen_when_the_record_is_no_longer_fresh() {
    let (keys, app, key) = opened().await;
    assert_eq!(status(&app, key.get("/orders")).await, 200);
    let mut transaction = keys.store().begin().await.unwrap();
    transaction.revoke(&[key.id()], None).await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(status(&app, key.get("/orders")).await, 200);
    keys.advance(61 * SECOND);
    assert_eq!(status(&app, key.get("/orders")).await, 401);
}

#[tokio::test]
async fn a_stream_ends_with_its_key_when_the_clock_is_advanced() {
    let keys = TestKeys::new();
    let key = keys.issue("acme").expires_in(HOUR).await;
    let admission = keys.authenticator().check(key.expose_secret().as_bytes()).await.unwrap();
    let ended = tokio::spawn(admission.consumer().key_ended());
    tokio::task::yield_now().await;
    keys.advance(HOUR);
    within(ended).await.unwrap();
}

#[tokio::test]
async fn nothing_has_to_be_stopped() {
    let keys = TestKeys::new();
    let clone = keys.clone();
    within(keys.stop()).await;
    drop(keys);
    let (app, key) = (app(&clone), clone.issue("acme").scopes(["orders:read"]).await);
    assert_eq!(status(&app, key.get("/orders")).await, 200);
    assert!(clone.last_used_at(&key).await.is_some());
}

#[tokio::test]
async fn a_store_fails_as_often_as_it_is_told() {
    let store = FaultStore::new(MemoryKeyStore::new(), ManualClock::default());
    let kind = async || store.list(&KeyQuery::new()).await.err().map(|error| error.kind());
    assert_eq!(kind().await, None);
    store.fail_next(2);
    for expected in [Some(StoreErrorKind::Unavailable), Some(StoreErrorKind::Unavailable), None] {
        assert_eq!(kind().await, expected);
    }
    store.fail_with(StoreErrorKind::Corrupt);
    for _ in 0..3 {
        assert_eq!(kind().await, Some(StoreErrorKind::Corrupt));
    }
    store.come_back();
    assert_eq!(kind().await, None);
    assert_eq!(store.operations(), 8);
}

#[tokio::test]
async fn a_transaction_that_has_begun_goes_on_without_faults() {
    let store = FaultStore::new(MemoryKeyStore::new(), ManualClock::default());
    let transaction = store.begin().await.unwrap();
    store.go_down();
    assert_eq!(store.begin().await.unwrap_err().kind(), StoreErrorKind::Unavailable);
    transaction.commit().await.unwrap();
}

#[tokio::test]
async fn a_slow_store_answers_when_the_clock_is_advanced() {
    let (keys, app, key) = opened().await;
    keys.store().delay(SECOND);
    let request = key.get("/orders");
    let waiting = tokio::spawn(async move { status(&app, request).await });
    within(keys.store().until_waiting(1)).await;
    keys.advance(SECOND - Duration::from_nanos(1));
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    keys.advance(Duration::from_nanos(1));
    assert_eq!(within(waiting).await.unwrap(), 200);
}

#[tokio::test]
async fn handlers_are_tested_without_keys() {
    let acting = Consumer::acting_as("acme").scopes(["orders:read"]);
    let app = routes().layer(acting.clone());
    assert_eq!(status(&app, without_key()).await, 200);
    let app = routes().layer(Consumer::acting_as("acme"));
    assert_eq!(status(&app, without_key()).await, 403);
    assert_eq!(acting.build().id(), "acme");
}

#[tokio::test]
async fn acting_as_a_consumer_counts_its_requests_if_asked() {
    let clock = ManualClock::default();
    let quota = Quota::per_minute(4).unwrap();
    let acting = Consumer::acting_as("acme").rate_limits(quota).clock(clock.clone());
    let route = || get(async |consumer: Consumer| consumer.id().to_owned());
    let class = RateClass::new("search", Quota::per_minute(1).unwrap()).unwrap();
    let app = Router::new()
        .route("/", route())
        .route("/export", route().layer(Cost::new(3)))
        .route("/search", route().layer(class))
        .layer(acting);
    let status = async |path: &str| {
        let response = app.clone().oneshot(Request::get(path).body(Body::empty()).unwrap());
        let response = response.await.unwrap();
        let has_wait = response.headers().contains_key(header::RETRY_AFTER);
        assert_eq!(has_wait, response.status() == StatusCode::TOO_MANY_REQUESTS);
        response.status().as_u16()
    };
    assert_eq!(status("/search").await, 200);
    assert_eq!(status("/search").await, 429, "the class is used up");
    assert_eq!(status("/export").await, 200, "and the denied request took nothing");
    assert_eq!(status("/").await, 429);
    clock.advance(15 * SECOND);
    assert_eq!(status("/").await, 200);
    assert_eq!(status("/").await, 429);

    // Without limits, these layers let it pass.
    let app = Router::new().route("/", route().layer(Cost::new(1_000)));
    let app = app.layer(Consumer::acting_as("acme"));
    let request = Request::get("/").body(Body::empty()).unwrap();
    assert_eq!(app.oneshot(request).await.unwrap().status(), 200);
}

/// A crate that enables the feature must not open a service that uses the real layer.
#[tokio::test]
async fn acting_as_a_consumer_passes_no_layer_that_asks_for_a_key() {
    let keys = TestKeys::new();
    let acting = Consumer::acting_as("acme").scopes(["orders:read"]);
    let app = app(&keys).layer(acting.clone());
    // 500: two layers that read one header are a mistake.
    assert_eq!(status(&app, without_key()).await, 500);

    // Nor a layer that names its authenticator.
    let guard = RequireScope::one("orders:read").unwrap().of(keys.authenticator());
    let app = Router::new().route("/orders", get(async || ()).layer(guard)).layer(acting.clone());
    assert_eq!(status(&app, without_key()).await, 500);

    // The key counts, not the consumer around it.
    let app = routes().layer(keys.layer()).layer(acting);
    let powerless = keys.issue("globex").await;
    assert_eq!(status(&app, powerless.get("/orders")).await, 403);
}
