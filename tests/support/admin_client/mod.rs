//! The management routers over a store in memory.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use axum::{Router, body::Body};
use http::{Request, header};
use serde_json::{Value, json};
use tower_api_key::{
    Authenticator,
    admin::GuardedRoutes,
    auth::Worker,
    manage::{Expiry, KeyIssuer, NewKey},
    record::{KeyAction, KeyId, Scopes},
    store::{EventQuery, MemoryKeyStore},
};

use crate::app::{Answer, format, send};

pub struct Desk {
    pub app: Router,
    /// Acts as an operator.
    pub issuer: KeyIssuer,
    pub store: MemoryKeyStore,
    mount: &'static str,
    _worker: Worker,
}

impl Desk {
    pub fn new(
        mount: &'static str,
        routes: impl FnOnce(KeyIssuer, Authenticator) -> GuardedRoutes,
    ) -> Self {
        let store = MemoryKeyStore::new();
        let (auth, worker) = Authenticator::builder(store.clone(), format()).build();
        let issuer = KeyIssuer::new(store.clone(), format());
        let app = Router::new().nest_service(mount, routes(issuer.clone(), auth));
        Self { app, issuer, store, mount, _worker: worker }
    }

    /// Issues a key without expiry or limits.
    pub async fn key(&self, consumer: &str, scopes: &[&str]) -> (String, KeyId) {
        let scopes = Scopes::parse(scopes.iter().copied()).unwrap();
        let issued =
            self.issuer.issue(NewKey::new(consumer, Expiry::Never).scopes(scopes)).await.unwrap();
        (issued.key.expose_secret().to_owned(), issued.record.id)
    }

    pub fn request(
        &self,
        key: &str,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Request<Body> {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.mount))
            .header(header::AUTHORIZATION, format!("Bearer {key}"));
        match body {
            None => request.body(Body::empty()).unwrap(),
            Some(body) => request
                .header(header::CONTENT_TYPE, "application/json")
                .body(Body::from(body.to_string()))
                .unwrap(),
        }
    }

    pub async fn send(&self, key: &str, method: &str, path: &str, body: Option<&Value>) -> Answer {
        send(self.app.clone(), self.request(key, method, path, body)).await
    }

    /// The number of denied attempts in the audit.
    pub async fn denials(&self) -> usize {
        let page = self.issuer.events(&EventQuery::new()).await.unwrap();
        page.events.iter().filter(|event| event.entry.action == KeyAction::Denied).count()
    }

    pub async fn document(&self) -> Value {
        let (key, _) = self.key("reader", &[]).await;
        self.send(&key, "GET", "/openapi.json", None).await.json()
    }
}

/// Asserts a problem of this kind that names its field.
#[track_caller]
pub fn assert_problem(answer: &Answer, status: u16, code: &str, field: Option<&str>) {
    assert_eq!(
        answer.header("content-type"),
        Some("application/problem+json"),
        "{}",
        answer.wire()
    );
    let problem = answer.json();
    assert_eq!(answer.status.as_u16(), status, "{problem}");
    assert_eq!(problem["status"], json!(status), "{problem}");
    assert_eq!(problem["code"], json!(code), "{problem}");
    if field.is_some() {
        assert_eq!(problem.get("field").and_then(Value::as_str), field, "{problem}");
    }
    for member in ["type", "title", "detail"] {
        assert!(problem[member].as_str().is_some_and(|text| !text.is_empty()), "{problem}");
    }
    assert_eq!(answer.header("cache-control"), Some("no-store"));
}

/// Asserts that neither the key nor its hash is in the response.
#[track_caller]
pub fn sealed(answer: &Answer, key: &str) {
    let text = answer.wire();
    let hash = format().parse(key.as_bytes()).unwrap().hash();
    let hex: String = hash.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(!text.contains(key), "the key is in {text}");
    assert!(!text.contains(&hex) && !text.contains("hash"), "the hash is in {text}");
}
