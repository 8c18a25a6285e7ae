//! The admin router: its responses to each caller, and that its guard cannot be bypassed.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use axum::{Router, body::Body, extract::DefaultBodyLimit, routing::get};
use http::{Request, StatusCode, header};
use serde_json::{Value, json};
use tower_api_key::{
    admin::{self, Admin},
    key::{EntropySource, RngError, SystemEntropy},
    manage::{Expiry, KeyUpdate, NewKey},
    record::{KeyId, Metadata, Scopes},
    store::EventQuery,
};

use crate::{
    admin_client::{Desk, assert_problem, sealed},
    app::{Answer, send},
};

const READ: &str = "api-keys:read";
const WRITE: &str = "api-keys:write";
const ALL: &str = "api-keys:all-consumers";

fn desk() -> Desk {
    Desk::new("/admin", admin::router)
}

#[tokio::test]
async fn a_key_is_issued_shown_changed_rotated_and_revoked() {
    let desk = desk();
    let (admin, _) = desk.key("ops", &[READ, WRITE, ALL, "orders:read"]).await;
    let new = json!({
        "consumer_id": "acme", "name": "ci 🚀", "scopes": ["orders:read"], "expires": "30d",
        "rate_limits": [{ "name": "minute", "limit": 60, "window_ms": 60000, "burst": 10 }],
        "metadata": { "plan": "pro", "seats": { "used": 1 } },
        "created_by": "alice", "reason": "onboarding",
    });
    let created = desk.send(&admin, "POST", "/api-keys", Some(&new)).await;
    assert_eq!(created.status, StatusCode::CREATED, "{}", created.text());
    assert_eq!(created.header("cache-control"), Some("no-store"));
    assert_eq!(created.header("etag"), Some("\"1\""));
    let body = created.json();
    let id = body["id"].as_str().unwrap().to_owned();
    assert_eq!(created.header("location"), Some(format!("/admin/api-keys/{id}").as_str()));
    let key = body["key"].as_str().unwrap();
    assert!(key.starts_with("sk_test_"));
    assert_eq!(body["hint"], format!("sk_test_…{}", &key[key.len() - 4..]));

    let shown = desk.send(&admin, "GET", &format!("/api-keys/{id}"), None).await;
    assert_eq!(shown.status, StatusCode::OK);
    sealed(&shown, key);
    let shown = shown.json();
    for (field, value) in [
        ("consumer_id", json!("acme")),
        ("name", json!("ci 🚀")),
        ("scopes", json!(["orders:read"])),
        ("metadata", new["metadata"].clone()),
        ("rate_limits", new["rate_limits"].clone()),
        ("status", json!("active")),
        ("is_active", json!(true)),
        ("created_by", json!("alice")),
        ("version", json!(1)),
        ("last_used_at", json!(null)),
    ] {
        assert_eq!(shown[field], value, "{field}");
    }

    let patch =
        json!({ "name": null, "metadata": { "plan": null, "seats": { "used": 2, "max": 5 } } });
    let changed = desk.send(&admin, "PATCH", &format!("/api-keys/{id}"), Some(&patch)).await;
    assert_eq!(changed.status, StatusCode::OK, "{}", changed.text());
    sealed(&changed, key);
    assert_eq!(changed.header("etag"), Some("\"2\""));
    assert_eq!(changed.json()["name"], json!(null));
    assert_eq!(changed.json()["metadata"], json!({ "seats": { "used": 2, "max": 5 } }));
    assert_eq!(changed.json()["scopes"], json!(["orders:read"]));

    let rotated = desk
        .send(&admin, "POST", &format!("/api-keys/{id}/rotate"), Some(&json!({ "grace": "1h" })))
        .await;
    assert_eq!(rotated.status, StatusCode::CREATED, "{}", rotated.text());
    let rotated = rotated.json();
    assert_eq!(rotated["rotated_from"], json!(id));
    assert_eq!(rotated["previous"]["id"], json!(id));
    assert!(rotated["previous"]["rotated_at"].is_string());
    assert_ne!(rotated["key"], json!(key));

    let reason = json!({ "reason": "rotated" });
    let revoked = desk.send(&admin, "POST", &format!("/api-keys/{id}/revoke"), Some(&reason)).await;
    assert_eq!((revoked.status, &revoked.json()["status"]), (StatusCode::OK, &json!("revoked")));
    assert_eq!(revoked.json()["revoked_reason"], json!("rotated"));
    sealed(&revoked, key);

    let usage = desk.send(&admin, "GET", &format!("/api-keys/{id}/usage"), None).await;
    let usage = usage.json();
    assert_eq!((&usage["key_id"], &usage["last_used_at"]), (&json!(id), &json!(null)));
    assert_eq!(usage["buckets"], json!([]));

    let events = desk.send(&admin, "GET", &format!("/api-keys/{id}/events"), None).await;
    sealed(&events, key);
    let actions: Vec<_> = events.json()["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["action"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(actions, ["revoked", "rotated", "updated", "issued"]);

    let all = desk
        .send(&admin, "POST", "/api-keys/revoke", Some(&json!({ "consumer_id": "acme" })))
        .await;
    assert_eq!(all.json(), json!({ "revoked": 1, "skipped": 0 }));
    let list = desk.send(&admin, "GET", "/api-keys?consumer_id=acme&status=revoked", None).await;
    sealed(&list, key);
    assert_eq!(list.json()["keys"].as_array().unwrap().len(), 2);
}

/// The scope of each operation: an operation that is missing here is not tested.
const OPERATIONS: &[(&str, &str, &str)] = &[
    ("POST", "/api-keys", WRITE),
    ("GET", "/api-keys", READ),
    ("POST", "/api-keys/revoke", WRITE),
    ("GET", "/api-keys/{id}", READ),
    ("PATCH", "/api-keys/{id}", WRITE),
    ("POST", "/api-keys/{id}/rotate", WRITE),
    ("POST", "/api-keys/{id}/revoke", WRITE),
    ("GET", "/api-keys/{id}/events", READ),
    ("GET", "/api-keys/{id}/usage", READ),
    ("GET", "/usage", READ),
];

fn body_of(method: &str, path: &str, consumer: &str) -> Option<Value> {
    match (method, path) {
        ("GET", _) => None,
        ("POST", "/api-keys") => Some(json!({ "consumer_id": consumer, "expires": "never" })),
        ("POST", "/api-keys/revoke") => Some(json!({ "consumer_id": consumer })),
        ("PATCH", _) => Some(json!({ "is_active": false })),
        _ => Some(json!({})),
    }
}

#[tokio::test]
async fn who_may_do_what_to_whose_keys() {
    let document = desk().document().await;
    let mut documented: Vec<_> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, item)| {
            item.as_object()
                .unwrap()
                .keys()
                .map(move |method| (method.to_uppercase(), path.clone()))
        })
        .collect();
    let mut known: Vec<_> = OPERATIONS
        .iter()
        .map(|(method, path, _)| ((*method).to_owned(), (*path).to_owned()))
        .collect();
    documented.sort();
    known.sort();
    assert_eq!(documented, known, "every operation has its line in this test's table");

    let roles: [&[&str]; 7] =
        [&[], &["other"], &[READ], &[WRITE], &[READ, WRITE], &[READ, WRITE, ALL], &[ALL]];
    for (method, path, scope) in OPERATIONS {
        for role in roles {
            for consumer in ["acme", "globex"] {
                let desk = desk();
                let (caller, _) = desk.key("acme", role).await;
                let (_, target) = desk.key(consumer, &[]).await;
                let at = path.replace("{id}", &target.to_string());
                let query = if *method == "GET" && *path == "/api-keys" {
                    format!("{at}?consumer_id={consumer}")
                } else {
                    at
                };
                let answer = desk
                    .send(&caller, method, &query, body_of(method, path, consumer).as_ref())
                    .await;
                let reaches = consumer == "acme" || role.contains(&ALL);
                let is_list = query.contains('?') || *path == "/usage";
                let expected = match (role.contains(scope), reaches || is_list) {
                    (false, _) => 403,
                    (true, false) => 404,
                    (true, true) if *path == "/api-keys" && *method == "POST" => 201,
                    (true, true) if path.ends_with("rotate") => 201,
                    (true, true) => 200,
                };
                let cell = format!("{method} {path} by {role:?} of {consumer}'s");
                assert_eq!(answer.status.as_u16(), expected, "{cell}: {}", answer.text());
                match expected {
                    403 => {
                        assert_problem(&answer, 403, "insufficient_scope", None);
                        assert_eq!(answer.json()["scope"], json!(scope), "{cell}");
                        let challenge = format!(
                            "Bearer realm=\"api\", error=\"insufficient_scope\", scope=\"{scope}\""
                        );
                        assert_eq!(answer.challenge(), Some(challenge.as_str()), "{cell}");
                    }
                    404 => assert_problem(&answer, 404, "not_found", None),
                    _ if query.contains('?') => {
                        let found = answer.json()["keys"]
                            .as_array()
                            .unwrap()
                            .iter()
                            .any(|key| key["id"] == json!(target.to_string()));
                        assert_eq!(found, reaches, "{cell}");
                    }
                    _ => {}
                }
                let is_denied_change = expected >= 403 && *scope == WRITE;
                let denied = desk.denials().await;
                assert_eq!(denied, usize::from(is_denied_change), "{cell}: denials in the audit");
            }
        }
    }
}

#[tokio::test]
async fn nothing_is_answered_without_a_key() {
    let desk = desk();
    let late = desk.app.clone().route("/admin2", get(async || "open"));
    for path in [
        "/admin",
        "/admin/",
        "/admin/nothing",
        "/admin/openapi.json",
        "/admin/api-keys/x/y/z",
        "/admin//api-keys",
    ] {
        for method in ["GET", "POST", "DELETE", "OPTIONS", "TRACE"] {
            let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
            let answer = send(late.clone(), request).await;
            assert_problem(&answer, 401, "missing_api_key", None);
            assert_eq!(answer.header("cache-control"), Some("no-store"), "{method} {path}");
        }
    }
    for (method, path, _) in OPERATIONS {
        let request = Request::builder().method(*method).uri(format!("/admin{path}"));
        let answer = send(late.clone(), request.body(Body::empty()).unwrap()).await;
        assert_problem(&answer, 401, "missing_api_key", None);
    }
}

#[tokio::test]
async fn the_document_can_be_opened_and_nothing_else_is() {
    let desk =
        Desk::new("/admin", |issuer, auth| Admin::new(issuer, auth).open_document(true).router());
    for (path, status) in [("/openapi.json", 200), ("/docs", 401), ("/api-keys", 401), ("/x", 401)]
    {
        let answer = send(desk.app.clone(), crate::app::get(&format!("/admin{path}"))).await;
        assert_eq!(answer.status, status, "{path}");
    }
}

#[tokio::test]
async fn scopes_can_have_other_names() {
    let desk = Desk::new("/admin", |issuer, auth| {
        Admin::new(issuer, auth).scopes("r", "w", "x").unwrap().router()
    });
    let (caller, _) = desk.key("acme", &["r"]).await;
    assert_eq!(desk.send(&caller, "GET", "/api-keys", None).await.status, 200);
    let refused = desk
        .send(
            &caller,
            "POST",
            "/api-keys",
            Some(&json!({ "consumer_id": "acme", "expires": "1d" })),
        )
        .await;
    assert_eq!(refused.json()["scope"], json!("w"));
}

#[tokio::test]
async fn a_key_grants_no_more_than_it_holds() {
    let desk = desk();
    let (caller, _) = desk.key("acme", &[WRITE]).await;
    let new =
        json!({ "consumer_id": "acme", "expires": "never", "scopes": [WRITE, "orders:read"] });
    let refused = desk.send(&caller, "POST", "/api-keys", Some(&new)).await;
    assert_problem(&refused, 403, "denied", Some("/scopes"));
    assert_eq!(desk.denials().await, 1);
}

#[tokio::test]
async fn a_caller_that_was_revoked_after_it_was_let_in_gets_a_401_and_makes_nothing() {
    let desk = desk();
    let (caller, id) = desk.key("acme", &[READ, WRITE]).await;
    assert_eq!(desk.send(&caller, "GET", "/api-keys", None).await.status, StatusCode::OK);
    // The routers' cache is not told of the change.
    desk.issuer.revoke(id, None).await.unwrap();
    let new = json!({ "consumer_id": "acme", "expires": "never" });
    let refused = desk.send(&caller, "POST", "/api-keys", Some(&new)).await;
    assert_problem(&refused, 401, "invalid_api_key", None);
    assert!(refused.challenge().unwrap().contains(r#"error="invalid_token""#), "{refused:?}");
    assert_eq!(desk.denials().await, 1);
    let (reader, _) = desk.key("ops", &[READ, ALL]).await;
    let keys = desk.send(&reader, "GET", "/api-keys?consumer_id=acme", None).await;
    assert_eq!(keys.json()["keys"].as_array().unwrap().len(), 1, "{}", keys.text());
}

#[tokio::test]
async fn a_key_is_put_on_a_plan_and_taken_off() {
    let desk = desk();
    let (admin, _) = desk.key("ops", &[READ, WRITE, ALL]).await;
    let new = json!({ "consumer_id": "acme", "expires": "never", "plan": "pro" });
    let created = desk.send(&admin, "POST", "/api-keys", Some(&new)).await;
    assert_eq!((created.status.as_u16(), &created.json()["plan"]), (201, &json!("pro")));
    let key = format!("/api-keys/{}", created.json()["id"].as_str().unwrap());
    for (patch, plan) in [
        (json!({ "plan": "free" }), json!("free")),
        (json!({ "name": "ci" }), json!("free")),
        (json!({ "plan": null }), json!(null)),
        (json!({ "plan": "pro" }), json!("pro")),
    ] {
        let changed = desk.send(&admin, "PATCH", &key, Some(&patch)).await;
        assert_eq!((changed.status.as_u16(), &changed.json()["plan"]), (200, &plan), "{patch}");
        assert_eq!(desk.send(&admin, "GET", &key, None).await.json()["plan"], plan, "{patch}");
    }
    let rotated = desk.send(&admin, "POST", &format!("{key}/rotate"), None).await.json();
    assert_eq!((&rotated["plan"], &rotated["previous"]["plan"]), (&json!("pro"), &json!("pro")));
    let listed = desk.send(&admin, "GET", "/api-keys?consumer_id=acme", None).await.json();
    assert_eq!(
        (&listed["keys"][0]["plan"], &listed["keys"][1]["plan"]),
        (&json!("pro"), &json!("pro"))
    );
}

#[tokio::test]
async fn a_key_on_a_plan_grants_that_one() {
    let desk = desk();
    let new =
        NewKey::new("acme", Expiry::Never).plan("free").scopes(Scopes::parse([WRITE]).unwrap());
    let caller = desk.issuer.issue(new).await.unwrap().key;
    let caller = caller.expose_secret();
    for plan in [json!("pro"), json!(null)] {
        let new = json!({ "consumer_id": "acme", "expires": "never", "plan": plan });
        let refused = desk.send(caller, "POST", "/api-keys", Some(&new)).await;
        assert_problem(&refused, 403, "denied", Some("/plan"));
        assert!(refused.text().contains("free"), "it says which: {}", refused.text());
    }
    assert_eq!(desk.denials().await, 2);
    let new = json!({ "consumer_id": "acme", "expires": "never", "plan": "free" });
    assert_eq!(desk.send(caller, "POST", "/api-keys", Some(&new)).await.status, 201);
}

/// The error of a request, and its place.
#[tokio::test]
async fn every_mistake_is_told_with_its_place() {
    let desk = desk();
    let (caller, id) = desk.key("acme", &[READ, WRITE]).await;
    let key = format!("/api-keys/{id}");
    let long = "x".repeat(10_240);
    let new = |field: &str, value: Value| {
        let mut body = json!({ "consumer_id": "acme", "expires": "1d" });
        body[field] = value;
        body
    };
    let quota = |field: &str, value: Value| {
        let mut quota = json!({ "name": "q", "limit": 1, "window_ms": 1000, "burst": 1 });
        quota[field] = value;
        new("rate_limits", json!([quota]))
    };
    let cases = [
        (400, "invalid_body", "/consumer_id", json!({ "expires": "1d" })),
        (400, "invalid_body", "/expires", json!({ "consumer_id": "acme" })),
        (400, "invalid_body", "/expires", new("expires", json!(null))),
        (400, "invalid_body", "/expires", new("expires", json!(30))),
        (422, "invalid", "/expires", new("expires", json!("soon"))),
        (422, "invalid", "/expires", new("expires", json!("2001-01-01T00:00:00Z"))),
        (422, "invalid", "/expires", new("expires", json!("999999999w"))),
        (422, "invalid", "/expires", new("expires", json!("0d"))),
        (422, "invalid", "/expires", new("expires", json!("000w"))),
        (422, "invalid", "/expires", new("expires", json!("P0D"))),
        (422, "invalid", "/expires", new("expires", json!("P30D"))),
        (422, "invalid", "/expires", new("expires", json!(""))),
        (400, "invalid_body", "/scopes", new("scopes", json!("a"))),
        (400, "invalid_body", "/scopes/1", new("scopes", json!(["a", 1]))),
        (422, "invalid", "/scopes/1", new("scopes", json!(["a", "b c"]))),
        (422, "invalid", "/scopes/1", new("scopes", json!(["a", "b,c"]))),
        (422, "invalid", "/scopes/0", new("scopes", json!([""]))),
        (400, "invalid_body", "/scopes/0", new("scopes", json!([null]))),
        (400, "invalid_body", "/consumer_id", new("consumer_id", json!(null))),
        (400, "invalid_body", "/name", new("name", json!(["x"]))),
        (422, "invalid", "/name", new("name", json!(""))),
        (422, "invalid", "/created_by", new("created_by", json!(""))),
        (422, "invalid", "/reason", new("reason", json!(""))),
        (422, "invalid", "/not_before", new("not_before", json!(""))),
        (422, "invalid", "/name", new("name", json!(long))),
        (422, "invalid", "/name", new("name", json!("a\r\nSet-Cookie: x"))),
        (422, "invalid", "/name", new("name", json!("\u{1b}[31mred"))),
        (422, "invalid", "/name", new("name", json!("\u{202e}exe.txt"))),
        (422, "invalid", "/name", new("name", json!("a\0b"))),
        (422, "invalid", "/consumer_id", new("consumer_id", json!(""))),
        (422, "invalid", "/created_by", new("created_by", json!(long))),
        (422, "invalid", "/reason", new("reason", json!("\u{7f}"))),
        (422, "invalid", "/not_before", new("not_before", json!("tomorrow"))),
        (422, "invalid", "/not_before", new("not_before", json!("2999-01-01T00:00:00Z"))),
        (400, "invalid_body", "/metadata", new("metadata", json!([]))),
        (422, "invalid", "/metadata", new("metadata", json!({ "a": "x".repeat(17_000) }))),
        (422, "invalid", "/metadata", new("metadata", json!({ "a": ["\0"] }))),
        (400, "invalid_body", "/rate_limits", new("rate_limits", json!({}))),
        (
            400,
            "invalid_body",
            "/rate_limits/0",
            new("rate_limits", json!([["q", 1, 1000, 1, false]])),
        ),
        (422, "invalid", "/rate_limits/0", quota("limit", json!(0))),
        (422, "invalid", "/rate_limits/0", quota("limit", json!("many"))),
        (422, "invalid", "/rate_limits/0", quota("name", json!("a b"))),
        (422, "invalid", "/rate_limits/0", quota("extra", json!(1))),
        (400, "invalid_body", "/plan", new("plan", json!(["pro"]))),
        (422, "invalid", "/plan", new("plan", json!(""))),
        (422, "invalid", "/plan", new("plan", json!("a b"))),
        (422, "invalid", "/plan", new("plan", json!("x".repeat(65)))),
        (400, "invalid_body", "/colour", new("colour", json!("red"))),
        (400, "invalid_body", "", json!([1])),
        (400, "invalid_body", "", json!("acme")),
    ];
    for (status, code, field, body) in &cases {
        let answer = desk.send(&caller, "POST", "/api-keys", Some(body)).await;
        assert_eq!(answer.status.as_u16(), *status, "{body:.200}: {}", answer.text());
        assert_problem(&answer, *status, code, Some(field));
    }
    for (field, body) in [
        ("/scopes", json!({ "scopes": null })),
        ("/expires", json!({ "expires": null })),
        ("/is_active", json!({ "is_active": null })),
        ("/is_active", json!({ "is_active": "no" })),
        ("/consumer_id", json!({ "consumer_id": "globex" })),
    ] {
        let answer = desk.send(&caller, "PATCH", &key, Some(&body)).await;
        assert_problem(&answer, 400, "invalid_body", Some(field));
    }
    for (field, body) in [
        ("/scopes/0", json!({ "scopes": ["a,b"] })),
        ("/name", json!({ "name": "" })),
        ("/plan", json!({ "plan": "" })),
        ("/expires", json!({ "expires": "" })),
        ("/reason", json!({ "reason": "" })),
    ] {
        let answer = desk.send(&caller, "PATCH", &key, Some(&body)).await;
        assert_problem(&answer, 422, "invalid", Some(field));
    }
    for (field, body) in [
        ("/expires", json!({ "expires": "0d" })),
        ("/expires", json!({ "expires": "" })),
        ("/grace", json!({ "grace": "" })),
        ("/reason", json!({ "reason": "" })),
    ] {
        let answer = desk.send(&caller, "POST", &format!("{key}/rotate"), Some(&body)).await;
        assert_problem(&answer, 422, "invalid", Some(field));
    }
    for (path, field, body) in [
        ("/api-keys/revoke", "/consumer_id", json!({ "consumer_id": "" })),
        ("/api-keys/revoke", "/prefix", json!({ "prefix": "" })),
        ("/api-keys/revoke", "/reason", json!({ "consumer_id": "acme", "reason": "" })),
        (&*format!("{key}/revoke"), "/reason", json!({ "reason": "" })),
    ] {
        let answer = desk.send(&caller, "POST", path, Some(&body)).await;
        assert_problem(&answer, 422, "invalid", Some(field));
    }
    let patch = json!({ "plan": "a b" });
    let mut request = desk.request(&caller, "PATCH", &key, Some(&patch));
    // An invalid request is refused whatever the state of the key.
    request.headers_mut().insert(header::IF_MATCH, "\"42\"".parse().unwrap());
    let answer = send(desk.app.clone(), request).await;
    assert_problem(&answer, 422, "invalid", Some("/plan"));
    let rotate = desk
        .send(&caller, "POST", &format!("{key}/rotate"), Some(&json!({ "grace": "ages" })))
        .await;
    assert_problem(&rotate, 422, "invalid", Some("/grace"));
    for body in [
        json!({}),
        json!({ "consumer_id": null, "prefix": null }),
        json!({ "consumer_id": "acme", "prefix": "sk_test_" }),
    ] {
        let answer = desk.send(&caller, "POST", "/api-keys/revoke", Some(&body)).await;
        assert_problem(&answer, 400, "invalid_body", Some(""));
    }
    for id in ["x", "01", "00000000-0000-0000-0000-000000000000", "%ff", "..", "a%2fb", "💥"] {
        let id = percent(id);
        let answer = desk.send(&caller, "GET", &format!("/api-keys/{id}"), None).await;
        assert_problem(&answer, 404, "not_found", None);
    }
    let answer = desk.send(&caller, "DELETE", &key, None).await;
    assert_problem(&answer, 405, "method_not_allowed", None);
    let mut allowed: Vec<_> = answer.header("allow").unwrap().split(',').collect();
    allowed.sort_unstable();
    assert_eq!(allowed, ["GET", "HEAD", "PATCH"]);
    assert_problem(&desk.send(&caller, "GET", "/nothing", None).await, 404, "not_found", None);
}

#[tokio::test]
async fn a_mistake_in_a_body_is_answered_with_what_to_send() {
    let desk = desk();
    let caller = desk.key("acme", &[READ, WRITE]).await.0;
    let id = desk.key("acme", &[]).await.1;
    let key = format!("/api-keys/{id}");
    let new = |field: &str, value: Value| {
        let mut body = json!({ "consumer_id": "acme", "expires": "1d" });
        body[field] = value;
        body
    };
    for (method, path, body, detail) in [
        (
            "POST",
            "/api-keys",
            new("expires", json!("0d")),
            "A new key must have a lifetime longer than zero, such as \"30d\".",
        ),
        (
            "POST",
            "/api-keys",
            new("expires", json!("P0D")),
            "Must be \"never\", an RFC 3339 date and time, or a duration: a number and s, m, h, d or \
             w, such as \"30d\".",
        ),
        (
            "POST",
            "/api-keys",
            new("expires", json!(null)),
            "`expires` is required; use \"never\" for no expiry.",
        ),
        (
            "POST",
            "/api-keys",
            new("scopes", json!(["orders:read,orders:write"])),
            "A scope must not contain a comma: send several scopes as separate strings, such as \
             [\"orders:read\", \"orders:write\"].",
        ),
        (
            "POST",
            "/api-keys",
            new("name", json!("")),
            "Must not be empty: leave it out, or send null.",
        ),
        ("PATCH", &*key, json!({ "name": "" }), "Must not be empty: send null to remove it."),
        (
            "PATCH",
            &*key,
            json!({ "scopes": null }),
            "Must not be null: send [] to remove all scopes.",
        ),
        (
            "PATCH",
            &*key,
            json!({ "expires": null }),
            "Must not be null: send \"never\" for no expiry.",
        ),
        ("PATCH", &*key, json!({ "is_active": null }), "Must not be null: send true or false."),
    ] {
        let answer = desk.send(&caller, method, path, Some(&body)).await;
        assert_eq!(answer.json()["detail"], detail, "{body}");
    }
}

#[tokio::test]
async fn null_is_the_same_as_leaving_a_member_out() {
    let desk = desk();
    let caller = desk.key("acme", &[READ, WRITE]).await.0;
    let mut body = json!({ "consumer_id": "acme", "expires": "1d" });
    for field in
        ["name", "scopes", "rate_limits", "plan", "metadata", "not_before", "created_by", "reason"]
    {
        body[field] = json!(null);
    }
    let issued = desk.send(&caller, "POST", "/api-keys", Some(&body)).await;
    assert_eq!(issued.status, StatusCode::CREATED, "{}", issued.text());
    assert_eq!(issued.json()["scopes"], json!([]));
    let path = format!("/api-keys/{}/rotate", issued.json()["id"].as_str().unwrap());
    let body = json!({ "grace": null, "expires": null, "reason": null });
    let rotated = desk.send(&caller, "POST", &path, Some(&body)).await;
    assert_eq!(rotated.status, StatusCode::CREATED, "{}", rotated.text());
}

fn percent(text: &str) -> String {
    text.bytes()
        .map(
            |byte| {
                if byte.is_ascii() { char::from(byte).to_string() } else { format!("%{byte:02x}") }
            },
        )
        .collect()
}

#[tokio::test]
async fn queries_are_taken_at_their_word() {
    let desk = desk();
    let (caller, id) = desk.key("acme", &[READ]).await;
    for (field, query) in [
        ("limit", "limit=0"),
        ("limit", "limit=1001"),
        ("limit", "limit=-1"),
        ("limit", "limit=%2B5"),
        ("limit", "limit=99999999999999999999999"),
        ("limit", "limit=5&limit=5"),
        ("limit", "limit"),
        ("cursor", "cursor=x"),
        ("cursor", "cursor="),
        ("cursor", "cursor=' or 1=1 --"),
        ("status", "status=Active"),
        ("scope", "scope=a+b"),
        ("unused_since", "unused_since=yesterday"),
        ("expires_before", "expires_before=2026-01-01"),
        ("consumer_id", "consumer_id=a%00b"),
        ("consumer_id", "consumer_id="),
        ("prefix", "prefix=%ff"),
        ("sort", "sort=name;drop+table"),
        ("query", "%ff=1"),
        ("a b", "a+b=1"),
    ] {
        let answer = desk
            .send(&caller, "GET", &format!("/api-keys?{}", query.replace(' ', "%20")), None)
            .await;
        assert_problem(&answer, 400, "invalid_query", Some(field));
    }
    for (path, query) in
        [("usage", "x=1"), ("events", "cursor=9223372036854775808"), ("events", "status=active")]
    {
        let answer =
            desk.send(&caller, "GET", &format!("/api-keys/{id}/{path}?{query}"), None).await;
        assert_eq!(answer.json()["code"], json!("invalid_query"), "{path}?{query}");
    }
    for query in [
        "",
        "&",
        "status=active&limit=1000",
        "unused_since=0001-01-01T00:00:00Z",
        "scope=%21",
        "expires_before=9999-01-01T00:00:00%2B01:00",
    ] {
        let answer = desk.send(&caller, "GET", &format!("/api-keys?{query}"), None).await;
        assert_eq!(answer.status, 200, "{query}: {}", answer.text());
    }
}

#[tokio::test]
async fn bodies_that_are_no_decent_json_are_refused() {
    let desk = desk();
    let (caller, _) = desk.key("acme", &[READ, WRITE]).await;
    let post = async |content_type: Option<&str>, body: Vec<u8>| {
        let mut request = Request::post("/admin/api-keys")
            .header(header::AUTHORIZATION, format!("Bearer {caller}"));
        if let Some(content_type) = content_type {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        send(desk.app.clone(), request.body(Body::from(body)).unwrap()).await
    };
    let good = r#"{"consumer_id":"acme","expires":"1d"}"#;
    for content_type in
        ["application/json", "Application/JSON; charset=utf-8", "application/merge-patch+json"]
    {
        assert_eq!(post(Some(content_type), good.into()).await.status, 201, "{content_type}");
    }
    for content_type in [
        None,
        Some(""),
        Some("text/plain"),
        Some("application/x-www-form-urlencoded"),
        Some("json"),
    ] {
        let answer = post(content_type, good.into()).await;
        assert_problem(&answer, 415, "unsupported_media_type", Some("Content-Type"));
    }
    let deep = format!(
        r#"{{"consumer_id":"a","expires":"1d","metadata":{{"a":{}{}}}}}"#,
        "[".repeat(5000),
        "]".repeat(5000)
    );
    for body in [
        "",
        " ",
        "{",
        "null",
        "nul",
        good.trim_end_matches('}'),
        deep.as_str(),
        r#"{"consumer_id":"a","consumer_id":"acme","expires":"1d"}"#,
        r#"{"consumer_id":"acme","expires":"1d","metadata":{"a":1,"a":2}}"#,
        r#"{"consumer_id":"acme","expires":"1d","metadata":{"b":[{"a":1,"a":2}]}}"#,
        r#"{"consumer_id":"acme","expires":"1d"} {}"#,
        r#"{"consumer_id":"acme","expires":"1d"}x"#,
        r#"{"consumer_id":"\ud800","expires":"1d"}"#,
        r#"{"consumer_id":"acme","expires":"1d","metadata":{"a":1e999}}"#,
        r#"{'consumer_id':'acme'}"#,
    ] {
        let answer = post(Some("application/json"), body.into()).await;
        assert_eq!(answer.json()["code"], json!("invalid_body"), "{body:.80}: {}", answer.text());
        assert_eq!(answer.status, 400);
    }
    let answer =
        post(Some("application/json"), b"{\"consumer_id\":\"\xff\",\"expires\":\"1d\"}".to_vec())
            .await;
    assert_problem(&answer, 400, "invalid_body", None);
    let answer = post(Some("application/json"), vec![b' '; 10 * 1024 * 1024]).await;
    assert_problem(&answer, 413, "body_too_large", None);
}

#[tokio::test]
async fn a_body_has_at_most_64_kib_whatever_limit_the_application_sets() {
    let desk = desk();
    let (caller, _) = desk.key("acme", &[READ, WRITE]).await;
    let good = json!({ "consumer_id": "acme", "expires": "1d" });
    let post = |body: Body| {
        let mut request = desk.request(&caller, "POST", "/api-keys", Some(&good));
        *request.body_mut() = body;
        request
    };
    for limit in [DefaultBodyLimit::max(1), DefaultBodyLimit::disable()] {
        let app = desk.app.clone().layer(limit);
        let good = good.to_string();
        let longest = good.clone() + &" ".repeat(64 * 1024 - good.len());
        let answer = send(app.clone(), post(Body::from(longest.clone()))).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
        let answer = send(app, post(Body::from(longest + " "))).await;
        assert_problem(&answer, 413, "body_too_large", None);
    }
}

/// The error of a connection is not one of the limit, whatever it says.
#[tokio::test]
async fn a_body_that_breaks_off_is_not_too_large() {
    let desk = desk();
    let (caller, _) = desk.key("acme", &[READ, WRITE]).await;
    for error in ["connection reset", "length limit exceeded"] {
        let mut request = desk.request(&caller, "POST", "/api-keys", Some(&json!({})));
        let frames = [Ok("{"), Err(std::io::Error::other(error))];
        *request.body_mut() = Body::from_stream(futures_util::stream::iter(frames));
        let answer = send(desk.app.clone(), request).await;
        assert_problem(&answer, 400, "invalid_body", None);
    }
}

/// A key in the wrong place of a request is not repeated in the error.
#[tokio::test]
async fn mistakes_are_not_repeated() {
    let desk = desk();
    let (caller, _) = desk.key("acme", &[READ, WRITE]).await;
    for body in [
        json!({ "consumer_id": "acme", "expires": "1d", "scopes": caller }),
        json!({ "consumer_id": "acme", "expires": caller }),
        json!({ "consumer_id": "acme", "expires": "1d", "metadata": caller }),
        json!({ "consumer_id": "acme", "expires": "1d", "rate_limits": [{ "limit": caller }] }),
        json!({ "consumer_id": "acme", "expires": "1d", "not_before": caller }),
    ] {
        let answer = desk.send(&caller, "POST", "/api-keys", Some(&body)).await;
        assert!(answer.status.is_client_error());
        assert!(!answer.text().contains(&caller), "{}", answer.text());
    }
}

#[tokio::test]
async fn of_two_who_change_the_same_version_one_does() {
    let desk = desk();
    let (caller, id) = desk.key("acme", &[READ, WRITE]).await;
    let key = format!("/api-keys/{id}");
    let change = async |tag: &str, name: &str| {
        let request = desk.request(&caller, "PATCH", &key, Some(&json!({ "name": name })));
        let (mut parts, body) = request.into_parts();
        parts.headers.insert(header::IF_MATCH, tag.parse().unwrap());
        send(desk.app.clone(), Request::from_parts(parts, body)).await
    };
    let (one, two) = tokio::join!(change("\"1\"", "one"), change("\"1\"", "two"));
    let mut statuses = [one.status.as_u16(), two.status.as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 412]);
    let loser = if one.status == 412 { one } else { two };
    assert_problem(&loser, 412, "outdated", None);
    assert_eq!(change("\"2\"", "three").await.header("etag"), Some("\"3\""));
    assert_eq!(change("*", "four").await.status, 200);
    assert_eq!(change("\"nonsense\"", "five").await.status, 412);
    assert_eq!(change("nonsense", "five").await.status, 412);
    assert_eq!(change("\"3\", \"4\"", "five").await.header("etag"), Some("\"5\""));
    assert_eq!(change("\"3\", \"4\"", "six").await.status, 412);
    let look = async |tag: &str| {
        let (mut parts, body) = desk.request(&caller, "GET", &key, None).into_parts();
        parts.headers.insert(header::IF_NONE_MATCH, tag.parse().unwrap());
        send(desk.app.clone(), Request::from_parts(parts, body)).await
    };
    let known = look("W/\"5\", \"x\"").await;
    assert_eq!((known.status, known.body.len()), (StatusCode::NOT_MODIFIED, 0));
    assert_eq!(known.header("etag"), Some("\"5\""));
    assert_eq!(look("\"3\"").await.status, 200);
}

#[tokio::test]
async fn links_lead_to_the_last_page() {
    let desk = desk();
    let (caller, _) = desk.key("acme", &[READ]).await;
    for _ in 0..6 {
        desk.key("acme", &["a&b"]).await;
        desk.key("globex", &[]).await;
    }
    let mut path = "/api-keys?scope=a%26b&limit=4".to_owned();
    let mut seen = Vec::new();
    loop {
        let page = desk.send(&caller, "GET", &path, None).await;
        let body = page.json();
        seen.extend(
            body["keys"]
                .as_array()
                .unwrap()
                .iter()
                .map(|key| key["id"].as_str().unwrap().to_owned()),
        );
        assert!(seen.len() <= 6, "the links do not end");
        let Some(link) = page.header("link") else {
            assert_eq!(body["next"], json!(null));
            break;
        };
        let query = link.strip_prefix('<').unwrap().strip_suffix(">; rel=\"next\"").unwrap();
        path = format!("/api-keys{query}");
    }
    assert_eq!(seen.len(), 6);
    assert!(seen.is_sorted_by(|newer, older| newer > older), "newest first, none twice: {seen:?}");
}

#[tokio::test]
async fn a_repeated_request_makes_no_second_key() {
    let desk = desk();
    let (caller, id) = desk.key("acme", &[READ, WRITE]).await;
    let send_as = async |path: &str, name: &str, body: Value| {
        let (mut parts, body) = desk.request(&caller, "POST", path, Some(&body)).into_parts();
        parts.headers.insert("idempotency-key", name.parse().unwrap());
        send(desk.app.clone(), Request::from_parts(parts, body)).await
    };
    for (path, name, body, other) in [
        (
            "/api-keys".to_owned(),
            "one",
            json!({ "consumer_id": "acme", "expires": "1d" }),
            json!({ "consumer_id": "acme", "expires": "2d" }),
        ),
        (
            format!("/api-keys/{id}/rotate"),
            "two",
            json!({ "grace": "1h" }),
            json!({ "grace": "2h" }),
        ),
    ] {
        let first = send_as(&path, name, body.clone()).await;
        assert_eq!(first.status, 201, "{}", first.text());
        let again = send_as(&path, name, body).await;
        assert_problem(&again, 409, "repeated", None);
        assert_eq!(again.json()["key_id"], first.json()["id"]);
        assert_eq!(again.header("location"), first.header("location"));
        sealed(&again, first.json()["key"].as_str().unwrap());
        let reused = send_as(&path, name, other).await;
        assert_problem(&reused, 422, "idempotency_key_reused", Some("Idempotency-Key"));
    }
    let wrong =
        send_as("/api-keys", "a b", json!({ "consumer_id": "acme", "expires": "1d" })).await;
    assert_problem(&wrong, 400, "invalid_header", Some("Idempotency-Key"));
}

/// Fails when the test says so.
#[derive(Clone, Default)]
struct Drying(Arc<AtomicBool>);

impl EntropySource for Drying {
    fn fill(&self, buffer: &mut [u8]) -> Result<(), RngError> {
        if self.0.load(Ordering::SeqCst) {
            return Err(RngError::new("dry"));
        }
        SystemEntropy.fill(buffer)
    }
}

#[tokio::test]
async fn without_randomness_there_is_no_key() {
    let entropy = Drying::default();
    let source = entropy.clone();
    let desk = Desk::new("/admin", move |issuer, auth| admin::router(issuer.entropy(source), auth));
    let (caller, id) = desk.key("acme", &[READ, WRITE]).await;
    entropy.0.store(true, Ordering::SeqCst);
    let new = json!({ "consumer_id": "acme", "expires": "1d" });
    for (path, body) in
        [("/api-keys".to_owned(), new), (format!("/api-keys/{id}/rotate"), json!({}))]
    {
        let answer = desk.send(&caller, "POST", &path, Some(&body)).await;
        assert_problem(&answer, 503, "service_unavailable", None);
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
    let list = desk.send(&caller, "GET", "/api-keys", None).await;
    assert_eq!(list.json()["keys"].as_array().unwrap().len(), 1);
}

/// Any operation on a foreign key gets the same response as on a key that does not exist, and the
/// same audit line.
#[tokio::test]
async fn attempts_on_a_foreign_key_look_the_same_whatever_they_are() {
    let large = "x".repeat(9000);
    for (body, versions) in [
        (json!({ "name": "mine" }), None),
        (json!({ "metadata": { "role": "owner" } }), None),
        (json!({ "metadata": { "b": large } }), None),
        (json!({ "metadata": null }), None),
        (json!({ "metadata": { "role": "owner" } }), Some("\"1\"")),
        (json!({ "is_active": false }), Some("\"7\", \"8\"")),
        (json!({ "is_active": false }), Some("\"1\", \"2\"")),
        (json!({ "is_active": false }), Some("junk")),
        (json!({}), None),
    ] {
        let desk = desk();
        let (caller, own) = desk.key("acme", &[READ, WRITE]).await;
        let (_, foreign) = desk.key("globex", &[]).await;
        let metadata = Metadata::new(&json!({ "a": large })).unwrap();
        desk.issuer.update(foreign, KeyUpdate::new().metadata(metadata)).await.unwrap();
        let absent = KeyId::from_bytes([7; 16]);
        let mut answers = Vec::new();
        for id in [foreign, absent] {
            let path = format!("/api-keys/{id}");
            let mut request = desk.request(&caller, "PATCH", &path, Some(&body));
            if let Some(versions) = versions {
                request.headers_mut().insert("if-match", versions.parse().unwrap());
            }
            let answer = send(desk.app.clone(), request).await;
            assert_problem(&answer, 404, "not_found", None);
            answers.push(answer.text().to_owned());
        }
        assert_eq!(answers[0], answers[1]);
        let events = desk.send(&caller, "GET", &format!("/api-keys/{own}/events"), None).await;
        let events = events.json()["events"].as_array().unwrap().clone();
        assert_eq!(events.len(), 3, "{body} {versions:?}: {events:?}");
        for event in &events[..2] {
            assert_eq!(event["action"], "denied");
            assert_eq!(event["key_id"], json!(own.to_string()));
            assert_eq!(event["changes"], json!({ "attempt": "update" }));
        }
        assert_eq!(events[0]["reason"], events[1]["reason"]);
    }
}

#[tokio::test]
async fn the_last_key_of_a_consumer_can_revoke_them_all() {
    let desk = desk();
    let (caller, _) = desk.key("acme", &[WRITE]).await;
    let revoked = desk
        .send(&caller, "POST", "/api-keys/revoke", Some(&json!({ "consumer_id": "acme" })))
        .await;
    assert_eq!(
        (revoked.status.as_u16(), revoked.json()),
        (200, json!({ "revoked": 1, "skipped": 0 }))
    );
    assert_eq!(desk.send(&caller, "GET", "/api-keys", None).await.status, 401);
    assert_eq!(desk.denials().await, 0);
}

#[tokio::test]
async fn the_audit_says_from_where_and_believes_no_header() {
    use std::net::SocketAddr;

    use axum::extract::ConnectInfo;

    let from = async |desk: &Desk| {
        let (caller, _) = desk.key("acme", &[WRITE]).await;
        let new = json!({ "consumer_id": "acme", "expires": "1d" });
        let mut request = desk.request(&caller, "POST", "/api-keys", Some(&new));
        request.headers_mut().insert("x-forwarded-for", "6.6.6.6".parse().unwrap());
        request.extensions_mut().insert(ConnectInfo(SocketAddr::from(([10, 0, 0, 7], 1234))));
        assert_eq!(send(desk.app.clone(), request).await.status, 201);
        let page = desk.issuer.events(&EventQuery::new()).await.unwrap();
        page.events[0].entry.origin.clone()
    };
    assert_eq!(from(&desk()).await.as_deref(), Some("10.0.0.7"));
    let trusting = Desk::new("/admin", |issuer, auth| {
        let origin = |parts: &http::request::Parts| {
            Some(format!("{}\r\n\u{1b}", parts.headers.get("x-forwarded-for")?.to_str().ok()?))
        };
        Admin::new(issuer, auth).origin(origin).router()
    });
    assert_eq!(from(&trusting).await.as_deref(), Some("6.6.6.6"));
}

/// A key revoked over HTTP is refused from the next request on.
#[tokio::test]
async fn changes_are_heeded_at_once() {
    let desk = desk();
    let (caller, _) = desk.key("acme", &[READ, WRITE]).await;
    let (other, id) = desk.key("acme", &[READ]).await;
    assert_eq!(desk.send(&other, "GET", "/api-keys", None).await.status, 200);
    desk.send(&caller, "POST", &format!("/api-keys/{id}/revoke"), None).await;
    assert_eq!(desk.send(&other, "GET", "/api-keys", None).await.status, 401);
}

#[tokio::test]
async fn it_works_wherever_it_is_mounted() {
    let desk = Desk::new("/a/b", admin::router);
    let app: Router = Router::new().nest("/outer", desk.app.clone());
    let key = desk
        .issuer
        .issue(NewKey::new("acme", Expiry::Never).scopes(Scopes::parse([READ, WRITE]).unwrap()))
        .await
        .unwrap();
    let request = Request::post("/outer/a/b/api-keys")
        .header(header::AUTHORIZATION, format!("Bearer {}", key.key.expose_secret()))
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(r#"{"consumer_id":"acme","expires":"never"}"#))
        .unwrap();
    let created: Answer = send(app, request).await;
    let id = created.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(created.header("location"), Some(format!("/outer/a/b/api-keys/{id}").as_str()));
}
