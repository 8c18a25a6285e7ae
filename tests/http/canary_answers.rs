//! A canary key is answered, byte for byte, as an unknown key is: by every form of the layer.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::body::Body;
use http::{
    HeaderName, HeaderValue, Request, Response, StatusCode,
    header::{CONNECTION, CONTENT_TYPE, SEC_WEBSOCKET_PROTOCOL, UPGRADE},
};
use tower_api_key::{
    ApiKeyLayer, Authenticator,
    auth::{Event, RejectionKind},
    layer::{ClientAddress, PeerAddr, ProblemJson, StatusOnly},
    manage::{Expiry, NewKey},
};

use crate::app::{Answer, App, Keys, text, unknown_key, with_key};

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// A service that knows a canary key, and the answers of two instances of it.
struct Pair {
    keys: Keys,
    canary: String,
    unknown: String,
}

impl Pair {
    async fn new() -> Self {
        let keys = Keys::new();
        let canary = text(&keys.issue(NewKey::new("acme", Expiry::Never).canary()).await);
        Self { keys, canary, unknown: unknown_key() }
    }

    /// Sends each key `times` times to an app of its own, and compares the responses and the cost.
    async fn is_alike(
        &self,
        times: usize,
        app: impl Fn(Authenticator) -> App,
        request: impl Fn(&str) -> Request<Body>,
    ) -> Vec<Answer> {
        let answers = async |key: &str| {
            let (app, before) = (app(self.keys.auth()), self.keys.queries());
            let mut answers = Vec::new();
            for _ in 0..times {
                answers.push(app.send(request(key)).await);
            }
            (answers, app.calls(), self.keys.queries() - before)
        };
        let (unknown, calls, queries) = answers(&self.unknown).await;
        let (canary, canary_calls, canary_queries) = answers(&self.canary).await;
        assert_eq!((canary_calls, canary_queries), (calls, queries));
        for (at, (canary, unknown)) in canary.iter().zip(&unknown).enumerate() {
            assert_eq!(canary.wire(), unknown.wire(), "request {at}");
            // Neither does the service itself learn of it here.
            assert_eq!(canary.kind(), unknown.kind());
            let id = canary.rejection.as_ref().and_then(|rejection| rejection.key_id());
            assert_eq!(id, None);
        }
        canary
    }
}

#[tokio::test]
async fn a_canary_key_is_answered_as_an_unknown_one() {
    let pair = Pair::new().await;
    let answers = pair.is_alike(3, |auth| App::new(ApiKeyLayer::new(auth)), with_key).await;
    assert!(answers.iter().all(|answer| answer.status == StatusCode::UNAUTHORIZED));
    assert!(answers.iter().all(|answer| answer.kind() == Some(RejectionKind::Unknown)));

    let header = |auth| App::new(ApiKeyLayer::new(auth).only_header(X_API_KEY));
    let in_header = |key: &str| {
        let mut request = crate::app::get("/");
        request.headers_mut().insert(X_API_KEY, HeaderValue::from_str(key).unwrap());
        request
    };
    pair.is_alike(3, header, in_header).await;
    pair.is_alike(3, |auth| App::new(ApiKeyLayer::new(auth).optional(true)), with_key).await;
    let status_only = |auth| App::new(ApiKeyLayer::new(auth).render_rejections(StatusOnly));
    pair.is_alike(3, status_only, with_key).await;
    let disclosing = ProblemJson::default().danger_disclose_reason();
    let disclosing = |auth| App::new(ApiKeyLayer::new(auth).render_rejections(disclosing));
    let answers = pair.is_alike(3, disclosing, with_key).await;
    assert_eq!(answers[0].json()["reason"], "unknown");
    let own = |auth| {
        App::new(ApiKeyLayer::new(auth).render_rejections(
            |rejection: &tower_api_key::auth::Rejection, _: &http::request::Parts| {
                Response::new(Body::from(format!("{rejection:?}")))
            },
        ))
    };
    pair.is_alike(3, own, with_key).await;
}

#[tokio::test]
async fn a_canary_key_is_answered_as_an_unknown_one_in_shadow_mode() {
    let pair = Pair::new().await;
    let layer = |auth| ApiKeyLayer::new(auth).shadow(true).shadow_charge(true).shadow_header(true);
    let answers = pair.is_alike(3, |auth| App::new(layer(auth)), with_key).await;
    assert!(answers.iter().all(|answer| answer.status == StatusCode::OK), "they pass");
}

#[tokio::test]
async fn a_canary_key_is_answered_as_an_unknown_one_in_a_handshake_of_a_websocket() {
    let pair = Pair::new().await;
    let handshake = |key: &str| {
        let mut request = crate::app::get("/");
        let headers = request.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        let offered = format!("bearer, {key}, chat");
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::try_from(offered).unwrap());
        request
    };
    let layer = |auth| App::new(ApiKeyLayer::new(auth).also_websocket_protocol());
    pair.is_alike(3, layer, handshake).await;
}

/// With the feature `grpc`, a response has a gRPC status; without, it is like any other.
#[tokio::test]
async fn a_canary_key_is_answered_as_an_unknown_one_to_a_grpc_client() {
    let pair = Pair::new().await;
    for content_type in ["application/grpc", "application/grpc-web+proto"] {
        let call = |key: &str| {
            let mut request = with_key(key);
            let content_type = HeaderValue::from_static(content_type);
            request.headers_mut().insert(CONTENT_TYPE, content_type);
            request
        };
        pair.is_alike(3, |auth| App::new(ApiKeyLayer::new(auth)), call).await;
    }
}

#[tokio::test]
async fn a_canary_key_counts_as_an_unknown_one_for_the_network() {
    let pair = Pair::new().await;
    let from_peer = |key: &str| {
        let mut request = with_key(key);
        request.extensions_mut().insert(PeerAddr("203.0.113.9".parse().unwrap()));
        request
    };
    let layer = |auth| App::new(ApiKeyLayer::new(auth).throttle_failures(ClientAddress::peer()));
    let answers = pair.is_alike(25, layer, from_peer).await;
    assert_eq!(answers[19].status, StatusCode::UNAUTHORIZED);
    assert_eq!(answers[20].status, StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn a_canary_key_is_unknown_to_the_observer_and_to_a_check() {
    let keys = Keys::new();
    let canary = text(&keys.issue(NewKey::new("acme", Expiry::Never).canary()).await);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&seen);
    let observer = move |event: &Event<'_>| heard.lock().unwrap().push(format!("{event:?}"));
    let (auth, worker) = keys.builder().observer(observer).build();
    drop(worker);
    let told = async |key: &str| {
        for _ in 0..2 {
            let rejection = auth.check(key.as_bytes()).await.unwrap_err();
            assert_eq!((rejection.kind(), rejection.key_id()), (RejectionKind::Unknown, None));
        }
        seen.lock().unwrap().drain(..).collect::<Vec<_>>()
    };
    let (canary, unknown) = (told(&canary).await, told(&unknown_key()).await);
    let without_times = |events: Vec<String>| {
        events.into_iter().filter(|event| !event.starts_with("Loaded")).collect::<Vec<_>>()
    };
    assert_eq!(without_times(canary), without_times(unknown));
}

/// The cache has an answer for it, so that a repeated canary key costs no more queries than a
/// repeated unknown one.
#[tokio::test]
async fn a_canary_key_is_looked_up_again_when_its_absence_is_old() {
    let pair = Pair::new().await;
    let (auth, minute) = (pair.keys.auth(), Duration::from_secs(60));
    let app = App::new(ApiKeyLayer::new(auth));
    for queries in 1..=3 {
        for _ in 0..5 {
            assert_eq!(app.get(&pair.canary).await.kind(), Some(RejectionKind::Unknown));
        }
        assert_eq!(pair.keys.queries(), queries);
        pair.keys.clock.advance(minute);
    }
}
