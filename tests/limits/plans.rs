//! Plans, from the store to the handler.

use axum::{Router, routing::get};
use tower_api_key::{
    ApiKeyLayer, Consumer,
    manage::{Expiry, KeyIssuer, NewKey},
    rate_limit::RateLimits,
};

use crate::app::{Keys, format, send, text, with_key};

#[tokio::test]
async fn a_handler_sees_the_plan_of_the_key() {
    async fn plan(consumer: Consumer) -> String {
        assert!(format!("{consumer:?}").contains(&format!("plan: {:?}", consumer.plan())));
        consumer.plan().unwrap_or("none").to_owned()
    }
    let keys = Keys::new();
    let app = Router::new().route("/", get(plan)).layer(ApiKeyLayer::new(keys.auth()));
    let issued = keys.issue(NewKey::new("acme", Expiry::Never).plan("pro")).await;
    assert_eq!(send(app.clone(), with_key(&text(&issued))).await.text(), "pro");
    assert_eq!(send(app, with_key(&keys.key().await)).await.text(), "none");
}

/// Without a change feed.
#[tokio::test]
async fn a_changed_plan_is_asked_for_by_the_next_request() {
    let keys = Keys::new();
    let auth = keys.auth();
    let issuer = KeyIssuer::new(keys.store.memory.clone(), format()).invalidates(auth.clone());
    let key = text(&keys.issue(NewKey::new("acme", Expiry::Never).plan("pro")).await);
    let asks = async || {
        let before = keys.queries();
        auth.check(key.as_bytes()).await.unwrap();
        keys.queries() - before
    };
    assert_eq!([asks().await, asks().await], [1, 0]);
    issuer.set_plan("pro", &RateLimits::unlimited()).await.unwrap();
    assert_eq!([asks().await, asks().await], [1, 0]);
    issuer.remove_plan("pro").await.unwrap();
    assert_eq!([asks().await, asks().await], [1, 0]);
}
