//! Canary keys: how they are made, and what their use leaves, on every store.

use std::{
    future::pending,
    net::IpAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::body::Body;
use http::{HeaderValue, Request, header::USER_AGENT};
use serde_json::{Value, json};
use tokio::{sync::oneshot, task::JoinHandle};
use tower_api_key::{
    ApiKeyLayer, Authenticator, account, admin,
    auth::{Event, RejectionKind},
    clock::ManualClock,
    layer::{ClientAddress, PeerAddr},
    manage::{
        Expiry, Issued, KeyIssuer, KeyUpdate, LeakOutcome, LeakPolicy, LeakReport, ManageErrorKind,
        NewKey, Rotation,
    },
    rate_limit::Quota,
    record::{KeyAction, KeyEvent, KeyId, KeyKind, Networks, Scopes, WebOrigins},
    store::{EventQuery, KeyQuery, ManageKeys, MemoryKeyStore, PgKeyStore, SqliteKeyStore},
    test_util::FaultStore,
};

use crate::{
    admin_client::{Desk, assert_problem},
    app::{App, format, text, with_key},
    servers::postgres::{Database, Server},
    wait::{eventually, within},
};

const HOUR: Duration = Duration::from_secs(3600);

async fn postgres() -> (Database, PgKeyStore) {
    let database = Server::shared().database().await;
    let store = PgKeyStore::connect(database.url()).await.unwrap();
    store.migrate().await.unwrap();
    (database, store)
}

async fn sqlite() -> (tempfile::TempDir, SqliteKeyStore) {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/keys.db", folder.path().display());
    let store = SqliteKeyStore::connect(&url).await.unwrap();
    store.migrate().await.unwrap();
    (folder, store)
}

/// Runs each rule on a new store of each kind.
macro_rules! on_every_store {
    ($($rule:ident)*) => {
        mod memory {
            $(#[tokio::test] async fn $rule() {
                super::$rule(super::MemoryKeyStore::new()).await;
            })*
        }
        mod sqlite {
            $(#[tokio::test] async fn $rule() {
                let (_folder, store) = super::sqlite().await;
                super::$rule(store).await;
            })*
        }
        mod postgres {
            $(#[tokio::test] async fn $rule() {
                let (_database, store) = super::postgres().await;
                super::$rule(store).await;
            })*
        }
    };
}

on_every_store! {
    a_canary_key_is_stored_and_stays_one
    its_use_is_in_its_audit_once_an_hour_for_each_network
    one_that_has_ended_is_not_noticed
}

fn canary() -> NewKey {
    NewKey::new("acme", Expiry::Never).canary()
}

/// A service whose worker runs, with a clock that stands still.
struct Service {
    app: App,
    issuer: KeyIssuer,
    clock: ManualClock,
    seen: Arc<Mutex<Vec<String>>>,
    stop: oneshot::Sender<()>,
    worker: JoinHandle<()>,
}

impl Service {
    fn new(store: impl ManageKeys + Clone) -> Self {
        let (clock, seen) = (ManualClock::default(), Arc::new(Mutex::new(Vec::new())));
        let heard = Arc::clone(&seen);
        let observer = move |event: &Event<'_>| {
            if let Event::CanaryUsed { key_id, address, user_agent, .. } = event {
                heard.lock().unwrap().push(format!("{key_id} {address:?} {user_agent:?}"));
            }
        };
        let (auth, worker) = Authenticator::builder(store.clone(), format())
            .clock(clock.clone())
            .observer(observer)
            .build();
        let (stop, stopped) = oneshot::channel::<()>();
        let worker = tokio::spawn(worker.run(async {
            let _ = stopped.await;
        }));
        let issuer = auth.issuer(store);
        let app = App::new(ApiKeyLayer::new(auth).client_address(ClientAddress::peer()));
        Self { app, issuer, clock, seen, stop, worker }
    }

    async fn present(&self, key: &Issued, peer: &str, user_agent: &str) {
        let answer = self.app.send(request(key, peer, user_agent)).await;
        assert_eq!(answer.kind(), Some(RejectionKind::Unknown));
    }

    async fn uses(&self, id: KeyId) -> Vec<KeyEvent> {
        uses(&self.issuer, id).await
    }

    async fn until_used(&self, id: KeyId, times: usize) -> Vec<KeyEvent> {
        eventually("the uses are in the audit", async || self.uses(id).await.len() >= times).await;
        self.uses(id).await
    }

    async fn stop(self) -> KeyIssuer {
        self.stop.send(()).unwrap();
        within(self.worker).await.unwrap();
        self.issuer
    }
}

fn request(key: &Issued, peer: &str, user_agent: &str) -> Request<Body> {
    let mut request = with_key(&text(key));
    request.extensions_mut().insert(PeerAddr(peer.parse::<IpAddr>().unwrap()));
    let user_agent = HeaderValue::from_bytes(user_agent.as_bytes()).unwrap();
    request.headers_mut().insert(USER_AGENT, user_agent);
    request
}

/// Newest first.
async fn uses(issuer: &KeyIssuer, id: KeyId) -> Vec<KeyEvent> {
    let query = EventQuery::new().key_id(id).limit(1_000);
    let mut events = issuer.events(&query).await.unwrap().events;
    events.retain(|event| event.entry.action == KeyAction::CanaryUsed);
    events
}

async fn a_canary_key_is_stored_and_stays_one(store: impl ManageKeys + Clone) {
    let issuer = KeyIssuer::new(store.clone(), format());
    let key = issuer.issue(canary().name("in the wiki")).await.unwrap();
    assert_eq!(key.record.kind, KeyKind::Canary);
    let found = store.find(&key.key.hash()).await.unwrap().unwrap();
    assert_eq!((found.kind, found.id), (KeyKind::Canary, key.record.id));

    let renamed = issuer.update(key.record.id, KeyUpdate::new().name(None)).await.unwrap();
    assert_eq!(renamed.kind, KeyKind::Canary);
    for update in [
        KeyUpdate::new().plan(Some("gold".into())),
        KeyUpdate::new().rate_limits(Some(Quota::per_minute(1).unwrap().into())),
        KeyUpdate::new().networks(Networks::parse(["203.0.113.0/24"]).unwrap()),
        KeyUpdate::new().origins(WebOrigins::parse(["https://a.example"]).unwrap()),
    ] {
        let error = issuer.update(key.record.id, update).await.unwrap_err();
        assert_eq!(error.kind(), ManageErrorKind::Invalid, "{error}");
    }
    for (new, field) in [
        (canary().plan("gold"), "plan"),
        (canary().rate_limits(Quota::per_minute(1).unwrap()), "rate_limits"),
        (canary().networks(Networks::parse(["203.0.113.0/24"]).unwrap()), "networks"),
    ] {
        let error = issuer.issue(new).await.unwrap_err();
        assert_eq!((error.kind(), error.field()), (ManageErrorKind::Invalid, Some(field)));
    }
    let rotated = issuer.rotate(key.record.id, Rotation::new()).await.unwrap();
    assert_eq!((rotated.record.kind, rotated.previous.kind), (KeyKind::Canary, KeyKind::Canary));
    let page = store.list(&KeyQuery::new()).await.unwrap();
    assert!(page.keys.iter().all(|key| key.record.kind == KeyKind::Canary), "{page:?}");
}

async fn its_use_is_in_its_audit_once_an_hour_for_each_network(store: impl ManageKeys + Clone) {
    let service = Service::new(store);
    let key = service.issuer.issue(canary()).await.unwrap();
    let other = service.issuer.issue(canary()).await.unwrap();
    let secret = text(&other);
    for _ in 0..20 {
        service.present(&key, "203.0.113.9", &format!("curl/8 {secret}")).await;
    }
    service.present(&key, "2001:db8::1", "curl/8").await;
    service.present(&key, "2001:db8::2", "curl/9").await;
    let events = service.until_used(key.record.id, 2).await;
    service.present(&other, "203.0.113.9", "curl/8").await;
    service.until_used(other.record.id, 1).await;

    assert_eq!(service.uses(key.record.id).await.len(), 2);
    let entry = &events[1].entry;
    assert_eq!(entry.origin.as_deref(), Some("203.0.113.9"));
    assert_eq!((entry.actor.as_str(), entry.consumer_id.as_deref()), ("client", Some("acme")));
    let changes: Value = serde_json::from_str(entry.changes.as_deref().unwrap()).unwrap();
    let user_agent = changes["user_agent"].as_str().unwrap();
    assert!(user_agent.starts_with("curl/8 sk_test_…"), "{user_agent}");
    assert!(!user_agent.contains(&secret), "{user_agent}");
    assert_eq!(events[0].entry.origin.as_deref(), Some("2001:db8::1"));
    let seen = service.seen.lock().unwrap().clone();
    assert_eq!(seen.len(), 3, "one event for each line: {seen:?}");
    assert!(seen[0].starts_with(&format!("{} Some(203.0.113.9)", key.record.id)), "{seen:?}");

    service.clock.advance(HOUR);
    service.present(&key, "203.0.113.9", "curl/8").await;
    assert_eq!(service.until_used(key.record.id, 3).await.len(), 3);
    service.stop().await;
}

async fn one_that_has_ended_is_not_noticed(store: impl ManageKeys + Clone) {
    let service = Service::new(store);
    let (revoked, off) = (
        service.issuer.issue(canary()).await.unwrap(),
        service.issuer.issue(canary()).await.unwrap(),
    );
    let noticed = service.issuer.issue(canary()).await.unwrap();
    service.issuer.revoke(revoked.record.id, None).await.unwrap();
    service.issuer.update(off.record.id, KeyUpdate::new().is_active(false)).await.unwrap();
    for key in [&revoked, &off, &noticed] {
        service.present(key, "203.0.113.9", "curl/8").await;
    }
    service.until_used(noticed.record.id, 1).await;
    let issuer = {
        let (revoked, off) = (revoked.record.id, off.record.id);
        let issuer = service.stop().await;
        assert_eq!(uses(&issuer, revoked).await, []);
        assert_eq!(uses(&issuer, off).await, []);
        issuer
    };
    let _ = issuer;
}

#[tokio::test]
async fn many_networks_of_one_consumer_hide_nothing_of_another() {
    let service = Service::new(MemoryKeyStore::new());
    let of_mallory = NewKey::new("mallory", Expiry::Never).canary();
    let mallory = service.issuer.issue(of_mallory).await.unwrap();
    let key = service.issuer.issue(canary()).await.unwrap();
    for host in 0..100 {
        service.present(&mallory, &format!("198.51.100.{host}"), "curl/8").await;
    }
    service.present(&key, "198.51.100.1", "curl/8").await;
    service.until_used(key.record.id, 1).await;
    assert_eq!(service.uses(mallory.record.id).await.len(), 64);
    service.stop().await;
}

#[tokio::test]
async fn uses_wait_for_a_store_that_is_away() {
    let store = FaultStore::new(MemoryKeyStore::new(), ManualClock::default());
    let service = Service::new(store.clone());
    let key = service.issuer.issue(canary()).await.unwrap();
    // Cached, so that its use is noticed while the store is down.
    service.present(&key, "203.0.113.1", "curl/8").await;
    service.until_used(key.record.id, 1).await;
    store.go_down();
    service.present(&key, "203.0.113.2", "curl/8").await;
    service.present(&key, "203.0.113.3", "curl/8").await;
    eventually("the worker has tried", async || service.seen.lock().unwrap().len() == 3).await;
    store.come_back();
    let issuer = service.stop().await;
    let origins: Vec<_> =
        uses(&issuer, key.record.id).await.into_iter().filter_map(|it| it.entry.origin).collect();
    assert_eq!(origins, ["203.0.113.3", "203.0.113.2", "203.0.113.1"]);
}

#[tokio::test]
async fn a_use_noticed_last_is_written_when_the_worker_stops() {
    let service = Service::new(MemoryKeyStore::new());
    let key = service.issuer.issue(canary()).await.unwrap();
    service.present(&key, "203.0.113.1", "curl/8").await;
    let id = key.record.id;
    assert_eq!(uses(&service.stop().await, id).await.len(), 1);
}

#[tokio::test]
async fn an_address_that_the_layer_does_not_know_and_a_long_user_agent_are_left_out() {
    let store = MemoryKeyStore::new();
    let (auth, worker) = Authenticator::builder(store.clone(), format()).build();
    let worker = tokio::spawn(worker.run(pending()));
    let issuer = auth.issuer(store);
    let key = issuer.issue(canary()).await.unwrap();
    let app = App::new(ApiKeyLayer::new(auth));
    app.send(request(&key, "203.0.113.1", &"x".repeat(513))).await;
    eventually("its use", async || !uses(&issuer, key.record.id).await.is_empty()).await;
    let events = uses(&issuer, key.record.id).await;
    assert_eq!(events[0].entry.origin, None);
    assert!(events[0].entry.changes.as_deref().unwrap().contains(r#""user_agent":null"#));
    worker.abort();
}

#[tokio::test]
async fn the_routers_issue_canary_keys() {
    let desk = Desk::new("/keys", admin::router);
    let scopes = ["api-keys:read", "api-keys:write", "api-keys:all-consumers"];
    let (caller, _) = desk.key("acme", &scopes).await;
    let body = json!({ "consumer_id": "acme", "expires": "never", "kind": "canary" });
    let made = desk.send(&caller, "POST", "/api-keys", Some(&body)).await;
    assert_eq!(made.status, 201, "{}", made.text());
    assert_eq!(made.json()["kind"], "canary");
    let path = format!("/api-keys/{}", made.json()["id"].as_str().unwrap());
    let shown = desk.send(&caller, "GET", &path, None).await;
    assert_eq!(shown.json()["kind"], "canary");
    let key = made.json()["key"].as_str().unwrap().to_owned();
    let refused = desk.send(&key, "GET", "/api-keys", None).await;
    assert_problem(&refused, 401, "invalid_api_key", None);
    for (field, value) in [
        ("plan", json!("gold")),
        ("networks", json!(["203.0.113.0/24"])),
        ("origins", json!(["https://a.example"])),
    ] {
        let mut body = body.clone();
        body[field] = value;
        let refused = desk.send(&caller, "POST", "/api-keys", Some(&body)).await;
        assert_eq!(refused.status, 422, "{field}: {}", refused.text());
        assert_eq!(refused.json()["field"], format!("/{field}"));
    }
    let body = json!({ "consumer_id": "acme", "expires": "never", "kind": "other" });
    let refused = desk.send(&caller, "POST", "/api-keys", Some(&body)).await;
    assert_problem(&refused, 422, "invalid", Some("/kind"));
    let update = desk.send(&caller, "PATCH", &path, Some(&json!({ "kind": "secret" }))).await;
    assert_eq!(update.status, 400, "{}", update.text());

    let desk = Desk::new("/keys", account::router);
    let (caller, _) = desk.key("acme", &["api-keys:write"]).await;
    let body = json!({ "expires": "never", "kind": "canary" });
    let made = desk.send(&caller, "POST", "/api-keys", Some(&body)).await;
    assert_eq!((made.status.as_u16(), &made.json()["kind"]), (201, &json!("canary")));
}

#[tokio::test]
async fn a_leaked_canary_key_stays_where_it_is() {
    let (_database, store) = postgres().await;
    let issuer = KeyIssuer::new(store, format());
    let key = issuer.issue(canary()).await.unwrap();
    let report = LeakReport::new(key.key.expose_secret().as_bytes()).url("https://a.example/1");
    for _ in 0..3 {
        let outcomes = issuer.report_leaks(&[report], &LeakPolicy::new()).await.unwrap();
        assert_eq!(outcomes, [LeakOutcome::Canary]);
        assert!(outcomes[0].is_key() && !outcomes[0].was_live());
    }
    let page = issuer.events(&EventQuery::new().key_id(key.record.id)).await.unwrap();
    let actions: Vec<_> = page.events.iter().map(|event| event.entry.action).collect();
    assert_eq!(actions, [KeyAction::Leaked, KeyAction::Issued]);
}

#[tokio::test]
async fn a_calling_key_may_issue_canary_keys_of_its_consumer() {
    let desk = Desk::new("/keys", account::router);
    let (caller, _) = desk.key("acme", &["api-keys:write"]).await;
    let scopes = Scopes::parse(["orders:read"]).unwrap();
    let body = json!({
        "expires": "never", "kind": "canary", "scopes": scopes.iter().map(|s| s.as_str()).collect::<Vec<_>>(),
    });
    let refused = desk.send(&caller, "POST", "/api-keys", Some(&body)).await;
    assert_eq!(refused.status, 403, "it grants no scope that its maker lacks");
}
