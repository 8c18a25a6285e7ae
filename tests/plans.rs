//! Plans, from the store to the handler.

#![cfg(test)]

mod by_hand;
mod support;

use axum::{Router, routing::get};
use tower_api_key::{
    ApiKeyLayer, Consumer,
    manage::{Expiry, NewKey},
};

use self::support::{Keys, send, text, with_key};

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
