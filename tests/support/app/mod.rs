//! Keys in a store that counts its queries, an app behind the layer, and the app's responses.

#![allow(dead_code, unreachable_pub, reason = "each test file uses the part it needs")]

pub mod server;

use std::{
    convert::Infallible,
    fmt::Write as _,
    future::{Ready, ready},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header::AUTHORIZATION};
use http_body_util::BodyExt;
use tower::{Layer, Service, ServiceExt, util::BoxCloneSyncService};
use tower_api_key::{
    Authenticator, Consumer,
    auth::{Builder, Rejection, RejectionKind},
    clock::ManualClock,
    key::{KeyFormat, KeyHash},
    manage::{Expiry, Issued, KeyIssuer, NewKey},
    record::KeyRecord,
    store::{KeyStore, ManageKeys, MemoryKeyStore, StoreError, port::UsageBatch},
};

use crate::raw_store::ByHand as _;

pub const PREFIX: &str = "sk_test_";
pub const SECOND: Duration = Duration::from_secs(1);
pub const MILLI: Duration = Duration::from_millis(1);

/// The challenges of the default realm.
pub const MISSING: &str = r#"Bearer realm="api""#;
/// The challenge for a key in `X-Api-Key`.
pub const MISSING_IN_HEADER: &str = r#"ApiKey realm="api", header="x-api-key""#;
pub const SEVERAL_KEYS: &str = r#"Bearer realm="api", error="invalid_request", error_description="The request has more than one API key: send exactly one, as `Authorization: Bearer <key>`.""#;
pub const WRONG_CHARACTERS: &str = r#"Bearer realm="api", error="invalid_request", error_description="The API key has characters in or around it that no key has: send it as `Authorization: Bearer <key>`, without quotes or spaces.""#;
pub const INVALID_TOKEN: &str =
    r#"Bearer realm="api", error="invalid_token", error_description="The API key is not valid""#;

pub fn format() -> KeyFormat {
    KeyFormat::new(PREFIX).unwrap()
}

/// The keys of a service. Its clock stands still.
#[derive(Clone)]
pub struct Keys {
    pub clock: ManualClock,
    pub store: CountingStore,
}

impl Keys {
    pub fn new() -> Self {
        let clock = ManualClock::default();
        let memory = MemoryKeyStore::with_clock(clock.clone());
        Self { store: CountingStore { memory, queries: Arc::default() }, clock }
    }

    pub fn builder(&self) -> Builder {
        Authenticator::builder(self.store.clone(), format()).clock(self.clock.clone())
    }

    pub fn auth(&self) -> Authenticator {
        self.builder().build().0
    }

    pub async fn issue(&self, new: NewKey) -> Issued {
        let issuer = KeyIssuer::new(self.store.memory.clone(), format());
        issuer.clock(self.clock.clone()).issue(new).await.unwrap()
    }

    /// A key of `acme` without scopes, expiry and limits.
    pub async fn key(&self) -> String {
        text(&self.issue(NewKey::new("acme", Expiry::Never)).await)
    }

    pub async fn change(&self, issued: &Issued, change: impl FnOnce(&mut KeyRecord)) {
        let mut record = self.store.memory.get(issued.record.id).await.unwrap().unwrap();
        change(&mut record);
        self.store.memory.update(&record).await.unwrap();
    }

    pub async fn revoke(&self, issued: &Issued) {
        self.store.memory.revoke(issued.record.id, None).await.unwrap().unwrap();
    }

    pub fn queries(&self) -> usize {
        self.store.queries.load(Ordering::SeqCst)
    }
}

/// A well-formed key that no store knows.
pub fn unknown_key() -> String {
    format().generate().unwrap().expose_secret().to_owned()
}

pub fn text(issued: &Issued) -> String {
    issued.key.expose_secret().to_owned()
}

/// Counts look-ups.
#[derive(Clone)]
pub struct CountingStore {
    pub memory: MemoryKeyStore,
    queries: Arc<AtomicUsize>,
}

impl KeyStore for CountingStore {
    async fn find(&self, hash: &KeyHash) -> Result<Option<KeyRecord>, StoreError> {
        self.queries.fetch_add(1, Ordering::SeqCst);
        self.memory.find(hash).await
    }

    async fn record_usage(&self, batch: &UsageBatch) -> Result<(), StoreError> {
        self.memory.record_usage(batch).await
    }
}

/// A handler behind a layer.
#[derive(Clone)]
pub struct App {
    service: BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>,
    calls: Arc<AtomicUsize>,
}

impl App {
    pub fn new<L>(layer: L) -> Self
    where
        L: Layer<Handler>,
        L::Service: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
        L::Service: Clone + Send + Sync + 'static,
        <L::Service as Service<Request<Body>>>::Future: Send,
    {
        let handler = Handler::default();
        let calls = Arc::clone(&handler.calls);
        Self { service: BoxCloneSyncService::new(layer.layer(handler)), calls }
    }

    pub async fn send(&self, request: Request<Body>) -> Answer {
        send(self.service.clone(), request).await
    }

    /// `GET` with `Authorization: Bearer key`.
    pub async fn get(&self, key: &str) -> Answer {
        self.send(with_key(key)).await
    }

    /// `GET` with this one `Authorization` header.
    pub async fn get_with(&self, authorization: impl AsRef<[u8]>) -> Answer {
        self.send(with_authorization([authorization])).await
    }

    /// How many times the handler was called.
    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

/// Greets the consumer and counts calls.
#[derive(Clone, Debug, Default)]
pub struct Handler {
    pub calls: Arc<AtomicUsize>,
}

impl Service<Request<Body>> for Handler {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let consumer = request.extensions().get().map_or("stranger", Consumer::id);
        ready(Ok(Response::new(Body::from(format!("hello {consumer}")))))
    }
}

pub fn get(uri: &str) -> Request<Body> {
    Request::get(uri).body(Body::empty()).unwrap()
}

pub fn with_key(key: &str) -> Request<Body> {
    with_authorization([format!("Bearer {key}")])
}

/// One `Authorization` header for each value.
pub fn with_authorization<V: AsRef<[u8]>>(values: impl IntoIterator<Item = V>) -> Request<Body> {
    let mut request = get("/");
    for value in values {
        let value = http::HeaderValue::from_bytes(value.as_ref()).unwrap();
        request.headers_mut().append(AUTHORIZATION, value);
    }
    request
}

pub async fn send<S, B>(service: S, request: Request<B>) -> Answer
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
{
    let Ok(response) = service.oneshot(request).await;
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Answer::new(parts, body)
}

/// A response that has arrived completely.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// The rejection in the response's extensions, which only the service sees.
    pub rejection: Option<Rejection>,
}

impl Answer {
    pub fn new(parts: http::response::Parts, body: Bytes) -> Self {
        let rejection = parts.extensions.get().cloned();
        Self { status: parts.status, headers: parts.headers, body, rejection }
    }

    pub fn kind(&self) -> Option<RejectionKind> {
        self.rejection.as_ref().map(Rejection::kind)
    }

    /// The value of a header that occurs at most once.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.get_all(name).iter();
        let value = values.next().map(|value| value.to_str().unwrap());
        assert_eq!(values.next(), None, "`{name}` comes more than once");
        value
    }

    pub fn challenge(&self) -> Option<&str> {
        self.header("www-authenticate")
    }

    /// Whether the challenge says `invalid_request`, for whatever mistake.
    pub fn is_invalid_request(&self) -> bool {
        self.is_invalid_request_of(r#"Bearer realm="api""#)
    }

    /// The same where another scheme is asked for first.
    pub fn is_invalid_request_of(&self, first: &str) -> bool {
        let prefix = format!(r#"{first}, error="invalid_request", error_description=""#);
        self.challenge().is_some_and(|challenge| challenge.starts_with(&prefix))
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// Status, headers in order and body: everything by which a client could tell two responses
    /// apart.
    pub fn wire(&self) -> String {
        let mut wire = format!("{}\n", self.status);
        for (name, value) in &self.headers {
            writeln!(wire, "{name}: {}", value.to_str().unwrap()).unwrap();
        }
        wire + "\n" + self.text()
    }

    pub fn rate_limit_headers(&self) -> Vec<&str> {
        let names = self.headers.keys().map(http::HeaderName::as_str);
        names.filter(|name| name.contains("ratelimit")).collect()
    }
}
