//! Leaked keys: deliveries of GitHub and reports of other scanners, on every store.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, body::Body};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{Request, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tower_api_key::{
    Authenticator,
    auth::RejectionKind,
    clock::ManualClock,
    key::{Alphabet, ImportedFormat},
    leaks::{self, Leaks, PublicKeySet, PublicKeys, PublicKeysError, PublicKeysErrorKind},
    manage::{
        Actor, Expiry, Issued, KeyImport, KeyIssuer, KeyUpdate, LeakOutcome, LeakPolicy,
        LeakReport, LeakResponse, ManageErrorKind, NewKey, RevocationFilter,
    },
    rate_limit::Quota,
    record::{KeyAction, KeyEvent, KeyId, KeyStatus, Scope, Scopes},
    store::{EventQuery, ManageKeys, MemoryKeyStore, PgKeyStore, SqliteKeyStore, StoreErrorKind},
    test_util::FaultStore,
};
use tracing_subscriber::fmt::MakeWriter;

use crate::{
    admin_client::assert_problem,
    app::{Answer, format, send, text, unknown_key},
    github::{GitHub, IDENTIFIER, SIGNATURE, found},
    servers::postgres::{Database, Server},
    wait::within,
};

const HOUR: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);

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
    a_leaked_key_is_revoked_and_its_audit_says_where_it_was_found
    a_key_that_has_ended_is_a_true_positive_and_nothing_is_written
    the_policy_decides_by_prefix_and_scope
    a_repeated_delivery_adds_nothing_to_the_audit
    made_up_places_add_no_more_than_five_entries
    a_grace_is_not_extended_by_another_report
    a_key_that_was_switched_off_is_revoked
    a_report_by_a_key_with_the_scope_revokes_the_key
}

/// A service with the leak routes at `/leaks`.
struct Service {
    app: Router,
    auth: Authenticator,
    issuer: KeyIssuer,
    github: GitHub,
}

impl Service {
    fn new(store: impl ManageKeys + Clone, policy: LeakPolicy) -> Self {
        let (auth, worker) = Authenticator::builder(store.clone(), format()).build();
        drop(worker);
        Self::of(auth, store, policy)
    }

    fn of(auth: Authenticator, store: impl ManageKeys, policy: LeakPolicy) -> Self {
        let (issuer, github) = (auth.issuer(store), GitHub::new());
        let routes = Leaks::new(issuer.clone(), policy)
            .github(github.public_keys())
            .reporters(auth.clone())
            .router();
        Self { app: Router::new().nest_service("/leaks", routes), auth, issuer, github }
    }

    async fn deliver(&self, tokens: &[Value]) -> Answer {
        let tokens = Value::Array(tokens.to_vec());
        within(send(self.app.clone(), self.github.delivery::<Body>("/leaks", &tokens))).await
    }

    /// The labels of the feedback.
    async fn labels(&self, tokens: &[Value]) -> Vec<String> {
        let answer = self.deliver(tokens).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        let feedback = answer.json();
        let labels = feedback.as_array().unwrap().iter().map(|item| item["label"].clone());
        labels.map(|label| label.as_str().unwrap().to_owned()).collect()
    }

    async fn issue(&self, scopes: &[&str]) -> Issued {
        let scopes = Scopes::parse(scopes.iter().copied()).unwrap();
        self.issuer.issue(NewKey::new("acme", Expiry::Never).scopes(scopes)).await.unwrap()
    }

    async fn status(&self, key: &Issued) -> KeyStatus {
        let record = self.issuer.get(key.record.id).await.unwrap().record;
        record.status(record.read_at)
    }

    /// What the service says to the key, by the cache of this process.
    async fn rejection(&self, key: &Issued) -> Option<RejectionKind> {
        let check = self.auth.check(key.key.expose_secret().as_bytes());
        within(check.into_future()).await.err().map(|rejection| rejection.kind())
    }

    /// The audit of a key without its issue, oldest first.
    async fn events(&self, id: KeyId) -> Vec<KeyEvent> {
        let page = self.issuer.events(&EventQuery::new().key_id(id)).await.unwrap();
        assert_eq!(page.next, None);
        let mut events = page.events;
        events.retain(|event| event.entry.action != KeyAction::Issued);
        events.reverse();
        events
    }

    async fn actions(&self, id: KeyId) -> Vec<KeyAction> {
        self.events(id).await.iter().map(|event| event.entry.action).collect()
    }

    async fn report(&self, reporter: &str, body: &Value) -> Answer {
        let request = Request::post("/leaks/report")
            .header("authorization", format!("Bearer {reporter}"))
            .header("content-type", "application/json")
            .body(Body::from(body.to_string()));
        within(send(self.app.clone(), request.unwrap())).await
    }
}

async fn a_leaked_key_is_revoked_and_its_audit_says_where_it_was_found(
    store: impl ManageKeys + Clone,
) {
    let service = Service::new(store, LeakPolicy::new());
    let (key, other) = (service.issue(&[]).await, service.issue(&[]).await);
    assert_eq!(service.rejection(&key).await, None);
    let in_url = found(&text(&key));
    let url = format!("https://paste.example/?q={}", text(&other));
    let again =
        json!({ "token": text(&key), "type": "acme_api_key", "url": url, "source": "wiki" });
    let labels = service.labels(&[in_url, found(&unknown_key()), again, found("junk")]).await;
    assert_eq!(labels, ["true_positive", "false_positive", "true_positive", "false_positive"]);
    // At once, although no change feed runs.
    assert_eq!(service.rejection(&key).await, Some(RejectionKind::Revoked));
    assert_eq!(service.rejection(&other).await, None);

    let events = service.events(key.record.id).await;
    let actions: Vec<_> = events.iter().map(|event| event.entry.action).collect();
    assert_eq!(actions, [KeyAction::Leaked, KeyAction::Leaked, KeyAction::Revoked]);
    for event in &events {
        assert_eq!(event.entry.actor, "leaks:github");
        assert_eq!(event.entry.consumer_id.as_deref(), Some("acme"));
        let text = format!("{event:?}");
        assert!(!text.contains(&self::text(&key)) && !text.contains(&self::text(&other)), "{text}");
    }
    let changes = |at: usize| events[at].entry.changes.as_deref().unwrap();
    let places: Vec<Value> = (0..2).map(|at| serde_json::from_str(changes(at)).unwrap()).collect();
    assert_eq!(places[0]["url"], "https://github.com/acme/shop/blob/0123abc/config.py");
    assert_eq!(
        (&places[0]["source"], &places[0]["type"]),
        (&json!("commit"), &json!("acme_api_key"))
    );
    assert_eq!(events[0].entry.reason.as_deref(), Some("leaked: found in commit"));
    assert!(places[1]["url"].as_str().unwrap().starts_with("https://paste.example/?q=sk_test_…"));
    let record = service.issuer.get(key.record.id).await.unwrap().record;
    assert_eq!(record.revoked_reason.as_deref(), Some("leaked"));
}

async fn a_key_that_has_ended_is_a_true_positive_and_nothing_is_written(
    store: impl ManageKeys + Clone,
) {
    let service = Service::new(store, LeakPolicy::new());
    let (revoked, expired) = (service.issue(&[]).await, service.issue(&[]).await);
    service.issuer.revoke(revoked.record.id, Some("no longer used")).await.unwrap();
    let now = KeyUpdate::new().expiry(Expiry::In(Duration::ZERO));
    service.issuer.update(expired.record.id, now).await.unwrap();
    let tokens = [found(&text(&revoked)), found(&text(&expired))];
    assert_eq!(service.labels(&tokens).await, ["true_positive"; 2]);
    assert_eq!(service.actions(revoked.record.id).await, [KeyAction::Revoked]);
    assert_eq!(service.actions(expired.record.id).await, [KeyAction::Updated]);
    let record = service.issuer.get(revoked.record.id).await.unwrap().record;
    assert_eq!(record.revoked_reason.as_deref(), Some("no longer used"));
}

async fn the_policy_decides_by_prefix_and_scope(store: impl ManageKeys + Clone) {
    let policy = LeakPolicy::new()
        .prefix("sk_test_", LeakResponse::Record)
        .scope(Scope::new("orders:write").unwrap(), LeakResponse::ExpireAfter(HOUR))
        .scope(Scope::new("payments:write").unwrap(), LeakResponse::Revoke);
    let service = Service::new(store, policy);
    let told = service.issue(&[]).await;
    let expires = service.issue(&["orders:write"]).await;
    let revoked = service.issue(&["orders:write", "payments:write"]).await;
    let tokens = [&told, &expires, &revoked].map(|key| found(&text(key)));
    assert_eq!(service.labels(&tokens).await, ["true_positive"; 3]);

    assert_eq!(service.actions(told.record.id).await, [KeyAction::Leaked]);
    assert_eq!(service.status(&told).await, KeyStatus::Active);
    assert_eq!(service.actions(expires.record.id).await, [KeyAction::Leaked, KeyAction::Updated]);
    let record = service.issuer.get(expires.record.id).await.unwrap().record;
    let left = record.expires_at.unwrap().duration_since(record.read_at).unwrap();
    assert!(left <= HOUR && left > HOUR - MINUTE, "{left:?}");
    assert_eq!(service.actions(revoked.record.id).await, [KeyAction::Leaked, KeyAction::Revoked]);
    for key in [&told, &expires] {
        assert_eq!(service.rejection(key).await, None);
    }
    assert_eq!(service.rejection(&revoked).await, Some(RejectionKind::Revoked));
}

async fn a_repeated_delivery_adds_nothing_to_the_audit(store: impl ManageKeys + Clone) {
    let policy = LeakPolicy::new()
        .otherwise(LeakResponse::Record)
        .scope(Scope::new("orders:write").unwrap(), LeakResponse::ExpireAfter(HOUR))
        .scope(Scope::new("payments:write").unwrap(), LeakResponse::Revoke);
    let service = Service::new(store, policy);
    let keys = [
        service.issue(&[]).await,
        service.issue(&["orders:write"]).await,
        service.issue(&["payments:write"]).await,
    ];
    let tokens = keys.each_ref().map(|key| found(&text(key)));
    let count = async || {
        let mut count = Vec::new();
        for key in &keys {
            count.push(service.actions(key.record.id).await.len());
        }
        count
    };
    service.labels(&tokens).await;
    assert_eq!(count().await, [1, 2, 2]);
    for _ in 0..10 {
        assert_eq!(service.labels(&tokens).await, ["true_positive"; 3]);
    }
    assert_eq!(count().await, [1, 2, 2]);
}

async fn made_up_places_add_no_more_than_five_entries(store: impl ManageKeys + Clone) {
    let service = Service::new(store, LeakPolicy::new().otherwise(LeakResponse::Record));
    let key = service.issue(&[]).await;
    let place = |number: usize| json!({ "token": text(&key), "source": "wiki", "url": format!("https://a.example/{number}") });
    for delivery in 0..4 {
        let tokens: Vec<_> = (0..8).map(|number| place(8 * delivery + number)).collect();
        service.labels(&tokens).await;
    }
    assert_eq!(service.actions(key.record.id).await, [KeyAction::Leaked; 5]);
    let long = format!("https://a.example/{}", "ä".repeat(2000));
    let issuer = service.issuer.by(Actor::operator("another scanner"));
    let report =
        LeakReport::new(key.key.expose_secret().as_bytes()).url(&long).source("\u{1b}[31m");
    let policy = LeakPolicy::new().otherwise(LeakResponse::Record);
    let outcomes = issuer.report_leaks(&[report], &policy).await.unwrap();
    assert_eq!(outcomes, [LeakOutcome::Recorded]);
    let events = service.events(key.record.id).await;
    let place: Value =
        serde_json::from_str(events.last().unwrap().entry.changes.as_deref().unwrap()).unwrap();
    assert_eq!(place["url"].as_str().unwrap().chars().count(), 512);
    assert_eq!(place["source"], "\u{fffd}[31m");
}

async fn a_grace_is_not_extended_by_another_report(store: impl ManageKeys + Clone) {
    let policy = LeakPolicy::new().otherwise(LeakResponse::ExpireAfter(HOUR));
    let service = Service::new(store, policy);
    let key = service.issue(&[]).await;
    let expiry = async || service.issuer.get(key.record.id).await.unwrap().record.expires_at;
    service.labels(&[found(&text(&key))]).await;
    let first = expiry().await;
    service.labels(&[json!({ "token": text(&key), "url": "https://other.example/" })]).await;
    assert_eq!(expiry().await, first);
    assert_eq!(
        service.actions(key.record.id).await,
        [KeyAction::Leaked, KeyAction::Updated, KeyAction::Leaked]
    );
}

async fn a_key_that_was_switched_off_is_revoked(store: impl ManageKeys + Clone) {
    let service = Service::new(store, LeakPolicy::new());
    let key = service.issue(&[]).await;
    service.issuer.update(key.record.id, KeyUpdate::new().is_active(false)).await.unwrap();
    assert_eq!(service.labels(&[found(&text(&key))]).await, ["true_positive"]);
    assert_eq!(service.status(&key).await, KeyStatus::Revoked);
}

async fn a_report_by_a_key_with_the_scope_revokes_the_key(store: impl ManageKeys + Clone) {
    let service = Service::new(store, LeakPolicy::new());
    let reporter = service.issue(&["api-keys:report-leaks"]).await;
    let without = service.issue(&["api-keys:write"]).await;
    let key = service.issue(&[]).await;
    let body = json!({ "token": text(&key), "source": "wiki", "url": "https://wiki.example/1" });

    let refused = service.report(&text(&without), &body).await;
    assert_problem(&refused, 403, "insufficient_scope", None);
    let refused = service.report(&unknown_key(), &body).await;
    assert_problem(&refused, 401, "invalid_api_key", None);
    assert_eq!(service.status(&key).await, KeyStatus::Active);

    let answer = service.report(&text(&reporter), &body).await;
    assert_eq!((answer.status, answer.json()), (StatusCode::OK, json!({ "was_active": true })));
    assert_eq!(service.rejection(&key).await, Some(RejectionKind::Revoked));
    let events = service.events(key.record.id).await;
    let actor = format!("leaks:key:{}", reporter.record.id);
    assert!(events.iter().all(|event| event.entry.actor == actor), "{events:?}");

    // What is revoked, unknown or malformed looks alike.
    for token in [text(&key), unknown_key(), "junk".to_owned()] {
        let answer = service.report(&text(&reporter), &json!({ "token": token })).await;
        assert_eq!(answer.json(), json!({ "was_active": false }), "{token}");
    }
}

/// GitHub's published example.
fn example() -> Value {
    serde_json::from_str(include_str!("../leaks/github.json")).unwrap()
}

fn example_request(body: &[u8], signature: &str) -> Request<Body> {
    Request::post("/")
        .header(IDENTIFIER, example()["key_identifier"].as_str().unwrap())
        .header(SIGNATURE, signature)
        .body(Body::from(body.to_vec()))
        .unwrap()
}

fn example_keys() -> PublicKeySet {
    PublicKeySet::from_json(include_bytes!("../leaks/public_keys.json")).unwrap()
}

/// A router that knows the public keys of `keys` alone.
fn routes(keys: impl PublicKeys) -> Router {
    let issuer = KeyIssuer::new(MemoryKeyStore::new(), format());
    Router::new().fallback_service(leaks::router(issuer, LeakPolicy::new(), keys))
}

#[tokio::test]
async fn the_published_example_of_github_verifies() {
    let example = example();
    let (payload, signature) = (&example["payload"], &example["signature_base64"]);
    let (payload, signature) = (payload.as_str().unwrap(), signature.as_str().unwrap());
    let answer = send(routes(example_keys()), example_request(payload.as_bytes(), signature)).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    let expected = json!([{
        "token_hash": STANDARD.encode(Sha256::digest(b"some_token")),
        "token_type": "some_type",
        "label": "false_positive",
    }]);
    assert_eq!(answer.json(), expected);
    assert!(!answer.text().contains("some_token"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
}

#[tokio::test]
async fn a_flipped_bit_of_the_body_the_signature_or_the_key_is_refused() {
    let example = example();
    let payload = example["payload"].as_str().unwrap().as_bytes().to_vec();
    let signature = example["signature_base64"].as_str().unwrap().to_owned();
    let app = routes(example_keys());
    let refused = async |app: &Router, body: &[u8], signature: &str, what: &str| {
        let answer = send(app.clone(), example_request(body, signature)).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{what}");
        assert_problem(&answer, 403, "invalid_signature", None);
    };
    for bit in 0..8 * payload.len() {
        let mut flipped = payload.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        refused(&app, &flipped, &signature, &format!("bit {bit} of the body")).await;
    }
    let der = STANDARD.decode(&signature).unwrap();
    for bit in 0..8 * der.len() {
        let mut flipped = der.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let what = format!("bit {bit} of the signature");
        refused(&app, &payload, &STANDARD.encode(flipped), &what).await;
    }
    // Another spelling of the same bytes, more or fewer of them, and none.
    let unpadded = signature.trim_end_matches('=');
    for other in [unpadded, &format!("{signature}="), &signature[..40], "", "!", &"A".repeat(5000)]
    {
        refused(&app, &payload, other, other).await;
    }
    refused(&app, &[&payload[..], b"\n"].concat(), &signature, "one byte more").await;
    refused(&app, &payload[1..], &signature, "one byte less").await;
    let pem = example["public_key_pem"].as_str().unwrap();
    let (head, rest) = pem.split_once('\n').unwrap();
    let (base64, tail) = rest.split_once("\n-----").unwrap();
    let der = STANDARD.decode(base64.replace('\n', "")).unwrap();
    for bit in 0..8 * der.len() {
        let mut flipped = der.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let pem = format!("{head}\n{}\n-----{tail}", STANDARD.encode(flipped));
        // Most are no keys at all; a key of the same curve is the key of another sender.
        let Ok(key) = leaks::PublicKey::from_pem(&pem) else { continue };
        let keys = PublicKeySet::new().with(example["key_identifier"].as_str().unwrap(), key);
        refused(&routes(keys), &payload, &signature, &format!("bit {bit} of the key")).await;
    }
}

#[tokio::test]
async fn a_delivery_without_its_headers_or_with_an_unknown_key_is_refused() {
    let app = routes(GitHub::new().public_keys());
    let body = json!([found(&unknown_key())]);
    let signed = || GitHub::new().delivery::<Body>("/", &body);
    for header in [IDENTIFIER, SIGNATURE] {
        let mut without = signed();
        without.headers_mut().remove(header);
        assert_problem(&send(app.clone(), without).await, 403, "invalid_signature", None);
        let mut twice = signed();
        let value = twice.headers()[header].clone();
        twice.headers_mut().append(header, value);
        assert_problem(&send(app.clone(), twice).await, 403, "invalid_signature", None);
    }
    let stranger = GitHub::with_key(8, "current").delivery::<Body>("/", &body);
    assert_problem(&send(app.clone(), stranger).await, 403, "invalid_signature", None);
    let unknown = GitHub::with_key(7, "other").delivery::<Body>("/", &body);
    assert_problem(&send(app.clone(), unknown).await, 403, "invalid_signature", None);
    assert_eq!(send(app.clone(), signed()).await.status, StatusCode::OK);
    let get = Request::get("/").body(Body::empty()).unwrap();
    assert_problem(&send(app.clone(), get).await, 405, "method_not_allowed", None);
    let other = GitHub::new().delivery::<Body>("/report", &body);
    assert_problem(&send(app, other).await, 404, "not_found", None);
}

#[tokio::test]
async fn a_delivery_has_bounds() {
    let issuer = KeyIssuer::new(MemoryKeyStore::new(), format());
    let github = GitHub::new();
    let limit = 100_000;
    let routes =
        Leaks::new(issuer, LeakPolicy::new()).github(github.public_keys()).max_body(limit).router();
    let app = Router::new().fallback_service(routes);
    let most = format!("[{}]", " ".repeat(limit - 2)).into_bytes();
    let longer = format!("[{}]", " ".repeat(limit - 1)).into_bytes();
    let answer = send(app.clone(), github.signed::<Body>("/", most)).await;
    assert_eq!((answer.status, answer.json()), (StatusCode::OK, json!([])));
    let answer = send(app.clone(), github.signed::<Body>("/", longer)).await;
    assert_problem(&answer, 413, "body_too_large", None);
    let tokens = format!("[{}]", vec![r#"{"token":""}"#; 7_000].join(",")).into_bytes();
    assert_eq!(send(app, github.signed::<Body>("/", tokens)).await.status, StatusCode::OK);

    let app = self::routes(github.public_keys());
    let tokens = format!("[{}]", vec![r#"{"token":""}"#; 10_001].join(",")).into_bytes();
    let answer = send(app.clone(), github.signed::<Body>("/", tokens)).await;
    assert_problem(&answer, 413, "body_too_large", None);
    for junk in ["", "{}", "[1]", r#"[{"type":"a"}]"#, "[", "nul"] {
        let answer = send(app.clone(), github.signed::<Body>("/", junk.into())).await;
        assert_problem(&answer, 400, "invalid_body", None);
    }
    // GitHub may add members.
    let more = br#"[{"token":"a","type":null,"repository":{"id":1}}]"#.to_vec();
    let answer = send(app, github.signed::<Body>("/", more)).await;
    assert_eq!(answer.status, StatusCode::OK);
}

/// Public keys that cannot be fetched.
struct Unavailable;

impl PublicKeys for Unavailable {
    async fn find(&self, _: &str) -> Result<Option<leaks::PublicKey>, PublicKeysError> {
        Err(PublicKeysError::new(PublicKeysErrorKind::Unavailable))
    }
}

#[tokio::test]
async fn without_public_keys_a_delivery_may_be_sent_again() {
    let delivery = GitHub::new().delivery::<Body>("/", &json!([found(&unknown_key())]));
    let answer = send(routes(Unavailable), delivery).await;
    assert_problem(&answer, 503, "service_unavailable", None);
    assert_eq!(answer.header("retry-after"), Some("1"));
}

#[tokio::test]
async fn a_store_that_fails_is_not_a_false_positive() {
    let store = FaultStore::new(MemoryKeyStore::new(), ManualClock::default());
    let service = Service::new(store.clone(), LeakPolicy::new());
    let key = service.issue(&[]).await;
    store.fail_with(StoreErrorKind::Unavailable);
    let answer = service.deliver(&[found(&text(&key))]).await;
    assert_problem(&answer, 503, "service_unavailable", None);
    store.come_back();
    assert_eq!(service.labels(&[found(&text(&key))]).await, ["true_positive"]);
    assert_eq!(service.status(&key).await, KeyStatus::Revoked);
}

#[tokio::test]
async fn public_keys_are_read_as_github_publishes_them() {
    assert!(
        PublicKeySet::from_json(&serde_json::to_vec(&GitHub::new().published()).unwrap()).is_ok()
    );
    let with = |key: &str| {
        let key = json!({ "key_identifier": "a", "key": key, "is_current": false, "more": 1 });
        serde_json::to_vec(&json!({ "public_keys": [key], "more": 1 })).unwrap()
    };
    assert!(PublicKeySet::from_json(&with(&GitHub::new().pem())).is_ok());
    let many: Vec<_> = (0..65)
        .map(|at| json!({ "key_identifier": at.to_string(), "key": GitHub::new().pem() }))
        .collect();
    for json in [
        b"".to_vec(),
        b"{}".to_vec(),
        br#"{"public_keys":[]}"#.to_vec(),
        with("-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n"),
        with(&"A".repeat(100_000)),
        serde_json::to_vec(&json!({ "public_keys": many })).unwrap(),
    ] {
        let error = PublicKeySet::from_json(&json).unwrap_err();
        assert_eq!(error.kind(), PublicKeysErrorKind::Invalid);
        assert!(std::error::Error::source(&error).is_some());
    }
}

/// What sqlx logs of its statements on this thread.
#[derive(Clone, Default)]
struct Statements(Arc<Mutex<Vec<u8>>>);

impl Write for Statements {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Statements {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn a_thousand_tokens_of_one_delivery_are_looked_up_by_one_query() {
    let (_database, store) = postgres().await;
    let service = Service::new(store, LeakPolicy::new());
    let mut keys = Vec::new();
    for _ in 0..3 {
        keys.push(service.issue(&[]).await);
    }
    let unknown = (0..997).map(|_| unknown_key());
    let tokens: Vec<_> = keys.iter().map(text).chain(unknown).map(|key| found(&key)).collect();
    let statements = Statements::default();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(statements.clone());
    let guard =
        tracing::subscriber::set_default(subscriber.with_env_filter("sqlx::query=debug").finish());
    let labels = service.labels(&tokens).await;
    drop(guard);
    assert_eq!(labels.iter().filter(|label| *label == "true_positive").count(), 3);
    let log = String::from_utf8(statements.0.lock().unwrap().clone()).unwrap();
    let lines = |text: &str| log.lines().filter(|line| line.contains(text)).count();
    assert_eq!(lines("key_hash = any("), 1, "{log}");
    assert_eq!(lines("select * from api_keys where id = any("), 1, "locked together: {log}");
    assert_eq!(lines("insert into api_key_events"), 1, "{log}");
    let updates = lines("update api_keys");
    assert_eq!(updates, 1, "revoked together: {log}");
}

#[tokio::test]
async fn more_keys_than_a_transaction_changes_are_all_revoked() {
    let (_database, store) = postgres().await;
    let service = Service::new(store, LeakPolicy::new());
    let keys: Vec<_> = (0..1_200).map(|_| format().generate().unwrap()).collect();
    let import = |key: &tower_api_key::key::ApiKey| {
        KeyImport::new(key.hash(), NewKey::new("acme", Expiry::Never))
    };
    service.issuer.import(keys.iter().map(import).collect()).await.unwrap();
    let tokens: Vec<_> = keys.iter().map(|key| found(key.expose_secret())).collect();
    let begin = tokio::time::Instant::now();
    let labels = service.labels(&tokens).await;
    println!("1,200 keys revoked in {:?}", begin.elapsed());
    assert_eq!(labels, vec!["true_positive"; 1_200]);
    let live = RevocationFilter::new().consumer_id("acme");
    assert_eq!(service.issuer.matching(&live).await.unwrap(), []);
}

#[tokio::test]
async fn a_key_of_an_imported_format_is_found_by_its_own_digest() {
    let store = MemoryKeyStore::new();
    let digest = tower_api_key::key::Digest::double_sha256();
    let old = ImportedFormat::new("old-", Alphabet::Hex, 32).unwrap().hashed_by(digest);
    let (auth, worker) =
        Authenticator::builder(store.clone(), format()).accept(old.clone()).build();
    drop(worker);
    let service = Service::of(auth, store, LeakPolicy::new());
    let key = format!("old-{}", "0f".repeat(16));
    let hash = old.parse(key.as_bytes()).unwrap().hash();
    let import = KeyImport::new(hash, NewKey::new("acme", Expiry::Never));
    service.issuer.import(vec![import]).await.unwrap();
    assert_eq!(service.labels(&[found(&key)]).await, ["true_positive"]);
    let live = RevocationFilter::new().consumer_id("acme");
    assert_eq!(service.issuer.matching(&live).await.unwrap(), []);
}

#[tokio::test]
async fn only_operators_report_leaks() {
    let service = Service::new(MemoryKeyStore::new(), LeakPolicy::new());
    let key = service.issue(&[]).await;
    let admission = service.auth.check(key.key.expose_secret().as_bytes()).await.unwrap();
    let caller = service.issuer.by(Actor::key(admission.consumer()));
    let report = LeakReport::new(key.key.expose_secret().as_bytes());
    let error = caller.report_leaks(&[report], &LeakPolicy::new()).await.unwrap_err();
    assert_eq!(error.kind(), ManageErrorKind::Denied);
    assert_eq!(service.status(&key).await, KeyStatus::Active);
    assert_eq!(format!("{report:?}").matches(&text(&key)).count(), 0);
}

#[tokio::test]
async fn a_reporter_is_limited_by_its_own_quotas() {
    let service = Service::new(MemoryKeyStore::new(), LeakPolicy::new());
    let new = NewKey::new("scanner", Expiry::Never)
        .scopes(Scopes::parse(["api-keys:report-leaks"]).unwrap())
        .rate_limits(Quota::per_minute(2).unwrap());
    let reporter = text(&service.issuer.issue(new).await.unwrap());
    let body = json!({ "token": unknown_key() });
    for _ in 0..2 {
        assert_eq!(service.report(&reporter, &body).await.status, StatusCode::OK);
    }
    let refused = service.report(&reporter, &body).await;
    assert_problem(&refused, 429, "rate_limit_exceeded", None);
    let refused = service.report(&reporter, &json!({ "token": "a", "more": 1 })).await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn a_leak_in_a_malformed_report_names_the_field() {
    let service = Service::new(MemoryKeyStore::new(), LeakPolicy::new());
    let reporter = text(&service.issue(&["api-keys:report-leaks"]).await);
    let answer = service.report(&reporter, &json!({ "tokens": [] })).await;
    assert_problem(&answer, 400, "invalid_body", Some("/tokens"));
    let answer = service.report(&reporter, &json!({ "token": 1 })).await;
    assert_problem(&answer, 400, "invalid_body", Some("/token"));
}
