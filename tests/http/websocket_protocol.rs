//! A key in `Sec-WebSocket-Protocol`, where a page can put one: the list as clients and proxies write
//! it, and what the handler gets.

use std::sync::{Arc, Mutex};

use axum::{Router, body::Body, extract::Request, response::Response, routing::any};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
    header::{AUTHORIZATION, CONNECTION, ORIGIN, SEC_WEBSOCKET_PROTOCOL, UPGRADE},
    request::Parts,
};
use tower_api_key::{
    ApiKeyLayer, RequireScope,
    auth::{Rejection, RejectionKind},
    manage::{Expiry, NewKey},
    rate_limit::Quota,
    record::WebOrigins,
};

use crate::app::{Answer, App, Keys, send, text, unknown_key};

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const FORM: &str = "`Authorization: Bearer <key>` or `Sec-WebSocket-Protocol: bearer, <key>, \
                    <protocol>` of a WebSocket handshake";

/// A request with the header in these lines.
fn offering<L: AsRef<str>>(method: Method, lines: impl IntoIterator<Item = L>) -> Request {
    let mut request = crate::app::get("/");
    *request.method_mut() = method;
    for line in lines {
        let line = HeaderValue::from_str(line.as_ref()).unwrap();
        request.headers_mut().append(SEC_WEBSOCKET_PROTOCOL, line);
    }
    request
}

/// The handshake of HTTP/1.1.
fn handshake<L: AsRef<str>>(lines: impl IntoIterator<Item = L>) -> Request {
    let mut request = offering(Method::GET, lines);
    request.headers_mut().insert(CONNECTION, HeaderValue::from_static("keep-alive, Upgrade"));
    request.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
    request
}

fn with(mut request: Request, name: HeaderName, value: &str) -> Request {
    request.headers_mut().append(name, HeaderValue::from_str(value).unwrap());
    request
}

fn layer(keys: &Keys) -> ApiKeyLayer {
    ApiKeyLayer::new(keys.auth()).also_websocket_protocol()
}

/// Answers with the header as the handler gets it: its lines, each after `|`. In a header, as the
/// response to `CONNECT` has no body.
async fn lines(request: Request) -> [(&'static str, String); 1] {
    let lines = request.headers().get_all(SEC_WEBSOCKET_PROTOCOL).iter();
    [("x-lines", lines.map(|line| format!("|{}", line.to_str().unwrap())).collect())]
}

fn app(layer: ApiKeyLayer) -> Router {
    Router::new().route("/", any(lines)).layer(layer)
}

#[track_caller]
fn is_advised(answer: &Answer, detail: &str) {
    assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{}", answer.wire());
    assert_eq!(answer.json()["detail"], detail);
    assert!(answer.is_invalid_request());
}

#[tokio::test]
async fn the_key_after_bearer_is_read_and_the_handler_gets_the_other_protocols() {
    let keys = Keys::new();
    let (app, key) = (app(layer(&keys)), keys.key().await);
    let cases: &[(&[&str], &str)] = &[
        (&["bearer, KEY, chat.v1"], "|chat.v1"),
        (&["bearer,KEY,chat.v1,chat.v2"], "|chat.v1, chat.v2"),
        (&["chat.v2, chat.v1, bearer, KEY"], "|chat.v2, chat.v1"),
        (&["chat.v2,\tbearer , KEY  ,chat.v1"], "|chat.v2, chat.v1"),
        // The scheme of `Authorization` may be written in any case, too.
        (&["Bearer, KEY, chat.v1"], "|chat.v1"),
        (&["BEARER, KEY, chat.v1"], "|chat.v1"),
        // Empty elements do not count (RFC 9110 §5.6.1.2).
        (&[", ,bearer,, KEY,\t,chat.v1,"], "|chat.v1"),
        (&["", "bearer, KEY", "", "chat.v1", ""], "|chat.v1"),
        // Several lines are one list, wherever they are cut.
        (&["bearer, KEY", "chat.v1", "chat.v2"], "|chat.v1, chat.v2"),
        (&["bearer", "KEY", "chat.v1"], "|chat.v1"),
        (&["chat.v2, bearer", "KEY, chat.v1"], "|chat.v2, chat.v1"),
        // Names that begin or end like it are others.
        (&["bearer2, xbearer, bearer, KEY, bearer.x"], "|bearer2, xbearer, bearer.x"),
    ];
    for (offered, expected) in cases {
        let offered: Vec<_> = offered.iter().map(|line| line.replace("KEY", &key)).collect();
        let connect = offering(Method::CONNECT, &offered);
        for request in [handshake(&offered), connect] {
            let answer = send(app.clone(), request).await;
            assert_eq!(answer.header("x-lines"), Some(*expected), "{offered:?}");
            let vary: Vec<_> = answer.headers.get_all("vary").iter().collect();
            assert_eq!(vary, ["Authorization", "sec-websocket-protocol"]);
        }
    }
}

#[tokio::test]
async fn a_list_with_a_mistake_reaches_no_handler_and_is_told_of_it() {
    let keys = Keys::new();
    let (key, other) = (keys.key().await, keys.key().await);
    let several = format!("The request has more than one API key: send exactly one, as {FORM}.");
    let twice = format!("`Bearer` comes twice: send the API key as {FORM}.");
    let bare = format!("The API key has no `Bearer` before it: send it as {FORM}.");
    let alone = format!(
        "The WebSocket handshake offers no protocol besides the API key, so that none can be \
         selected: send it as {FORM}."
    );
    let cases: &[(&[&str], &str)] = &[
        (&["bearer, KEY, bearer, OTHER, chat.v1"], &twice),
        (&["bearer, KEY, chat.v1", "Bearer, KEY"], &twice),
        (&["bearer, bearer, KEY, chat.v1"], &twice),
        (&["bearer, KEY, chat.v1, bearer"], &twice),
        (&["bearer, bearer"], &twice),
        (&["bearer, KEY, OTHER, chat.v1"], &several),
        (&["OTHER, bearer, KEY, chat.v1"], &several),
        (&["bearer, chat.v1, KEY"], &several),
        (&["KEY, chat.v1"], &bare),
        (&["chat.v1", "KEY"], &bare),
        (&["KEY, bearer"], &bare),
        (&["bearer, KEY"], &alone),
        (&["bearer", ", KEY,"], &alone),
    ];
    for optional in [false, true] {
        let app = App::new(layer(&keys).optional(optional));
        for (offered, detail) in cases {
            let line = |line: &&str| line.replace("KEY", &key).replace("OTHER", &other);
            let offered: Vec<_> = offered.iter().map(line).collect();
            is_advised(&app.send(handshake(&offered)).await, detail);
            is_advised(&app.send(offering(Method::CONNECT, &offered)).await, detail);
        }
        assert_eq!((app.calls(), keys.queries()), (0, 0));
    }
}

#[tokio::test]
async fn a_key_here_and_in_another_header_is_two() {
    let keys = Keys::new();
    let key = keys.key().await;
    let app = App::new(layer(&keys).also_header(X_API_KEY));
    let form = format!("{FORM} or `x-api-key: <key>`");
    let several = format!("The request has more than one API key: send exactly one, as {form}.");
    let bearer = format!("Bearer {key}");
    for offered in [
        format!("bearer, {key}, chat.v1"),
        format!("bearer, {key}"),
        format!("bearer, {}, chat.v1", unknown_key()),
        format!("{key}, chat.v1"),
        "bearer, bearer".to_owned(),
    ] {
        let here = || handshake([&offered]);
        is_advised(&app.send(with(here(), AUTHORIZATION, &bearer)).await, &several);
    }
    let here = handshake([format!("bearer, {key}, chat.v1")]);
    is_advised(&app.send(with(here, X_API_KEY, &key)).await, &several);
    assert_eq!((app.calls(), keys.queries()), (0, 0));

    // A key in `Authorization` alone opens a WebSocket as before.
    for offered in [&["chat.v1"][..], &["chat.v1, bearer"], &[]] {
        let answer = app.send(with(handshake(offered), AUTHORIZATION, &bearer)).await;
        assert_eq!(answer.status, 200, "{offered:?}");
    }
}

#[tokio::test]
async fn without_a_key_the_challenge_and_the_advice_name_this_form() {
    let keys = Keys::new();
    for offered in [&["chat.v1"][..], &["bearer"], &["chat.v1, bearer"], &[]] {
        let answer = App::new(layer(&keys)).send(handshake(offered)).await;
        assert_eq!(answer.kind(), Some(RejectionKind::Missing), "{offered:?}");
        assert_eq!(answer.json()["detail"], format!("Send an API key as {FORM}."));
        assert_eq!(answer.challenge(), Some(crate::app::MISSING));
        let optional = app(layer(&keys).optional(true));
        let answer = send(optional, handshake(offered)).await;
        let expected: String = offered.iter().map(|line| format!("|{line}")).collect();
        assert_eq!(answer.header("x-lines"), Some(&*expected));
    }
}

#[tokio::test]
async fn a_wrong_key_is_answered_as_in_the_other_header() {
    let keys = Keys::new();
    let revoked = keys.issue(NewKey::new("acme", Expiry::Never)).await;
    keys.revoke(&revoked).await;
    let app = App::new(layer(&keys));
    let expected = app.get(&unknown_key()).await;
    assert_eq!(expected.status, StatusCode::UNAUTHORIZED);
    for key in [unknown_key(), text(&revoked), "undefined".to_owned(), "sk_test_x".to_owned()] {
        let answer = app.send(handshake([format!("bearer, {key}, chat.v1")])).await;
        assert_eq!(answer.wire(), expected.wire(), "{key}");
    }
    let jwt = "bearer, eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.c2ln, chat.v1";
    let answer = app.send(handshake([jwt])).await;
    let detail = format!("This is a JSON Web Token, not an API key: send a key as {FORM}.");
    assert_eq!((answer.status.as_u16(), &answer.json()["detail"]), (401, &detail.into()));
    let quoted = format!("bearer, \"{}\", chat.v1", unknown_key());
    assert!(app.send(handshake([quoted])).await.is_invalid_request());
    assert_eq!(app.calls(), 0);
}

#[tokio::test]
async fn a_request_that_is_no_handshake_is_told_that_the_header_is_not_read() {
    let keys = Keys::new();
    let key = keys.key().await;
    let pair = [format!("bearer, {key}, chat.v1")];
    let upgrade = |value| with(offering(Method::GET, &pair), UPGRADE, value);
    let post = || with(offering(Method::POST, &pair), UPGRADE, "websocket");
    let detail = format!("The API key is in a header that is not read: send it as {FORM}.");
    for optional in [false, true] {
        let app = App::new(layer(&keys).optional(optional));
        for request in [offering(Method::GET, &pair), upgrade("h2c"), upgrade("websocket2"), post()]
        {
            is_advised(&app.send(request).await, &detail);
        }
        assert_eq!((app.calls(), keys.queries()), (0, 0));
    }
    let app = App::new(layer(&keys));
    for value in ["WebSocket", "h2c, websocket"] {
        assert_eq!(app.send(upgrade(value)).await.status, 200, "{value}");
    }
}

#[tokio::test]
async fn a_layer_that_was_not_told_to_reads_no_key_here() {
    let keys = Keys::new();
    let key = keys.key().await;
    let detail = "The API key is in a header that is not read: send it as `Authorization: Bearer \
                  <key>`.";
    for optional in [false, true] {
        let layer = || ApiKeyLayer::new(keys.auth()).optional(optional);
        let app = App::new(layer());
        for line in [format!("bearer, {key}, chat.v1"), format!("chat.v1, {key}")] {
            is_advised(&app.send(handshake([line])).await, detail);
        }
        assert_eq!((app.calls(), keys.queries()), (0, 0));
        assert_eq!(app.get("").await.header("vary"), Some("Authorization"));

        let left = App::new(layer().leave_header(SEC_WEBSOCKET_PROTOCOL));
        let answer = left.send(handshake([format!("bearer, {key}, chat.v1")])).await;
        assert_eq!(answer.status, if optional { 200 } else { 401 });
    }
    // Under its own name, it is the same setting.
    let only = ApiKeyLayer::new(keys.auth()).only_header(SEC_WEBSOCKET_PROTOCOL);
    let answer = send(app(only), handshake([format!("bearer, {key}, chat.v1")])).await;
    assert_eq!(answer.header("x-lines"), Some("|chat.v1"));
    assert_eq!(answer.header("vary"), Some("sec-websocket-protocol"));
}

#[tokio::test]
async fn a_key_that_stays_in_the_request_is_sensitive_in_each_line() {
    let keys = Keys::new();
    let key = keys.key().await;
    let seen = async |layer: ApiKeyLayer| {
        let seen = Arc::new(Mutex::new(HeaderMap::new()));
        let sees = Arc::clone(&seen);
        let handler = async move |request: Request| {
            *sees.lock().unwrap() = request.headers().clone();
        };
        let app = Router::new().route("/", any(handler)).layer(layer);
        let lines = ["chat.v1".to_owned(), "bearer".to_owned(), key.clone()];
        assert_eq!(send(app, handshake(lines)).await.status, 200);
        let seen = seen.lock().unwrap().clone();
        assert!(!format!("{seen:?}").contains(&key), "{seen:?}");
        seen
    };
    for layer in [layer(&keys).keep_credential(true), layer(&keys).shadow(true)] {
        let headers = seen(layer).await;
        let kept: Vec<_> = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().collect();
        assert_eq!(kept, ["chat.v1", "bearer", &key]);
        assert!(kept.iter().all(|line| line.is_sensitive()));
    }
    assert_eq!(seen(layer(&keys)).await[SEC_WEBSOCKET_PROTOCOL], "chat.v1");
}

#[tokio::test]
async fn a_request_that_another_layer_admitted_is_not_charged_again() {
    let keys = Keys::new();
    let (auth, _) = keys.builder().default_rate_limits(Quota::per_minute(10).unwrap()).build();
    let key = keys.key().await;
    let layer = || ApiKeyLayer::new(auth.clone()).also_websocket_protocol();
    for (left, outer, inner) in [
        (9, layer(), layer()),
        (8, layer().keep_credential(true), layer()),
        (7, layer().keep_credential(true), layer().keep_credential(true)),
    ] {
        let app = App::new((outer, inner));
        let answer = app.send(handshake([format!("bearer, {key}, chat.v1")])).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (200, "hello acme"));
        let ratelimit = answer.header("ratelimit").unwrap();
        assert!(ratelimit.starts_with(&format!(r#""minute";r={left};"#)), "{ratelimit}");
    }
    assert_eq!(keys.queries(), 1);
}

#[tokio::test]
async fn a_renderer_of_rejections_gets_no_key() {
    let keys = Keys::new();
    let key = keys.key().await;
    let render = |_: &Rejection, parts: &Parts| Response::new(Body::from(format!("{parts:?}")));
    let refused = unknown_key();
    for (layer, key, lines) in [
        (layer(&keys), &refused, format!("bearer, {refused}, chat.v1")),
        (layer(&keys), &key, format!("bearer, {key}")),
        (ApiKeyLayer::new(keys.auth()), &key, format!("bearer, {key}, chat.v1")),
    ] {
        let app = App::new(layer.render_rejections(render));
        let answer = app.send(handshake([lines])).await;
        assert!(answer.text().contains("Parts"), "{}", answer.text());
        assert!(!answer.text().contains(key.as_str()), "{}", answer.text());
    }
    // What is inside rejects a request whose key has been read.
    let scoped = RequireScope::one("a").unwrap().render_rejections(render);
    for layer in [layer(&keys), layer(&keys).keep_credential(true)] {
        let app = App::new((layer, scoped.clone()));
        let answer = app.send(handshake([format!("bearer, {key}, chat.v1")])).await;
        assert_eq!((answer.kind(), app.calls()), (Some(RejectionKind::InsufficientScope), 0));
        assert!(!answer.text().contains(&key), "{}", answer.text());
    }
}

#[tokio::test]
async fn a_publishable_key_works_from_its_origins() {
    let keys = Keys::new();
    let app = App::new(layer(&keys));
    let origins = WebOrigins::parse(["https://shop.example"]).unwrap();
    let new = NewKey::new("acme", Expiry::Never).publishable(origins);
    let line = format!("bearer, {}, chat.v1", text(&keys.issue(new).await));
    let from = |origin| with(handshake([&line]), ORIGIN, origin);
    assert_eq!(app.send(from("https://shop.example")).await.status, 200);
    let elsewhere = app.send(from("https://attacker.example")).await;
    assert_eq!(elsewhere.kind(), Some(RejectionKind::OriginNotAllowed));
    let nowhere = app.send(handshake([&line])).await;
    assert_eq!(nowhere.kind(), Some(RejectionKind::OriginNotAllowed));
    assert_eq!(app.calls(), 1);
}
