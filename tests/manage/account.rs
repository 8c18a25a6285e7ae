//! The account router: what consumers can do for themselves, and what it costs them.

use std::time::Duration;

use axum::Router;
use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tower_api_key::{
    Authenticator,
    account::{self, Account},
    admin,
    manage::{Expiry, KeyIssuer, KeyUpdate, NewKey},
    rate_limit::{Quota, RateLimits},
    record::{KeyId, Metadata, Scopes},
    store::MemoryKeyStore,
};

use crate::{
    admin_client::{Desk, assert_problem, sealed},
    app::{format, get, send},
};

use crate::wait::within;

fn desk() -> Desk {
    Desk::new("/account", account::router)
}

#[tokio::test]
async fn a_consumer_looks_after_its_own_keys() {
    let desk = desk();
    let (caller, id) = desk.key("acme", &[]).await;
    let (other, _) = desk.key("acme", &[]).await;
    let key = format!("/api-keys/{id}");

    let list = desk.send(&caller, "GET", "/api-keys", None).await;
    assert_eq!(list.json()["keys"].as_array().unwrap().len(), 2);
    sealed(&list, &other);
    let update = KeyUpdate::new().plan(Some("pro".into()));
    desk.issuer.update(id, update).await.unwrap();
    let shown = desk.send(&caller, "GET", &key, None).await;
    assert_eq!((shown.status.as_u16(), &shown.json()["plan"]), (200, &json!("pro")));
    desk.issuer.update(id, KeyUpdate::new().plan(None)).await.unwrap();
    assert_eq!(desk.send(&caller, "GET", &format!("{key}/usage"), None).await.status, 200);

    let rotated = desk.send(&caller, "POST", &format!("{key}/rotate"), None).await;
    assert_eq!(rotated.status, 201, "{}", rotated.text());
    let new = rotated.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(rotated.header("location"), Some(format!("/account/api-keys/{new}").as_str()));
    let revoked = desk.send(&caller, "POST", &format!("{key}/revoke"), None).await;
    assert_eq!(revoked.json()["status"], json!("revoked"));
    assert_eq!(desk.send(&caller, "GET", "/api-keys", None).await.status, 401);
    assert_eq!(desk.send(&other, "GET", "/api-keys", None).await.status, 200);
}

/// A viewer cannot rotate the owner's key, which would give the new key the owner's metadata, or
/// revoke it.
#[tokio::test]
async fn a_key_takes_over_no_other_key_of_its_consumer() {
    let desk = desk();
    let (viewer, _) = desk.key("acme", &[]).await;
    let (owner, id) = desk.key("acme", &[]).await;
    let metadata = Metadata::from_json(r#"{"role":"owner"}"#).unwrap();
    desk.issuer.update(id, KeyUpdate::new().metadata(metadata)).await.unwrap();
    for (path, body) in [("rotate", json!({ "grace": "0s" })), ("revoke", json!({}))] {
        let path = format!("/api-keys/{id}/{path}");
        let answer = desk.send(&viewer, "POST", &path, Some(&body)).await;
        assert_problem(&answer, 403, "insufficient_scope", None);
        assert_eq!(answer.json()["scope"], json!("api-keys:write"));
    }
    assert_eq!(desk.send(&owner, "GET", "/api-keys", None).await.status, 200);
    assert_eq!(desk.denials().await, 2);

    let (writer, _) = desk.key("acme", &["api-keys:write"]).await;
    let path = format!("/api-keys/{id}/rotate");
    let answer = desk.send(&writer, "POST", &path, Some(&json!({ "grace": "0s" }))).await;
    assert_eq!(answer.json()["metadata"], json!({ "role": "owner" }));
}

#[tokio::test]
async fn the_scope_for_other_keys_can_have_another_name() {
    let desk = Desk::new("/account", |issuer, auth| {
        Account::new(issuer, auth).other_keys_scope("team:lead").unwrap().router()
    });
    let (member, id) = desk.key("acme", &["api-keys:write"]).await;
    let (lead, _) = desk.key("acme", &["team:lead"]).await;
    let (_, other) = desk.key("acme", &[]).await;
    let revoke = |id: &dyn std::fmt::Display| format!("/api-keys/{id}/revoke");
    let answer = desk.send(&member, "POST", &revoke(&other), None).await;
    assert_problem(&answer, 403, "insufficient_scope", None);
    for id in [other, id] {
        assert_eq!(desk.send(&lead, "POST", &revoke(&id), None).await.status, 200);
    }
}

/// The old key works for a while: with it, its owner can correct mistakes.
#[tokio::test]
async fn a_key_that_was_rotated_rotates_and_ends_what_it_was_rotated_to() {
    let desk = desk();
    let (first, id) = desk.key("acme", &[]).await;
    let rotate = async |id: &str| {
        let answer = desk.send(&first, "POST", &format!("/api-keys/{id}/rotate"), None).await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        answer.json()["id"].as_str().unwrap().to_owned()
    };
    let second = rotate(&id.to_string()).await;
    let third = rotate(&second).await;
    let answer = desk.send(&first, "POST", &format!("/api-keys/{third}/revoke"), None).await;
    assert_eq!(answer.json()["status"], json!("revoked"));
}

/// Every route, with a key that holds every scope of the admin router.
#[tokio::test]
async fn the_keys_of_others_do_not_exist() {
    let desk = desk();
    let scopes = ["api-keys:read", "api-keys:write", "api-keys:all-consumers"];
    let (caller, _) = desk.key("acme", &scopes).await;
    let (_, foreign) = desk.key("globex", &[]).await;
    let document = desk.document().await;
    let mut tried = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys().filter(|_| path.contains("{id}")) {
            let path = path.replace("{id}", &foreign.to_string());
            let body = (method == "patch").then(|| json!({ "name": "mine" }));
            let answer = desk.send(&caller, &method.to_uppercase(), &path, body.as_ref()).await;
            assert_problem(&answer, 404, "not_found", None);
            tried += 1;
        }
    }
    assert_eq!(tried, 6);
    let list = desk.send(&caller, "GET", "/api-keys?consumer_id=globex", None).await;
    assert_eq!(list.json()["keys"], json!([]));
}

#[tokio::test]
async fn a_key_issues_keys_here_with_the_scope_for_other_keys() {
    let desk = desk();
    let (plain, _) = desk.key("acme", &["orders:read"]).await;
    let (writer, _) = desk.key("acme", &["api-keys:write", "orders:read"]).await;
    let new = json!({ "expires": "1d", "scopes": ["orders:read"] });
    let answer = desk.send(&plain, "POST", "/api-keys", Some(&new)).await;
    assert_problem(&answer, 403, "insufficient_scope", None);
    assert_eq!(answer.json()["scope"], json!("api-keys:write"));
    let answer = desk.send(&writer, "POST", "/api-keys", Some(&new)).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    assert_eq!(answer.json()["consumer_id"], json!("acme"), "its own, if none is named");
    let foreign = json!({ "consumer_id": "globex", "expires": "1d" });
    let answer = desk.send(&writer, "POST", "/api-keys", Some(&foreign)).await;
    assert_problem(&answer, 404, "not_found", None);
    let beyond = json!({ "expires": "1d", "scopes": ["orders:write"] });
    let answer = desk.send(&writer, "POST", "/api-keys", Some(&beyond)).await;
    assert_problem(&answer, 403, "denied", Some("/scopes"));
    assert_eq!(desk.denials().await, 3);
    assert_problem(
        &desk.send(&writer, "POST", "/rate-limit", None).await,
        405,
        "method_not_allowed",
        None,
    );
}

/// Metadata may decide what a key may do, so a key does not write its own.
#[tokio::test]
async fn a_key_changes_itself_but_not_its_metadata_and_no_other_key() {
    let desk = desk();
    let (caller, id) = desk.key("acme", &["orders:read"]).await;
    let (writer, other) = desk.key("acme", &["api-keys:write"]).await;
    let change = async |key: &str, id: KeyId, patch: Value| {
        desk.send(key, "PATCH", &format!("/api-keys/{id}"), Some(&patch)).await
    };
    let answer = change(&caller, id, json!({ "name": "ci", "expires": "30d" })).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["name"]), (200, &json!("ci")));
    for patch in [
        json!({ "metadata": { "role": "owner" } }),
        json!({ "name": "mine", "metadata": { "role": "owner" } }),
    ] {
        let answer = change(&caller, id, patch).await;
        assert_problem(&answer, 403, "insufficient_scope", None);
    }
    let answer = change(&caller, other, json!({ "name": "mine" })).await;
    assert_problem(&answer, 403, "insufficient_scope", None);
    for patch in [json!({ "scopes": ["orders:write"] }), json!({ "expires": "never" })] {
        assert_problem(&change(&caller, id, patch).await, 403, "denied", None);
    }
    let record = desk.issuer.get(id).await.unwrap().record;
    assert_eq!((record.name.as_deref(), &record.metadata), (Some("ci"), &Metadata::default()));

    let answer = change(&writer, id, json!({ "metadata": { "role": "owner" } })).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[tokio::test]
async fn a_key_reads_the_audit_of_its_consumers_keys() {
    let desk = desk();
    let (caller, id) = desk.key("acme", &[]).await;
    let answer = desk.send(&caller, "GET", &format!("/api-keys/{id}/events"), None).await;
    assert_eq!(answer.json()["events"][0]["action"], json!("issued"));
    sealed(&answer, &caller);
}

#[tokio::test]
async fn a_key_asks_what_it_is() {
    let store = MemoryKeyStore::new();
    let (auth, _worker) = Authenticator::builder(store.clone(), format())
        .default_rate_limits(Quota::per_minute(5).unwrap())
        .build();
    let issuer = auth.issuer(store);
    let new = NewKey::new("acme", Expiry::In(Duration::from_secs(3600)))
        .name("ci")
        .scopes(Scopes::parse(["orders:read"]).unwrap());
    let issued = issuer.issue(new).await.unwrap();
    // Even where everything else needs a scope.
    let account = Account::new(issuer, auth).required_scope("self").unwrap().router();
    let mut request = get("/whoami");
    let key = issued.key.expose_secret();
    let value = format!("Bearer {key}").parse().unwrap();
    request.headers_mut().insert(http::header::AUTHORIZATION, value);
    let answer = send(account, request).await;
    sealed(&answer, key);
    let mut itself = answer.json();
    assert!(itself["expires_at"].take().is_string(), "{itself}");
    assert_eq!(
        itself,
        json!({
            "key_id": issued.record.id.to_string(),
            "consumer_id": "acme",
            "name": "ci",
            "scopes": ["orders:read"],
            "expires_at": null,
            "plan": null,
            "quotas": [{ "name": "minute", "limit": 5, "window_ms": 60_000, "burst": 5 }],
        })
    );
}

#[tokio::test]
async fn nothing_is_answered_without_a_key() {
    let desk = desk();
    for path in ["", "/nothing", "/api-keys", "/rate-limit", "/openapi.json"] {
        let answer = send(desk.app.clone(), get(&format!("/account{path}"))).await;
        assert_problem(&answer, 401, "missing_api_key", None);
    }
}

#[tokio::test]
async fn a_scope_can_be_asked_for() {
    let desk = Desk::new("/account", |issuer, auth| {
        Account::new(issuer, auth).required_scope("self").unwrap().router()
    });
    let (without, id) = desk.key("acme", &[]).await;
    let (with, _) = desk.key("acme", &["self"]).await;
    let rotate = format!("/api-keys/{id}/rotate");
    for (method, path) in [("GET", "/api-keys"), ("POST", rotate.as_str())] {
        assert_problem(
            &desk.send(&without, method, path, None).await,
            403,
            "insufficient_scope",
            None,
        );
    }
    assert_eq!(desk.send(&without, "GET", "/rate-limit", None).await.status, 200);
    assert_eq!(desk.send(&with, "GET", "/api-keys", None).await.status, 200);
    assert_eq!(desk.denials().await, 1);
}

/// Reading the quota any number of times leaves all of it for other requests, and works when
/// nothing is left.
#[tokio::test]
async fn asking_what_is_left_spends_nothing() {
    let store = MemoryKeyStore::new();
    let (auth, _worker) = Authenticator::builder(store.clone(), format())
        .clock(tower_api_key::clock::ManualClock::default())
        .build();
    let issuer = KeyIssuer::new(store, format());
    let limits =
        RateLimits::new([Quota::per_minute(3).unwrap(), Quota::per_hour(100).unwrap()]).unwrap();
    let issued =
        issuer.issue(NewKey::new("acme", Expiry::Never).rate_limits(limits)).await.unwrap();
    let app = Router::new().nest_service("/account", account::router(issuer, auth));
    let ask = async |path: &str| {
        let mut request = get(&format!("/account{path}"));
        let value = format!("Bearer {}", issued.key.expose_secret()).parse().unwrap();
        request.headers_mut().insert(http::header::AUTHORIZATION, value);
        send(app.clone(), request).await
    };
    for left in [3, 2, 1] {
        for _ in 0..20 {
            let answer = ask("/rate-limit").await;
            assert_eq!(answer.status, 200);
            let quotas = &answer.json()["quotas"];
            assert_eq!(quotas[0]["name"], json!("minute"));
            assert_eq!(quotas[0]["remaining"], json!(left));
            assert_eq!(quotas[0]["sliding"], json!(false));
            assert_eq!(quotas[0]["counted_per"], json!("key"));
            assert_eq!(quotas[1]["remaining"], json!(100 - (3 - left)));
        }
        assert_eq!(ask("/api-keys").await.status, 200);
    }
    assert_eq!(ask("/api-keys").await.status, 429);
    let empty = ask("/rate-limit").await;
    assert_eq!(empty.status, 200, "{}", empty.text());
    assert_eq!(empty.json()["quotas"][0]["remaining"], json!(0));
    assert_eq!(empty.json()["quotas"][0]["next_unit_in_ms"], json!(20_000));
    assert_eq!(ask("/nothing").await.status, 429, "all else is charged");
}

/// A client that repeats a forbidden request is slowed down, and no other consumer is.
#[tokio::test(start_paused = true)]
async fn denials_are_held_back_and_count_as_under_way() {
    let desk = Desk::new("/admin", admin::router);
    let (viewer, _) = desk.key("mallory", &["api-keys:read"]).await;
    let (writer, own) = desk.key("mallory", &["api-keys:write"]).await;
    let (_, foreign) = desk.key("acme", &[]).await;
    let (other, _) = desk.key("other", &["api-keys:read"]).await;
    for (key, status) in [(&viewer, 403), (&writer, 404)] {
        let began = Instant::now();
        let mut denied = JoinSet::new();
        for _ in 0..12 {
            let path = format!("/api-keys/{foreign}/revoke");
            let request = desk.request(key, "POST", &path, Some(&json!({})));
            denied.spawn(send(desk.app.clone(), request));
        }
        // Between the first four responses and the next.
        sleep_until(began + Duration::from_millis(50)).await;
        assert_eq!(desk.send(&other, "GET", "/api-keys", None).await.status, 200);
        assert_eq!(began.elapsed(), Duration::from_millis(50), "others are not held back");
        while let Some(answer) = within(denied.join_next()).await {
            assert_eq!(answer.unwrap().status, status);
        }
        assert_eq!(began.elapsed(), Duration::from_millis(300), "four at a time");
    }
    let began = Instant::now();
    let path = format!("/api-keys/{own}/revoke");
    assert_eq!(desk.send(&writer, "POST", &path, Some(&json!({}))).await.status, 200);
    assert_eq!(began.elapsed(), Duration::ZERO, "what is allowed is not held back");
}
