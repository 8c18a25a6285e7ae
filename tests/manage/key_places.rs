//! Networks, tags and origins of keys: what is valid, what a calling key may grant, and what the
//! routers do with them.

use serde_json::{Value, json};
use tower_api_key::{
    Consumer, admin,
    layer::{ClientAddress, PeerAddr},
    manage::{
        Actor, AuditHistory, Expiry, Issued, KeyIssuer, KeyUpdate, ManageError, ManageErrorKind,
        NewKey, ReconcileOutcome, Rotation,
    },
    record::{KeyKind, KeyRecord, Networks, Scope, Scopes, Tags, WebOrigins},
    store::{EventQuery, KeyQuery, MemoryKeyStore},
};

use crate::{
    admin_client::{Desk, assert_problem},
    app::{format, send},
};

const SHOP: &str = "https://shop.example";
const OTHER: &str = "https://other.example";

fn networks(texts: &[&str]) -> Networks {
    Networks::parse(texts).unwrap()
}

fn origins(texts: &[&str]) -> WebOrigins {
    WebOrigins::parse(texts.iter().copied()).unwrap()
}

fn new() -> NewKey {
    NewKey::new("acme", Expiry::Never)
}

/// An operator's issuer.
fn operator() -> KeyIssuer {
    KeyIssuer::new(MemoryKeyStore::new(), format())
}

/// The issuer of a calling key that may write keys.
async fn caller(operator: &KeyIssuer, new: NewKey) -> (KeyIssuer, KeyRecord) {
    let write = Scope::new("write").unwrap();
    let held = operator.issue(new.scopes(Scopes::parse(["write"]).unwrap())).await.unwrap().record;
    let actor = Actor::key(&Consumer::from(held.clone())).required_scope(write);
    (operator.by(actor), held)
}

#[track_caller]
fn is_denied(outcome: Result<impl Sized, ManageError>, field: &str) {
    let error = outcome.err().expect("it must be denied");
    assert_eq!((error.kind(), error.field()), (ManageErrorKind::Denied, Some(field)), "{error}");
}

#[track_caller]
fn is_invalid(outcome: Result<impl Sized, ManageError>, field: &str) {
    let error = outcome.err().expect("it is not valid");
    assert_eq!((error.kind(), error.field()), (ManageErrorKind::Invalid, Some(field)), "{error}");
}

#[tokio::test]
async fn a_key_with_networks_grants_no_wider_ones() {
    let operator = operator();
    let (caller, held) = caller(&operator, new().networks(networks(&["10.0.0.0/8"]))).await;
    for wider in [&[][..], &["0.0.0.0/0"], &["10.0.0.0/8", "192.0.2.1"], &["::ffff:192.0.2.1"]] {
        is_denied(caller.issue(new().networks(networks(wider))).await, "networks");
    }
    for narrower in [&["10.0.0.0/8"][..], &["10.1.0.0/16", "10.2.3.4"], &["::ffff:10.0.0.1"]] {
        caller.issue(new().networks(networks(narrower))).await.unwrap();
    }

    let other = operator.issue(new().networks(networks(&["10.1.0.0/16"]))).await.unwrap().record;
    let update = |texts: &[&str]| KeyUpdate::new().networks(networks(texts));
    for wider in [&[][..], &["0.0.0.0/0"], &["11.0.0.0/8"]] {
        is_denied(caller.update(other.id, update(wider)).await, "networks");
        is_denied(caller.update(held.id, update(wider)).await, "networks");
    }
    // Wider than before, but not than the caller.
    caller.update(other.id, update(&["10.0.0.0/8"])).await.unwrap();
    caller.update(other.id, update(&["10.9.0.0/16"])).await.unwrap();

    // A key that works from elsewhere may be narrowed, and not be taken over.
    let wide = operator.issue(new().networks(networks(&["192.0.2.0/24"]))).await.unwrap().record;
    is_denied(caller.rotate(wide.id, Rotation::new()).await, "networks");
    caller.update(wide.id, update(&["192.0.2.1"])).await.unwrap();
    is_denied(caller.update(wide.id, update(&["192.0.2.0/24"])).await, "networks");
    let anywhere = operator.issue(new()).await.unwrap().record;
    is_denied(caller.rotate(anywhere.id, Rotation::new()).await, "networks");

    // Its own networks are those of the transaction, not of the request.
    operator.update(held.id, update(&["10.5.0.0/16"])).await.unwrap();
    is_denied(caller.issue(new().networks(networks(&["10.0.0.0/8"]))).await, "networks");
}

#[tokio::test]
async fn a_key_without_networks_grants_any() {
    let operator = operator();
    let (caller, _) = caller(&operator, new()).await;
    for texts in [&[][..], &["10.0.0.0/8"], &["::/0"]] {
        let issued = caller.issue(new().networks(networks(texts))).await.unwrap().record;
        caller.update(issued.id, KeyUpdate::new().networks(networks(&[]))).await.unwrap();
    }
}

#[tokio::test]
async fn a_publishable_key_grants_publishable_keys_for_its_origins_alone() {
    let operator = operator();
    let (caller, held) = caller(&operator, new().publishable(origins(&[SHOP, OTHER]))).await;
    is_denied(caller.issue(new()).await, "kind");
    is_denied(
        caller.issue(new().publishable(origins(&["https://third.example"]))).await,
        "origins",
    );
    is_denied(caller.issue(new().publishable(origins(&[SHOP, "http://a"]))).await, "origins");
    let issued = caller.issue(new().publishable(origins(&[SHOP]))).await.unwrap().record;
    assert_eq!(issued.kind, KeyKind::Publishable);

    let update = |texts: &[&str]| KeyUpdate::new().origins(origins(texts));
    is_denied(caller.update(issued.id, update(&["http://a"])).await, "origins");
    is_denied(caller.update(held.id, update(&["http://a"])).await, "origins");
    caller.update(issued.id, update(&[OTHER])).await.unwrap();
    // Secret keys: neither rotated nor switched on.
    let secret = operator.issue(new()).await.unwrap().record;
    is_denied(caller.rotate(secret.id, Rotation::new()).await, "kind");
    operator.update(secret.id, KeyUpdate::new().is_active(false)).await.unwrap();
    is_denied(caller.update(secret.id, KeyUpdate::new().is_active(true)).await, "kind");
}

#[tokio::test]
async fn a_secret_key_makes_publishable_ones() {
    let operator = operator();
    let (caller, _) = caller(&operator, new()).await;
    let issued = caller.issue(new().publishable(origins(&[SHOP]))).await.unwrap().record;
    caller.update(issued.id, KeyUpdate::new().origins(origins(&[OTHER]))).await.unwrap();
}

#[tokio::test]
async fn origins_belong_to_publishable_keys() {
    let operator = operator();
    is_invalid(operator.issue(new().publishable(WebOrigins::default())).await, "origins");
    let secret = operator.issue(new()).await.unwrap().record;
    let public = operator.issue(new().publishable(origins(&[SHOP]))).await.unwrap().record;
    let update = |texts: &[&str]| KeyUpdate::new().origins(origins(texts));
    is_invalid(operator.update(secret.id, update(&[SHOP])).await, "origins");
    is_invalid(operator.update(public.id, update(&[])).await, "origins");
    operator.update(secret.id, update(&[])).await.unwrap();
}

#[tokio::test]
async fn a_rotated_key_works_from_the_same_places() {
    let operator = operator();
    let old = new()
        .publishable(origins(&[SHOP]))
        .networks(networks(&["10.0.0.0/8"]))
        .tags(Tags::parse(["mobile"]).unwrap());
    let old = operator.issue(old).await.unwrap().record;
    let new = operator.rotate(old.id, Rotation::new()).await.unwrap().record;
    assert_eq!((&new.networks, &new.tags), (&old.networks, &old.tags));
    assert_eq!((new.kind, &new.origins), (old.kind, &old.origins));
}

#[tokio::test]
async fn a_repeated_request_must_ask_for_the_same_places() {
    let operator = operator();
    let asked = || new().idempotency_key("one");
    let first = |new: NewKey| operator.issue(new);
    first(asked().networks(networks(&["10.0.0.0/8"]))).await.unwrap();
    let same = first(asked().networks(networks(&["10.0.0.0/8"]))).await.unwrap_err();
    assert_eq!(same.kind(), ManageErrorKind::Repeated);
    for other in [
        asked(),
        asked().networks(networks(&["10.0.0.0/9"])),
        asked().networks(networks(&["10.0.0.0/8"])).tags(Tags::parse(["a"]).unwrap()),
        asked().networks(networks(&["10.0.0.0/8"])).publishable(origins(&[SHOP])),
    ] {
        assert_ne!(first(other).await.unwrap_err().kind(), ManageErrorKind::Repeated);
    }
}

async fn audit(issuer: &KeyIssuer, record: &KeyRecord) -> Vec<Value> {
    let mut query = EventQuery::new();
    query.key_id = Some(record.id);
    let page = issuer.events(&query).await.unwrap();
    let changes = page.events.iter().rev().map(|event| event.entry.changes.as_deref());
    changes.map(|changes| serde_json::from_str(changes.unwrap()).unwrap()).collect()
}

#[tokio::test]
async fn the_audit_has_each_change_and_a_restored_backup_is_compared() {
    let operator = operator();
    let issued = new().networks(networks(&["10.0.0.0/8"])).tags(Tags::parse(["a"]).unwrap());
    let Issued { record, .. } = operator.issue(issued).await.unwrap();
    let update = KeyUpdate::new().networks(networks(&["10.1.0.0/16"])).tags(Tags::default());
    operator.update(record.id, update).await.unwrap();
    let lines = audit(&operator, &record).await;
    assert_eq!(lines[0]["networks"], json!({ "to": ["10.0.0.0/8"] }));
    assert_eq!(lines[0]["kind"], json!({ "to": "secret" }));
    assert_eq!(lines[0].get("origins"), None);
    assert_eq!(
        lines[1],
        json!({
            "networks": { "from": ["10.0.0.0/8"], "to": ["10.1.0.0/16"] },
            "tags": { "from": ["a"], "to": null },
        })
    );
    let mut history = AuditHistory::new();
    let events = operator.events(&EventQuery::new()).await.unwrap().events;
    events.iter().for_each(|event| history.add(event));
    assert!(operator.compare(&history).await.unwrap().is_empty());
    // Restored to before the networks were narrowed.
    let update = KeyUpdate::new().networks(networks(&["10.0.0.0/8"]));
    operator.update(record.id, update).await.unwrap();
    let differing = operator.compare(&history).await.unwrap();
    assert_eq!(differing[0].outcome, ReconcileOutcome::Differs(vec!["networks"]));
}

async fn desk() -> (Desk, String) {
    let desk = Desk::new("/admin", admin::router);
    let (key, _) = desk.key("acme", &["api-keys:read", "api-keys:write"]).await;
    (desk, key)
}

#[tokio::test]
async fn keys_get_their_places_over_http() {
    let (desk, admin) = desk().await;
    let body = json!({
        "consumer_id": "acme", "expires": "30d", "networks": ["2001:db8::/32", "10.0.0.7"],
        "tags": ["mobile", "team:billing"], "kind": "publishable", "origins": [SHOP],
    });
    let answer = desk.send(&admin, "POST", "/api-keys", Some(&body)).await;
    assert_eq!(answer.status, 201, "{}", answer.wire());
    let issued = answer.json();
    assert_eq!(issued["networks"], json!(["10.0.0.7/32", "2001:db8::/32"]));
    assert_eq!(issued["tags"], json!(["mobile", "team:billing"]));
    assert_eq!((&issued["kind"], &issued["origins"]), (&json!("publishable"), &json!([SHOP])));

    let path = format!("/api-keys/{}", issued["id"].as_str().unwrap());
    let patch = json!({ "networks": [], "tags": ["web"], "origins": [OTHER] });
    let changed = desk.send(&admin, "PATCH", &path, Some(&patch)).await.json();
    assert_eq!((&changed["networks"], &changed["tags"]), (&json!([]), &json!(["web"])));
    assert_eq!(changed["origins"], json!([OTHER]));
    let plain = desk.send(&admin, "PATCH", &path, Some(&json!({ "name": "shop" }))).await.json();
    assert_eq!((&plain["tags"], &plain["kind"]), (&json!(["web"]), &json!("publishable")));

    let list = desk.send(&admin, "GET", "/api-keys?tag=web", None).await.json();
    assert_eq!(list["keys"].as_array().unwrap().len(), 1);
    assert_eq!(list["keys"][0]["id"], issued["id"]);
    let none = desk.send(&admin, "GET", "/api-keys?tag=mobile", None).await.json();
    assert_eq!(none["keys"], json!([]));
    let found = desk.issuer.list(&KeyQuery::new().tag("web")).await.unwrap();
    assert_eq!(found.keys.len(), 1);
}

#[tokio::test]
async fn what_is_not_valid_is_told_with_its_place_and_its_bound() {
    let (desk, admin) = desk().await;
    let many = |count: usize, text: fn(usize) -> String| (0..count).map(text).collect::<Vec<_>>();
    for (field, member, value, detail) in [
        ("/networks/1", "networks", json!(["10.0.0.0/8", "10.0.0.1/8"]), "write 10.0.0.0/8"),
        ("/networks/0", "networks", json!(["localhost"]), "such as 203.0.113.0/24"),
        ("/networks", "networks", json!(many(65, |at| format!("10.0.{at}.0/24"))), "64 networks"),
        ("/tags/0", "tags", json!(["two words"]), "1 to 64 printable ASCII"),
        ("/tags/1", "tags", json!(["a", "b".repeat(65)]), "1 to 64 printable ASCII"),
        ("/tags", "tags", json!(many(33, |at| format!("t{at}"))), "32 tags"),
        ("/kind", "kind", json!("public"), "publishable"),
        ("/origins", "origins", json!([SHOP]), "Only a publishable key"),
        ("/origins/0", "origins", json!(["https://shop.example/"]), "as browsers send it"),
        ("/origins", "origins", json!(many(33, |at| format!("http://s{at}"))), "32 origins"),
        ("/origins", "kind", json!("publishable"), "at least one origin"),
    ] {
        let mut body = json!({ "consumer_id": "acme", "expires": "30d" });
        body[member] = value;
        let answer = desk.send(&admin, "POST", "/api-keys", Some(&body)).await;
        assert_problem(&answer, 422, "invalid", Some(field));
        let told = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(told.contains(detail), "{field}: {told}");
    }
    let (_, id) = desk.key("acme", &[]).await;
    let path = format!("/api-keys/{id}");
    for member in ["networks", "tags", "origins"] {
        let mut patch = json!({});
        patch[member] = Value::Null;
        let answer = desk.send(&admin, "PATCH", &path, Some(&patch)).await;
        assert_problem(&answer, 400, "invalid_body", Some(&format!("/{member}")));
    }
    let answer = desk.send(&admin, "PATCH", &path, Some(&json!({ "kind": "publishable" }))).await;
    assert_eq!(answer.status, 400, "the kind of a key does not change");
    let answer = desk.send(&admin, "GET", "/api-keys?tag=two+words", None).await;
    assert_problem(&answer, 400, "invalid_query", Some("tag"));
}

#[tokio::test]
async fn a_calling_key_with_networks_needs_routes_that_know_addresses() {
    let scopes = || Scopes::parse(["api-keys:read"]).unwrap();
    for knows in [false, true] {
        let desk = Desk::new("/admin", |issuer, auth| {
            let admin = admin::Admin::new(issuer, auth);
            let admin = if knows { admin.client_address(ClientAddress::peer()) } else { admin };
            admin.router()
        });
        let new = new().scopes(scopes()).networks(networks(&["192.0.2.0/24"]));
        let issued = desk.issuer.issue(new).await.unwrap();
        for (peer, expected) in [("192.0.2.1", if knows { 200 } else { 403 }), ("10.0.0.1", 403)] {
            let mut request = desk.request(issued.key.expose_secret(), "GET", "/api-keys", None);
            request.extensions_mut().insert(PeerAddr(peer.parse().unwrap()));
            let answer = send(desk.app.clone(), request).await;
            assert_eq!(answer.status.as_u16(), expected, "{knows} {peer}: {}", answer.wire());
        }
    }
}
