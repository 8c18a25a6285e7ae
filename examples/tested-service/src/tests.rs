//! Each test has one line of set-up, and neither waits nor needs a database.

use std::time::Duration;

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{Method, Request},
};
use tower::ServiceExt;
use tower_api_key::{
    Consumer,
    test_util::{IssueKey, TestKey, TestKeys},
};

use super::{app, configured, orders};

const HOUR: Duration = Duration::from_secs(3600);

/// The service, its keys, and a key that reads orders.
async fn service() -> (TestKeys, Router, TestKey) {
    service_with(|key| key).await
}

async fn service_with(more: impl FnOnce(IssueKey) -> IssueKey) -> (TestKeys, Router, TestKey) {
    let keys = TestKeys::with(|keys| configured(keys).unwrap());
    let key = more(keys.issue("acme").scopes(["orders:read"])).await;
    (keys.clone(), app(&keys).unwrap(), key)
}

async fn send(app: &Router, request: Request<Body>) -> (u16, String) {
    let response = app.clone().oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let body = to_bytes(response.into_body(), 10_000).await.unwrap();
    (status, String::from_utf8(body.into()).unwrap())
}

async fn status(app: &Router, request: Request<Body>) -> u16 {
    send(app, request).await.0
}

fn without_key(path: &str) -> Request<Body> {
    Request::get(path).body(Body::empty()).unwrap()
}

#[tokio::test]
async fn a_key_lists_its_orders() {
    let (_keys, app, key) = service().await;
    let (status, body) = send(&app, key.get("/orders")).await;
    assert_eq!((status, &*body), (200, r#"["an order of acme"]"#));
}

#[tokio::test]
async fn a_request_without_a_key_is_unauthorized() {
    let (_keys, app, _key) = service().await;
    assert_eq!(status(&app, without_key("/orders")).await, 401);
    assert_eq!(status(&app, without_key("/health")).await, 200);
}

#[tokio::test]
async fn a_key_without_the_scope_is_forbidden() {
    let (_keys, app, key) = service().await;
    let request = key.request(Method::DELETE, "/orders/1").body(Body::empty()).unwrap();
    assert_eq!(status(&app, request).await, 403);
}

#[tokio::test]
async fn the_61st_request_of_a_minute_is_too_many() {
    let (keys, app, key) = service().await;
    for _ in 0..60 {
        assert_eq!(status(&app, key.get("/orders")).await, 200);
    }
    assert_eq!(status(&app, key.get("/orders")).await, 429);
    keys.advance(Duration::from_secs(1));
    assert_eq!(status(&app, key.get("/orders")).await, 200);
}

#[tokio::test]
async fn a_key_that_cannot_be_checked_is_an_outage() {
    let (keys, app, key) = service().await;
    keys.go_down();
    assert_eq!(status(&app, key.get("/orders")).await, 503);
    keys.come_back();
    assert_eq!(status(&app, key.get("/orders")).await, 200);
}

#[tokio::test]
async fn an_expired_key_is_unauthorized() {
    let (keys, app, key) = service_with(|key| key.expires_in(HOUR)).await;
    assert_eq!(status(&app, key.get("/orders")).await, 200);
    keys.advance(HOUR);
    assert_eq!(status(&app, key.get("/orders")).await, 401);
}

#[tokio::test]
async fn a_revoked_key_is_unauthorized() {
    let (keys, app, key) = service().await;
    assert_eq!(status(&app, key.get("/orders")).await, 200);
    keys.revoke(&key).await;
    assert_eq!(status(&app, key.get("/orders")).await, 401);
}

#[tokio::test]
async fn handlers_are_tested_without_keys() {
    let app = orders().unwrap().layer(Consumer::acting_as("globex").scopes(["orders:read"]));
    assert_eq!(status(&app, without_key("/orders")).await, 200);
}
