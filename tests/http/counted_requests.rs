//! What a request counts as, and how many units it costs.

use std::future::{pending, ready};

use axum::{Extension, Router, body::Body, routing::get};
use http::{Request, StatusCode};
use tower_api_key::{
    ApiKeyLayer, RequireScope,
    auth::Worker,
    layer::{ConcurrencyLimit, Cost, RateClass},
    manage::{Expiry, NewKey},
    rate_limit::Quota,
    record::Networks,
    store::port::UseCounts,
};

use crate::{
    app::send,
    doubles::{FakeStore, Key, Service, poll_once, within},
};

fn routes() -> Router {
    let class = RateClass::new("search", Quota::per_hour(1).unwrap()).unwrap();
    Router::new()
        .route("/", get(|| async {}))
        .route("/admin", get(|| async {}).layer(RequireScope::one("admin").unwrap()))
        .route("/search", get(|| async {}).layer(class.clone()))
        .route("/dear", get(|| async {}).layer(Cost::new(5)))
        .route("/dear/search", get(|| async {}).layer((Cost::new(5), class)))
        .route("/free", get(|| async {}).layer(Cost::FREE))
        .route("/metered", get(|| async { (Cost::new(4), "done") }))
        .route("/less", get(|| async { (Cost::new(2), "less") }).layer(Cost::new(5)))
        .route("/refunded", get(|| async { (Extension(Cost::FREE), "nothing new") }))
        .route("/slow", get(pending::<()>).layer(Cost::new(5)))
        .route("/failed", get(|| async { StatusCode::INTERNAL_SERVER_ERROR }))
}

struct Counting {
    service: Service,
    worker: Worker,
    app: Router,
}

impl Counting {
    fn new(layer: impl FnOnce(ApiKeyLayer) -> ApiKeyLayer) -> Self {
        let (service, worker) = Service::and_worker(|builder| builder);
        let app = routes().layer(layer(ApiKeyLayer::new(service.auth.clone())));
        Self { service, worker, app }
    }

    async fn key(&self, limit: Option<u32>) -> Key {
        let mut new = NewKey::new("acme", Expiry::Never);
        if let Some(limit) = limit {
            new = new.rate_limits(Quota::per_hour(limit).unwrap());
        }
        self.service.issue_new(new).await
    }

    async fn call(&self, path: &str, key: &Key) -> StatusCode {
        send(self.app.clone(), request(path, key)).await.status
    }

    /// What was written once the worker has ended.
    async fn written(self) -> FakeStore {
        within(self.worker.run(ready(()))).await;
        self.service.store
    }
}

fn request(path: &str, key: &Key) -> Request<Body> {
    let request = Request::get(path).header("authorization", format!("Bearer {}", key.text));
    request.body(Body::empty()).unwrap()
}

#[tokio::test]
async fn a_request_that_an_inner_layer_rejects_counts_as_what_the_client_got() {
    let counting = Counting::new(|layer| layer);
    let key = counting.key(Some(100)).await;
    assert_eq!(counting.call("/", &key).await, StatusCode::OK);
    assert_eq!(counting.call("/failed", &key).await, StatusCode::INTERNAL_SERVER_ERROR);
    for _ in 0..2 {
        assert_eq!(counting.call("/admin", &key).await, StatusCode::FORBIDDEN);
    }
    assert_eq!(counting.call("/search", &key).await, StatusCode::OK);
    for _ in 0..3 {
        assert_eq!(counting.call("/search", &key).await, StatusCode::TOO_MANY_REQUESTS);
    }
    let store = counting.written().await;
    // A 403 costs what the request would have, a 429 costs nothing.
    assert_eq!(store.counts_of(&key), UseCounts::new(3, 3, 2, 0, 5));
}

#[tokio::test]
async fn a_key_used_from_elsewhere_counts_as_forbidden() {
    let counting = Counting::new(|layer| layer);
    let networks = Networks::parse(["192.0.2.0/24"]).unwrap();
    let new = NewKey::new("acme", Expiry::Never).networks(networks);
    let key = counting.service.issue_new(new).await;
    assert_eq!(counting.call("/", &key).await, StatusCode::FORBIDDEN);
    let store = counting.written().await;
    assert_eq!(store.counts_of(&key), UseCounts::new(0, 0, 1, 0, 0));
}

#[tokio::test]
async fn units_are_the_costs_of_requests_whether_or_not_the_key_has_quotas() {
    for limit in [Some(1_000), None] {
        let costs =
            [("/", 1), ("/dear", 5), ("/free", 0), ("/metered", 4), ("/less", 2), ("/refunded", 0)];
        for (path, cost) in costs {
            let counting = Counting::new(|layer| layer);
            let key = counting.key(limit).await;
            for _ in 0..3 {
                assert_eq!(counting.call(path, &key).await, StatusCode::OK);
            }
            let store = counting.written().await;
            let expected = UseCounts::new(3, 0, 0, 0, 3 * cost);
            assert_eq!(store.counts_of(&key), expected, "{path}, {limit:?}");
        }
    }
}

#[tokio::test]
async fn units_are_refunded_when_an_inner_limit_rejects_the_request() {
    for limit in [Some(1_000), None] {
        let counting = Counting::new(|layer| layer);
        let key = counting.key(limit).await;
        assert_eq!(counting.call("/dear/search", &key).await, StatusCode::OK);
        assert_eq!(counting.call("/dear/search", &key).await, StatusCode::TOO_MANY_REQUESTS);
        let store = counting.written().await;
        assert_eq!(store.counts_of(&key), UseCounts::new(1, 1, 0, 0, 5), "{limit:?}");
    }
}

#[tokio::test]
async fn a_request_without_a_response_keeps_what_it_was_charged() {
    let counting = Counting::new(|layer| layer);
    let key = counting.key(Some(1_000)).await;
    assert_eq!(counting.call("/", &key).await, StatusCode::OK);
    let mut hung_up = Box::pin(send(counting.app.clone(), request("/slow", &key)));
    assert!(poll_once(&mut hung_up).is_pending());
    drop(hung_up);
    let store = counting.written().await;
    assert_eq!(store.counts_of(&key), UseCounts::new(2, 0, 0, 0, 6));
}

#[tokio::test]
async fn a_second_layer_of_the_same_authenticator_counts_nothing_again() {
    let counting = Counting::new(|layer| layer);
    let key = counting.key(Some(100)).await;
    let app = counting.app.clone().layer(ApiKeyLayer::new(counting.service.auth.clone()));
    for path in ["/", "/dear"] {
        assert_eq!(send(app.clone(), request(path, &key)).await.status, StatusCode::OK);
    }
    assert_eq!(send(app, request("/admin", &key)).await.status, StatusCode::FORBIDDEN);
    let store = counting.written().await;
    assert_eq!(store.counts_of(&key), UseCounts::new(2, 0, 1, 0, 7));
}

#[tokio::test]
async fn a_layer_in_shadow_mode_counts_what_it_decides_about_keys() {
    let counting = Counting::new(|layer| layer.shadow(true));
    let (key, revoked) = (counting.key(Some(1)).await, counting.key(None).await);
    counting.service.revoke(&revoked).await;
    for path in ["/", "/", "/admin"] {
        assert_eq!(counting.call(path, &key).await, StatusCode::OK);
    }
    assert_eq!(counting.call("/free", &revoked).await, StatusCode::OK);
    let store = counting.written().await;
    assert_eq!(store.counts_of(&key), UseCounts::new(3, 0, 0, 0, 0), "it is not charged");
    assert_eq!(store.counts_of(&revoked), UseCounts::new(0, 0, 0, 1, 0));
}

#[tokio::test]
async fn an_optional_layer_counts_requests_with_a_key() {
    let counting = Counting::new(|layer| layer.optional(true));
    let key = counting.key(None).await;
    assert_eq!(counting.call("/", &key).await, StatusCode::OK);
    let anonymous = Request::get("/").body(Body::empty()).unwrap();
    assert_eq!(send(counting.app.clone(), anonymous).await.status, StatusCode::OK);
    let store = counting.written().await;
    assert_eq!(store.counts_of(&key), UseCounts::new(1, 0, 0, 0, 1));
    assert_eq!(store.counted()[0].hours.len(), 1);
}

#[tokio::test]
async fn a_limit_of_requests_at_once_counts_as_limited() {
    let (service, worker) = Service::and_worker(|builder| builder);
    let none = ConcurrencyLimit::per_key(1).unwrap();
    let app = Router::new().route("/", get(|| async {})).layer(none);
    let app = app.layer(ApiKeyLayer::new(service.auth.clone()));
    let key = service.issue("acme").await;
    // Its body is not read, so it is in flight.
    let first = tower::ServiceExt::oneshot(app.clone(), request("/", &key)).await.unwrap();
    assert_eq!(send(app, request("/", &key)).await.status, StatusCode::TOO_MANY_REQUESTS);
    drop(first);
    within(worker.run(ready(()))).await;
    assert_eq!(service.store.counts_of(&key), UseCounts::new(1, 1, 0, 0, 1));
}
