//! The routers inside a layer in shadow mode, which lets every request pass: they check keys by
//! themselves.

use std::future::ready;

use axum::{Router, response::IntoResponse};
use http::{StatusCode, request::Parts};
use serde_json::{Value, json};
use tower_api_key::{
    ApiKeyLayer, Authenticator,
    account::{self, Account},
    admin::{self, GuardedRoutes},
    manage::{Expiry, KeyIssuer, KeyUpdate, Member, NewKey},
    rate_limit::Quota,
    record::{KeyId, Scopes},
    store::{KeyQuery, MemoryKeyStore},
};

use crate::{
    admin_client::Desk,
    app::{Answer, format, send, unknown_key},
};

const OPERATOR: [&str; 3] = ["api-keys:read", "api-keys:write", "api-keys:all-consumers"];

/// A router by itself, inside a layer of its authenticator in shadow mode, and inside one of another
/// authenticator.
struct Routers {
    desk: Desk,
    in_shadow: [Router; 2],
}

impl Routers {
    fn of(routes: impl FnOnce(KeyIssuer, Authenticator) -> GuardedRoutes) -> Self {
        let mut own = None;
        let desk = Desk::new("/keys", |issuer, auth| {
            own = Some(auth.clone());
            routes(issuer, auth)
        });
        let (other, _) = Authenticator::builder(MemoryKeyStore::new(), format()).build();
        let layer = |auth| ApiKeyLayer::new(auth).shadow(true).optional(true);
        let in_shadow = [own.unwrap(), other].map(|auth| desk.app.clone().layer(layer(auth)));
        Self { desk, in_shadow }
    }

    /// The answers of all, which are alike. Without a key if that is empty.
    async fn answer(&self, key: &str, (method, path, body): &Call) -> Answer {
        let request = || {
            let mut request = self.desk.request(key, method, path, body.as_ref());
            if key.is_empty() {
                request.headers_mut().remove("authorization");
            }
            request
        };
        let expected = send(self.desk.app.clone(), request()).await;
        for app in &self.in_shadow {
            let answer = send(app.clone(), request()).await;
            let seen = |answer: &Answer| (answer.status, answer.text().to_owned());
            assert_eq!(seen(&answer), seen(&expected), "{method} {path}");
            assert_eq!(answer.challenge(), expected.challenge(), "{method} {path}");
        }
        expected
    }

    /// The number of keys, and the version of this one.
    async fn stored(&self, id: KeyId) -> (usize, u64) {
        let keys = self.desk.issuer.list(&KeyQuery::new()).await.unwrap().keys;
        let version = keys.iter().find(|key| key.record.id == id).unwrap().record.version;
        (keys.len(), version)
    }
}

type Call = (&'static str, String, Option<Value>);

fn calls(id: KeyId) -> [Call; 9] {
    let new = json!({ "consumer_id": "acme", "expires": "1d" });
    let key = format!("/api-keys/{id}");
    [
        ("GET", "/api-keys".to_owned(), None),
        ("POST", "/api-keys".to_owned(), Some(new)),
        ("GET", key.clone(), None),
        ("PATCH", key.clone(), Some(json!({ "name": "taken" }))),
        ("POST", format!("{key}/rotate"), None),
        ("POST", format!("{key}/revoke"), None),
        ("GET", format!("{key}/events"), None),
        ("GET", format!("{key}/usage"), None),
        ("GET", "/none".to_owned(), None),
    ]
}

#[tokio::test]
async fn without_a_good_key_the_routers_do_nothing() {
    for routers in [Routers::of(admin::router), Routers::of(account::router)] {
        let issuer = &routers.desk.issuer;
        let (_, id) = routers.desk.key("acme", &[]).await;
        let (revoked, revoked_id) = routers.desk.key("acme", &OPERATOR).await;
        issuer.revoke(revoked_id, None).await.unwrap();
        let (inactive, inactive_id) = routers.desk.key("acme", &OPERATOR).await;
        issuer.update(inactive_id, KeyUpdate::new().is_active(false)).await.unwrap();
        let before = routers.stored(id).await;
        for key in ["", "junk", &unknown_key(), &revoked, &inactive] {
            for call in calls(id) {
                assert_eq!(routers.answer(key, &call).await.status, 401, "{call:?}");
            }
        }
        assert_eq!(routers.stored(id).await, before);
    }
}

#[tokio::test]
async fn a_key_can_do_no_more_than_without_shadow_mode() {
    let routers = Routers::of(admin::router);
    let (other, id) = routers.desk.key("acme", &["orders:read"]).await;
    let spent = NewKey::new("acme", Expiry::Never).scopes(Scopes::parse(OPERATOR).unwrap());
    let spent = spent.rate_limits(Quota::per_hour(1).unwrap());
    let spent = routers.desk.issuer.issue(spent).await.unwrap().key.expose_secret().to_owned();
    assert_eq!(routers.desk.send(&spent, "GET", "/api-keys", None).await.status, 200);
    let before = routers.stored(id).await;
    for call in calls(id) {
        let expected = if call.1 == "/none" { 404 } else { 403 };
        assert_eq!(routers.answer(&other, &call).await.status, expected, "{call:?}");
        assert_eq!(routers.answer(&spent, &call).await.status, 429, "{call:?}");
    }
    assert_eq!(routers.stored(id).await, before);

    let (operator, _) = routers.desk.key("ops", &OPERATOR).await;
    for call in
        calls(id).into_iter().filter(|(method, path, _)| *method == "GET" && path != "/none")
    {
        assert_eq!(routers.answer(&operator, &call).await.status, 200, "{call:?}");
    }
}

/// A key, however good, is no login.
#[tokio::test]
async fn behind_a_login_a_key_does_nothing() {
    let signed_out =
        |_: &mut Parts| ready(Err::<Member, _>(StatusCode::UNAUTHORIZED.into_response()));
    let routers = Routers::of(|issuer, _| Account::signed_in_by(issuer, signed_out).router());
    let (operator, id) = routers.desk.key("acme", &OPERATOR).await;
    let before = routers.stored(id).await;
    for call in calls(id) {
        assert_eq!(routers.answer(&operator, &call).await.status, 401, "{call:?}");
    }
    assert_eq!(routers.stored(id).await, before);
}
