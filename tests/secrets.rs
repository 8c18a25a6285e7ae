//! No key appears in a log, a panic, an error, a `Debug` output or a response.

#![cfg(test)]
#![cfg(all(feature = "axum", feature = "test-util", feature = "tracing"))]

#[path = "support/app/mod.rs"]
mod app;
#[cfg(all(
    feature = "admin",
    feature = "leaks",
    feature = "legacy-hashes",
    feature = "postgres",
    feature = "redis",
    feature = "sqlite",
    feature = "webhooks"
))]
#[path = "support/public_types/mod.rs"]
mod public_types;
#[path = "support/raw_store/mod.rs"]
mod raw_store;
#[cfg(all(
    feature = "admin",
    feature = "leaks",
    feature = "legacy-hashes",
    feature = "postgres",
    feature = "redis",
    feature = "sqlite",
    feature = "webhooks"
))]
#[path = "support/servers/mod.rs"]
mod servers;

use std::{
    error::Error,
    fmt,
    io::Write,
    panic,
    sync::{Arc, Mutex, Once, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{FromRequestParts, Request},
    routing::get,
};
use http::{HeaderName, HeaderValue, header};
use tower::{Layer, Service, ServiceBuilder, ServiceExt};
use tower_api_key::{
    ApiKeyLayer, Authenticator, Consumer, RequireScope,
    auth::{Attempt, CachePolicy, Event, RejectionKind},
    clock::{Clock, ManualClock, SystemClock},
    key::{
        AcceptedFormat, Alphabet, ApiKey, EntropySource, ImportedFormat, KeyHash, PresentedKey,
        RngError, SystemEntropy,
    },
    layer::{ProblemJson, RateLimitHeaders, StatusOnly},
    manage::{Actor, Expiry, Issued, KeyImport, KeyIssuer, NewKey, Rotated, Rotation},
    rate_limit::{Decision, LocalRateLimiter, Quota, port::Subject},
    record::{KeyRecord, Metadata, Scope, Scopes},
    store::{
        EventQuery, KeyQuery, KeyStore, ManageKeys, MemoryKeyStore, StoreError, StoreErrorKind,
        port::Usage,
    },
};
use tower_http::{
    catch_panic::CatchPanicLayer,
    sensitive_headers::SetSensitiveRequestHeadersLayer,
    trace::{DefaultMakeSpan, DefaultOnRequest, DefaultOnResponse, TraceLayer},
};
use tracing::Level;
use tracing_subscriber::fmt::{MakeWriter, format::FmtSpan};

use self::app::{Keys, PREFIX, format, send, text, unknown_key, with_authorization, with_key};

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Whether `text` contains any eight characters of the secret part of `key`, or its whole hash.
fn leaks(text: &str, key: &str) -> bool {
    let secret = &key[PREFIX.len()..key.len() - 4];
    let mut pieces = (0..=secret.len() - 8).map(|at| &secret[at..at + 8]);
    let Ok(presented) = format().parse(key.as_bytes()) else {
        return pieces.any(|piece| text.contains(piece));
    };
    let hash = presented.hash();
    let hex: String = hash.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let decimal = format!("{:?}", &hash.as_bytes()[8..16]);
    let decimal = decimal.trim_matches(['[', ']']);
    pieces.any(|piece| text.contains(piece))
        || text.to_lowercase().contains(&hex[8..24])
        || text.contains(decimal)
}

#[test]
fn a_leak_is_noticed() {
    let key = unknown_key();
    let hash = format().parse(key.as_bytes()).unwrap().hash();
    let hex: String = hash.as_bytes().iter().map(|byte| format!("{byte:02X}")).collect();
    for leak in [&key, &key[20..30], &hex, &format!("{:?}", hash.as_bytes())] {
        assert!(leaks(&format!("<{leak}>"), &key), "{leak}");
    }
    let harmless = format!("{PREFIX} {} {hash:?}", &key[key.len() - 4..]);
    assert!(!leaks(&harmless, &key));
}

/// Fails to compile if a type has a trait that would expose its secret.
macro_rules! assert_not_implemented {
    ($type:ty: $($trait:path),+) => {
        $(const _: fn() = || {
            trait AmbiguousIfImplemented<A> {
                fn method() {}
            }
            impl<T: ?Sized> AmbiguousIfImplemented<()> for T {}
            struct Implemented;
            impl<T: ?Sized + $trait> AmbiguousIfImplemented<Implemented> for T {}
            let _ = <$type as AmbiguousIfImplemented<_>>::method;
        };)+
    };
}

assert_not_implemented!(ApiKey: fmt::Display, Clone, PartialEq, serde::Serialize, AsRef<str>, AsRef<[u8]>);
assert_not_implemented!(PresentedKey<'static>: fmt::Display, PartialEq, serde::Serialize, AsRef<[u8]>);
assert_not_implemented!(Issued: fmt::Display, Clone, serde::Serialize);
assert_not_implemented!(Rotated: fmt::Display, Clone, serde::Serialize);
assert_not_implemented!(KeyHash: fmt::Display, fmt::LowerHex, serde::Serialize);
assert_not_implemented!(KeyRecord: serde::Serialize);

/// An error whose `Debug` shows more than its `Display`, like a database driver's.
struct Driver(String);

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("duplicate key")
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key (key_hash)=({}) already exists", self.0)
    }
}

impl Error for Driver {}

/// A store whose driver's errors hold a secret.
#[derive(Clone, Debug)]
struct Leaky(String);

impl Leaky {
    fn error(&self) -> StoreError {
        StoreError::new(StoreErrorKind::Other).because(Driver(self.0.clone()))
    }
}

impl KeyStore for Leaky {
    async fn find(&self, _: &KeyHash) -> Result<Option<KeyRecord>, StoreError> {
        Err(self.error())
    }
}

mod debug_and_display {
    use super::*;

    fn both<T: fmt::Debug + fmt::Display>(value: T) -> String {
        format!("{value} {value:?} {value:#?}")
    }

    fn debug<T: fmt::Debug>(value: T) -> String {
        format!("{value:?} {value:#?}")
    }

    #[tokio::test]
    async fn of_keys_and_their_issue() {
        let keys = Keys::new();
        let issued = keys.issue(NewKey::new("acme", Expiry::Never).name("nightly")).await;
        let key = text(&issued);
        let presented = format().parse(key.as_bytes()).unwrap();
        let issuer = KeyIssuer::new(keys.store.memory.clone(), format());
        let imported = ImportedFormat::new("", Alphabet::Hex, 64).unwrap();
        let values = [
            debug(&issued.key),
            debug(presented),
            debug(issued.key.hash()),
            debug(&issued.record),
            debug(&issued),
            debug(&issuer),
            debug(format()),
            debug(AcceptedFormat::from(imported)),
            debug(NewKey::new("acme", Expiry::Never).scopes(Scopes::parse(["a"]).unwrap())),
            both(format().parse(&key.as_bytes()[1..]).unwrap_err()),
            both(key.parse::<KeyHash>().unwrap_err()),
            both(tower_api_key::key::KeyFormat::new(&key).unwrap_err()),
            both(Scope::new(format!("{key} {key}")).unwrap_err()),
            both(Metadata::from_json(&key).unwrap_err()),
            both(key.parse::<tower_api_key::record::KeyId>().unwrap_err()),
            both(Quota::per_second(1).unwrap().named(format!("{key} ")).unwrap_err()),
            both(issued.record.id),
            debug(Usage::new(issued.record.id, keys.clock.now())),
            debug(&keys.store.memory),
            debug(keys.store.memory.find(&issued.record.key_hash).await),
        ];
        for value in values {
            assert!(!leaks(&value, &key), "{value}");
        }
    }

    #[tokio::test]
    async fn of_a_generator_that_fails() {
        struct Broken;

        impl EntropySource for Broken {
            fn fill(&self, buffer: &mut [u8]) -> Result<(), RngError> {
                SystemEntropy.fill(buffer)?;
                Err(RngError::new("no entropy"))
            }
        }

        let store = MemoryKeyStore::new();
        let issuer = KeyIssuer::new(store, format()).entropy(Broken);
        let error = issuer.issue(NewKey::new("acme", Expiry::Never)).await.unwrap_err();
        let chain = format!("{error} {error:?} {:?}", error.source().map(ToString::to_string));
        assert!(chain.contains("no key was issued") && chain.contains("no entropy"), "{chain}");
        assert!(!chain.contains(PREFIX), "{chain}");
    }

    #[tokio::test]
    async fn of_the_whole_life_of_a_key() {
        let store = MemoryKeyStore::new();
        let issuer = KeyIssuer::new(store.clone(), format());
        let new = || NewKey::new("acme", Expiry::Never).idempotency_key("one");
        let issued = issuer.issue(new()).await.unwrap();
        let mut heard = format!("{issuer:?} {:?} {issued:?}", new());
        let caller = issuer.by(Actor::key(&Consumer::from(issued.record.clone())));
        let rotated = issuer.rotate(issued.record.id, Rotation::new()).await.unwrap();
        let imported = KeyImport::new(issued.key.hash(), new());
        heard += &format!("{rotated:?} {caller:?} {imported:?}");
        let beyond = NewKey::new("acme", Expiry::Never).scopes(Scopes::parse(["a"]).unwrap());
        for error in [
            issuer.issue(new()).await.unwrap_err(),
            issuer.rotate(issued.record.id, Rotation::new()).await.unwrap_err(),
            caller.issue(beyond).await.unwrap_err(),
            caller.import(vec![imported.clone(), imported]).await.unwrap_err(),
        ] {
            heard += &format!("{error} {error:?}");
        }
        issuer.revoke(issued.record.id, None).await.unwrap();
        heard += &format!("{:?}", issuer.get(issued.record.id).await.unwrap());
        heard += &format!("{:?}", issuer.list(&KeyQuery::new()).await.unwrap());
        let audit = issuer.events(&EventQuery::new()).await.unwrap();
        assert_eq!(audit.events.len(), 6, "{audit:?}");
        heard += &format!("{audit:?} {:?}", store.begin().await.unwrap());
        for key in [&issued.key, &rotated.key] {
            assert!(!leaks(&heard, key.expose_secret()), "{heard}");
        }
    }

    #[tokio::test]
    async fn of_the_decision_and_all_that_it_is_made_of() {
        let keys = Keys::new();
        let builder = keys.builder().default_rate_limits(Quota::per_hour(1).unwrap());
        let mut values = vec![debug(&builder)];
        let (auth, worker) = builder.build();
        let issued = keys.issue(NewKey::new("acme", Expiry::Never)).await;
        let key = text(&issued);
        let lookup = auth.check(key.as_bytes()).try_now();
        assert!(matches!(lookup, Attempt::Pending(_)));
        values.push(debug(&lookup));
        let Attempt::Pending(lookup) = lookup else { panic!() };
        values.push(debug(&lookup));
        let admission = lookup.await.unwrap();
        values.extend([
            debug(&admission),
            debug(admission.rate_limit_status()),
            debug(admission.consumer()),
        ]);
        let limited = auth.check(key.as_bytes()).try_now();
        assert!(matches!(limited, Attempt::Reject(_)));
        values.push(debug(&limited));
        let Attempt::Reject(limited) = limited else { panic!() };
        values.extend([
            both(&limited),
            debug(limited.rate_limit_status()),
            debug(&auth),
            debug(&worker),
        ]);
        values.extend([debug(CachePolicy::default()), debug(LocalRateLimiter::new())]);
        values.push(debug(Subject::of_key("acme", issued.record.id.as_u128())));
        values.push(debug(Decision::deny(Duration::MAX)));
        values.push(debug((SystemClock::new(), ManualClock::default())));
        for value in values {
            assert!(!leaks(&value, &key), "{value}");
        }
    }

    #[tokio::test]
    async fn of_the_layer_and_its_parts() {
        let keys = Keys::new();
        let key = keys.key().await;
        let layer = ApiKeyLayer::new(keys.auth()).also_header(X_API_KEY).realm("orders").unwrap();
        let mut service = layer.layer(app::Handler::default());
        let mut scoped = RequireScope::one("a").unwrap().layer(app::Handler::default());
        let mut values = vec![
            debug(&layer),
            debug(&service),
            debug(RequireScope::one("a").unwrap()),
            debug(&scoped),
            debug(scoped.call(with_key(&key))),
            debug(ProblemJson::default().danger_disclose_reason()),
            debug(StatusOnly),
            debug(RateLimitHeaders::Both),
        ];
        for key in [&key, "junk"] {
            values.push(debug(service.call(with_key(key))));
        }
        let Ok(answer) = service.oneshot(with_key(&key)).await;
        values.push(debug(answer));
        let (mut parts, _) = with_key(&key).into_parts();
        values.push(debug(Consumer::from_request_parts(&mut parts, &()).await.unwrap_err()));
        for value in values {
            assert!(!leaks(&value, &key), "{value}");
        }
    }

    #[tokio::test]
    async fn of_a_stores_error_whose_driver_says_too_much() {
        let key = unknown_key();
        let store = Leaky(key.clone());
        let error = store.error();
        let events = Sink::default();
        let observer = {
            let events = events.clone();
            move |event: &Event<'_>| writeln!(events.clone(), "{event:?}").unwrap()
        };
        let builder = Authenticator::builder(store, format()).observer(observer);
        let (auth, _) = builder.build();
        let rejection = auth.check(key.as_bytes()).await.unwrap_err();
        assert_eq!(rejection.kind(), RejectionKind::StoreUnavailable);
        for value in [both(&error), both(&rejection), events.text()] {
            assert!(value.contains("duplicate key"), "{value}");
            assert!(!leaks(&value, &key), "{value}");
        }
    }
}

/// Collects everything logged or printed in a panic.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Sink {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()).unwrap()
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Sink {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

thread_local! {
    static PANICS: Sink = Sink::default();
}

/// Also writes the panics of each thread to its sink.
fn hook_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let default = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let _ = writeln!(PANICS.with(Sink::clone), "{info} {info:?}");
            default(info);
        }));
    });
}

/// Logs everything it can read from a request, and panics with it on demand.
async fn indiscreet(request: Request) -> String {
    tracing::error!(?request, headers = ?request.headers(), extensions = ?request.extensions());
    let consumer = request.extensions().get::<Consumer>();
    tracing::error!(?consumer);
    assert_ne!(request.uri().path(), "/panic", "{request:?}");
    format!("{request:?}")
}

fn trace_layer() -> TraceLayer<
    tower_http::classify::SharedClassifier<tower_http::classify::ServerErrorsAsFailures>,
    DefaultMakeSpan,
    DefaultOnRequest,
    DefaultOnResponse,
> {
    TraceLayer::new_for_http()
        .make_span_with(DefaultMakeSpan::new().level(Level::ERROR).include_headers(true))
        .on_request(DefaultOnRequest::new().level(Level::ERROR))
        .on_response(DefaultOnResponse::new().level(Level::ERROR).include_headers(true))
}

/// A WebSocket handshake as a browser sends it.
fn handshake(key: &str) -> http::Request<Body> {
    let mut request = app::get("/");
    let headers = request.headers_mut();
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    let offered = format!("bearer, {key}, chat.v1");
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::try_from(offered).unwrap());
    request
}

/// The order in which an application applies the layers.
type Composition = fn(Router, ApiKeyLayer) -> Router;

/// Sends keys in every state through every path, and returns everything logged, printed in a panic,
/// observed or answered, with the keys that were sent.
async fn eavesdrop(compose: Composition) -> (String, Vec<String>) {
    hook_panics();
    let sink = Sink::default();
    PANICS.with(|panics| panics.0.lock().unwrap_or_else(PoisonError::into_inner).clear());
    let subscriber = tracing_subscriber::fmt()
        .json()
        .with_max_level(Level::TRACE)
        .with_span_events(FmtSpan::FULL)
        .with_writer(sink.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);

    let keys = Keys::new();
    let observer = {
        let sink = sink.clone();
        move |event: &Event<'_>| writeln!(sink.clone(), "{event:?}").unwrap()
    };
    let valid = text(&keys.issue(NewKey::new("acme", Expiry::Never)).await);
    let limited = NewKey::new("acme", Expiry::Never).rate_limits(Quota::per_hour(1).unwrap());
    let limited = text(&keys.issue(limited).await);
    let revoked = keys.issue(NewKey::new("acme", Expiry::Never)).await;
    keys.revoke(&revoked).await;
    let expired = text(&keys.issue(NewKey::new("acme", Expiry::At(keys.clock.now()))).await);
    let unknown = unknown_key();
    let flipped = if valid.ends_with('A') { "g" } else { "A" };
    let bad_checksum = format!("{}{flipped}", &valid[..valid.len() - 1]);
    let failing = unknown_key();

    let routes = || {
        Router::new()
            .route("/", get(indiscreet))
            .route("/panic", get(indiscreet))
            .route("/scope", get(indiscreet).layer(RequireScope::one("a").unwrap()))
            .layer(CatchPanicLayer::new())
    };
    let (auth, _worker) = keys.builder().observer(observer.clone()).build();
    let layer = ApiKeyLayer::new(auth).also_header(X_API_KEY).also_websocket_protocol();
    let app = compose(routes(), layer);
    let (auth, _) =
        Authenticator::builder(Leaky(failing.clone()), format()).observer(observer).build();
    let broken = compose(routes(), ApiKeyLayer::new(auth));

    let mut statuses = Vec::new();
    let mut answers = String::new();
    let mut ask = async |app: &Router, path: &str, mut request: http::Request<Body>| {
        *request.uri_mut() = path.parse().unwrap();
        let answer = send(app.clone(), request).await;
        statuses.push(answer.status.as_u16());
        answers.push_str(&answer.wire());
    };
    let revoked = text(&revoked);
    let sent = [valid, limited, revoked, expired, unknown, bad_checksum, failing];
    for key in &sent {
        for path in ["/", "/panic", "/scope"] {
            ask(&app, path, with_key(key)).await;
            let mut request = app::get("/");
            request.headers_mut().insert(X_API_KEY, HeaderValue::try_from(key).unwrap());
            ask(&app, path, request).await;
            ask(&app, path, handshake(key)).await;
        }
        let two = [format!("Bearer {key}"), format!("Bearer {key}")];
        ask(&app, "/", with_authorization([two.join(", ")])).await;
        ask(&app, "/", with_authorization(two)).await;
        ask(&app, "/", with_authorization([format!("Bearer\t{key}")])).await;
        ask(&app, "/", with_authorization([format!("Token {key}")])).await;
        ask(&broken, "/", with_key(key)).await;
        ask(&broken, "/", handshake(key)).await;
    }
    for status in [200, 400, 401, 403, 429, 500, 503] {
        assert!(statuses.contains(&status), "no answer was {status}");
    }
    let panics = PANICS.with(Sink::text);
    assert!(panics.contains("/panic"), "no panic was heard");
    let logged = sink.text();
    assert!(logged.contains("request rejected"), "the library's events were not heard");
    (logged + &panics + &answers, sent.into())
}

fn assert_discreet((heard, keys): (String, Vec<String>)) {
    for key in keys {
        let line = heard.lines().find(|line| leaks(line, &key));
        assert_eq!(line, None, "{key}");
    }
}

mod logs_and_panics {
    use super::*;

    fn sensitive() -> SetSensitiveRequestHeadersLayer {
        let headers = [header::AUTHORIZATION, X_API_KEY, header::SEC_WEBSOCKET_PROTOCOL];
        SetSensitiveRequestHeadersLayer::new(headers)
    }

    #[tokio::test]
    async fn without_a_trace_layer() {
        assert_discreet(eavesdrop(|routes, api_key| routes.layer(api_key)).await);
    }

    #[tokio::test]
    async fn with_the_trace_layer_inside() {
        assert_discreet(
            eavesdrop(|routes, api_key| routes.layer(trace_layer()).layer(api_key)).await,
        );
    }

    #[tokio::test]
    async fn with_the_trace_layer_inside_where_the_key_stays_in_the_request() {
        let compose: Composition =
            |routes, api_key| routes.layer(trace_layer()).layer(api_key.keep_credential(true));
        let (heard, keys) = eavesdrop(compose).await;
        assert!(heard.contains("Sensitive"), "the key did not stay in the request");
        assert_discreet((heard, keys));
    }

    #[tokio::test]
    async fn with_the_trace_layer_outside_and_the_headers_marked_before_it() {
        let compose: Composition = |routes, api_key| {
            let layers =
                ServiceBuilder::new().layer(sensitive()).layer(trace_layer()).layer(api_key);
            routes.layer(layers)
        };
        let (heard, keys) = eavesdrop(compose).await;
        assert!(heard.contains("Sensitive"), "the headers were not marked");
        assert_discreet((heard, keys));
    }

    /// The control: the wrong order leaks.
    #[tokio::test]
    async fn a_trace_layer_outside_sees_keys_unless_they_are_marked_before_it() {
        for compose in [
            (|routes, api_key| {
                routes.layer(ServiceBuilder::new().layer(trace_layer()).layer(api_key))
            }) as Composition,
            |routes, api_key| {
                let late =
                    ServiceBuilder::new().layer(trace_layer()).layer(sensitive()).layer(api_key);
                routes.layer(late)
            },
        ] {
            let (heard, keys) = eavesdrop(compose).await;
            for key in keys {
                assert!(
                    leaks(&heard, &key),
                    "the header is no longer logged: say so in the manual"
                );
            }
        }
    }

    #[tokio::test]
    async fn over_http_2_with_all_that_is_below_the_layer() {
        let sink = Sink::default();
        let subscriber = tracing_subscriber::fmt()
            .json()
            .with_max_level(Level::TRACE)
            .with_span_events(FmtSpan::FULL)
            .with_writer(sink.clone())
            .finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        let keys = Keys::new();
        let key = keys.key().await;
        let app = Router::new().route("/", get(indiscreet)).layer(ApiKeyLayer::new(keys.auth()));
        let address = app::server::serve(app).await;
        let unknown = unknown_key();
        for (key, name, value) in [
            (&key, header::AUTHORIZATION, format!("Bearer {key}")),
            (&unknown, header::AUTHORIZATION, format!("Bearer {unknown}")),
            (&key, header::SEC_WEBSOCKET_PROTOCOL, format!("bearer, {key}, chat.v1")),
        ] {
            let request = http::Request::get(format!("http://{address}/"))
                .header(name, value)
                .body(http_body_util::Empty::new())
                .unwrap();
            let answer = app::server::collect(app::server::http2(address, request).await);
            assert!(!leaks(&answer.await.wire(), key));
            let heard = sink.text();
            assert!(heard.contains("h2::"), "the connection was not heard");
            assert_eq!(heard.lines().find(|line| leaks(line, key)), None);
        }
    }
}
