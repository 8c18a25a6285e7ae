//! What a client reads that sent its key in the wrong form, and that such a key reaches no handler.

use axum::{
    Router,
    body::Body,
    extract::{Extension, Request},
    routing::get,
};
use base64::Engine as _;
use http::{HeaderName, HeaderValue, StatusCode, header};
use tower::Layer as _;
use tower_api_key::{
    ApiKeyLayer, Authenticator, Consumer, RequireScope,
    auth::RejectionKind,
    key::{Alphabet, ImportedFormat, KeyFormat},
    layer::ProblemJson,
    rate_limit::Quota,
    store::MemoryKeyStore,
};

use crate::app::{
    Answer, App, Handler, Keys, MISSING, MISSING_IN_HEADER, PREFIX, send, with_authorization,
    with_key,
};

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const AS_BEARER: &str = "`Authorization: Bearer <key>`";

fn with_header(name: impl AsRef<str>, value: impl AsRef<[u8]>) -> Request {
    let mut request = crate::app::get("/");
    let name: HeaderName = name.as_ref().parse().unwrap();
    request.headers_mut().insert(name, HeaderValue::from_bytes(value.as_ref()).unwrap());
    request
}

#[track_caller]
fn assert_advised(answer: &Answer, status: u16, code: &str, detail: &str) {
    let json = answer.json();
    assert_eq!(
        (answer.status.as_u16(), json["code"].as_str(), json["detail"].as_str()),
        (status, Some(code), Some(detail)),
    );
    let advice = answer.rejection.as_ref().unwrap().advice();
    assert_eq!(advice, Some(detail));
    let challenge = answer.challenge().unwrap();
    let is_described = challenge.contains("error_description");
    assert!(!is_described || status == 401 || code == "invalid_request", "{challenge}");
}

/// [`refused_by`] a layer whose challenge is that of `Bearer`.
async fn refused(
    keys: &Keys,
    change: impl Fn(ApiKeyLayer) -> ApiKeyLayer,
    requests: Vec<Box<dyn Fn() -> Request>>,
    detail: &str,
) {
    refused_by(MISSING, keys, change, requests, detail).await;
}

/// Sends each request to a layer that requires a key and to an optional one. Both answer with
/// `detail` and the challenge `first`, and do not call their handler.
async fn refused_by(
    first: &str,
    keys: &Keys,
    change: impl Fn(ApiKeyLayer) -> ApiKeyLayer,
    requests: Vec<Box<dyn Fn() -> Request>>,
    detail: &str,
) {
    let challenge = format!(r#"{first}, error="invalid_request", error_description="{detail}""#);
    for optional in [false, true] {
        let app = App::new(change(ApiKeyLayer::new(keys.auth())).optional(optional));
        for (at, request) in requests.iter().enumerate() {
            let answer = app.send(request()).await;
            assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{at}, optional: {optional}");
            assert_advised(&answer, 400, "invalid_request", detail);
            assert_eq!(answer.challenge(), Some(&*challenge));
        }
        assert_eq!(app.calls(), 0);
    }
    assert_eq!(keys.queries(), 0);
}

fn authorizations(values: Vec<String>) -> Vec<Box<dyn Fn() -> Request>> {
    let requests = values.into_iter().map(|value| {
        let request = move || with_authorization([value.clone()]);
        Box::new(request) as Box<dyn Fn() -> Request>
    });
    requests.collect()
}

fn requests(of: Vec<(&'static str, String)>) -> Vec<Box<dyn Fn() -> Request>> {
    let requests = of.into_iter().map(|(name, value)| {
        let request = move || with_header(name, value.as_bytes());
        Box::new(request) as Box<dyn Fn() -> Request>
    });
    requests.collect()
}

fn same(layer: ApiKeyLayer) -> ApiKeyLayer {
    layer
}

#[tokio::test]
async fn a_request_without_a_key_reads_where_this_layer_looks_for_one() {
    let keys = Keys::new();
    let layer = || ApiKeyLayer::new(keys.auth());
    for (layer, form) in [
        (layer(), AS_BEARER),
        (layer().only_header(X_API_KEY), "`x-api-key: <key>`"),
        (layer().also_header(X_API_KEY), "`Authorization: Bearer <key>` or `x-api-key: <key>`"),
    ] {
        let app = App::new(layer);
        for request in [crate::app::get("/"), with_authorization(["Basic dXNlcjpwYXNz"])] {
            let answer = app.send(request).await;
            let detail = format!("Send an API key as {form}.");
            assert_advised(&answer, 401, "missing_api_key", &detail);
        }
    }
}

#[tokio::test]
async fn what_inside_an_optional_layer_requires_a_key_says_where_to_send_it() {
    async fn handler(consumer: Consumer) -> String {
        consumer.id().to_owned()
    }

    let keys = Keys::new();
    let layer = ApiKeyLayer::new(keys.auth()).only_header(X_API_KEY).optional(true);
    let scoped = get(|| async {}).layer(RequireScope::one("a").unwrap());
    let app = Router::new().route("/", get(handler)).route("/scoped", scoped).layer(layer);
    for path in ["/", "/scoped"] {
        let answer = send(app.clone(), crate::app::get(path)).await;
        let detail = "Send an API key as `x-api-key: <key>`.";
        assert_advised(&answer, 401, "missing_api_key", detail);
    }
}

#[tokio::test]
async fn bearer_without_a_key_is_no_credentials() {
    let keys = Keys::new();
    let layer = || ApiKeyLayer::new(keys.auth());
    for value in ["Bearer", "Bearer ", "bearer    ", "Bearer\t"] {
        let answer = App::new(layer()).get_with(value).await;
        let detail = format!("Send an API key as {AS_BEARER}.");
        assert_advised(&answer, 401, "missing_api_key", &detail);
        let answer = App::new(layer().optional(true)).get_with(value).await;
        assert_eq!((answer.status, answer.text()), (StatusCode::OK, "hello stranger"));
    }
}

#[tokio::test]
async fn two_keys_are_told_from_characters_that_no_key_has() {
    let keys = Keys::new();
    let key = keys.key().await;
    let several =
        format!("The request has more than one API key: send exactly one, as {AS_BEARER}.");
    let twice = vec![
        format!("Bearer {key}, Bearer {key}"),
        format!("Bearer {key}, Basic dXNlcjpwYXNz"),
        format!("Bearer {key},{key}"),
        format!("Basic dXNlcjpwYXNz, Bearer {key}"),
    ];
    refused(&keys, same, authorizations(twice), &several).await;
    let lines: Box<dyn Fn() -> Request> = {
        let value = format!("Bearer {key}");
        Box::new(move || with_authorization([&value, &value]))
    };
    refused(&keys, same, vec![lines], &several).await;

    let characters = format!(
        "The API key has characters in or around it that no key has: send it as {AS_BEARER}, \
         without quotes or spaces."
    );
    let wrong = vec![
        format!("Bearer \"{key}\""),
        format!("Bearer '{key}'"),
        format!("Bearer <{key}>"),
        format!("Bearer {key}\u{a0}"),
        format!("Bearer {key} x"),
        format!("Bearer\t{key}"),
        format!("Bearer {key},"),
        format!("\"Bearer {key}\""),
    ];
    refused(&keys, same, authorizations(wrong), &characters).await;
}

#[tokio::test]
async fn a_repeated_scheme_and_one_where_none_belongs_are_named() {
    let keys = Keys::new();
    let key = keys.key().await;
    let detail = format!("`Bearer` comes twice: send the API key as {AS_BEARER}.");
    let twice = vec![format!("Bearer Bearer {key}"), format!("bearer  BEARER {key}")];
    refused(&keys, same, authorizations(twice), &detail).await;

    let detail = "This header takes the API key alone: send it as `x-api-key: <key>`.";
    let only = |layer: ApiKeyLayer| layer.only_header(X_API_KEY);
    let both = |layer: ApiKeyLayer| layer.also_header(X_API_KEY);
    let schemed = || requests(vec![("x-api-key", format!("Bearer {key}"))]);
    refused_by(MISSING_IN_HEADER, &keys, only, schemed(), detail).await;
    refused(&keys, both, schemed(), detail).await;
    let detail =
        format!("`Bearer` comes twice: send the API key as {AS_BEARER} or `x-api-key: <key>`.");
    refused(&keys, both, authorizations(vec![format!("Bearer Bearer {key}")]), &detail).await;
}

#[tokio::test]
async fn a_key_without_a_scheme_is_told_so() {
    let keys = Keys::new();
    let key = keys.key().await;
    let detail = format!("The API key has no `Bearer` before it: send it as {AS_BEARER}.");
    let half = key[..30].to_owned();
    refused(&keys, same, authorizations(vec![key, half]), &detail).await;
}

#[tokio::test]
async fn a_key_of_another_scheme_is_told_so() {
    let keys = Keys::new();
    let key = keys.key().await;
    let detail = format!("The API key has another scheme than `Bearer`: send it as {AS_BEARER}.");
    let basic =
        |text: &str| format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text));
    let values = vec![
        format!("Token {key}"),
        format!("ApiKey {key}"),
        format!("Bearer2 {key}"),
        format!("Token token={key}"),
        format!("Token token=\"{key}\""),
        basic(&format!("{key}:")),
        basic(&format!("api:{key}")),
    ];
    refused(&keys, same, authorizations(values), &detail).await;
}

#[tokio::test]
async fn a_key_in_a_header_that_is_not_read_is_told_so() {
    let keys = Keys::new();
    let key = keys.key().await;
    let detail = format!("The API key is in a header that is not read: send it as {AS_BEARER}.");
    let names = ["x-api-key", "api-key", "apikey", "x-auth-token", "proxy-authorization"];
    let values = names.map(|name| (name, key.clone())).into_iter();
    let with_scheme = ("x-authorization", format!("Bearer {key}"));
    refused(&keys, same, requests(values.chain([with_scheme]).collect()), &detail).await;

    let detail = "The API key is in a header that is not read: send it as `x-api-key: <key>`.";
    let only = |layer: ApiKeyLayer| layer.only_header(X_API_KEY);
    let bearer = requests(vec![("authorization", format!("Bearer {key}"))]);
    refused_by(MISSING_IN_HEADER, &keys, only, bearer, detail).await;
}

#[tokio::test]
async fn a_header_can_be_left_to_others() {
    let keys = Keys::new();
    let key = keys.key().await;
    let layer = ApiKeyLayer::new(keys.auth()).optional(true).leave_header(X_API_KEY);
    let app = App::new(layer);
    assert_eq!(app.send(with_header("x-api-key", &key)).await.text(), "hello stranger");
    let other = app.send(with_header("x-auth-token", &key)).await;
    assert_eq!(other.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_key_in_the_url_is_told_so() {
    let keys = Keys::new();
    let key = keys.key().await;
    let detail = format!("The API key is in the URL, which is logged: send it as {AS_BEARER}.");
    let uris = ["access_token", "api_key", "key"].map(|name| format!("/?a=1&{name}={key}&b"));
    let requests = uris
        .into_iter()
        .map(|uri| Box::new(move || crate::app::get(&uri)) as Box<dyn Fn() -> Request>);
    refused(&keys, same, requests.collect(), &detail).await;
}

#[tokio::test]
async fn a_json_web_token_is_told_from_a_key() {
    let keys = Keys::new();
    let detail = format!("This is a JSON Web Token, not an API key: send a key as {AS_BEARER}.");
    for optional in [false, true] {
        let app = App::new(ApiKeyLayer::new(keys.auth()).optional(optional));
        let answer = app.get("eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.c2ln").await;
        assert_advised(&answer, 401, "invalid_api_key", &detail);
        assert_eq!((answer.kind(), app.calls()), (Some(RejectionKind::Malformed), 0));
        assert_eq!(app.get("eyJhbGci").await.json()["detail"], "The API key is not valid.");
    }
    let disclosing = ProblemJson::default().danger_disclose_reason();
    let app = App::new(ApiKeyLayer::new(keys.auth()).render_rejections(disclosing));
    let answer = app.get("eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.c2ln").await;
    assert_eq!(answer.json()["reason"], "malformed");
}

#[tokio::test]
async fn what_does_not_look_like_a_key_of_this_service_is_the_applications() {
    let keys = Keys::new();
    let app = App::new(ApiKeyLayer::new(keys.auth()).optional(true));
    let other = KeyFormat::new("pk_other_").unwrap().generate().unwrap();
    let other = other.expose_secret();
    let key = keys.key().await;
    for request in [
        with_authorization([format!("Token {other}")]),
        with_authorization([other]),
        with_authorization(["Basic dXNlcjpwYXNz"]),
        with_authorization(["Basic %%%"]),
        with_header("x-api-key", other),
        with_header("x-csrf-token", "0123456789abcdef0123456789abcdef"),
        // The name of the header says nothing of a key.
        with_header("x-note", &key),
        crate::app::get(&format!("/?prefix={PREFIX}")),
        crate::app::get(&format!("/?key={other}")),
    ] {
        assert_eq!(app.send(request).await.text(), "hello stranger");
    }
}

#[tokio::test]
async fn a_format_without_a_prefix_is_recognised_only_in_place_of_a_scheme() {
    let keys = Keys::new();
    let token = "0123456789abcdef0123456789abcdef";
    let app = |prefix| {
        let format = ImportedFormat::new(prefix, Alphabet::Hex, 32).unwrap();
        let (auth, _) = keys.builder().accept(format).build();
        App::new(ApiKeyLayer::new(auth).optional(true))
    };
    let bare = app("");
    assert_eq!(bare.get_with(token).await.status, StatusCode::BAD_REQUEST);
    for request in [
        with_authorization([format!("Token {token}")]),
        with_header("x-csrf-token", token),
        crate::app::get(&format!("/?key={token}")),
    ] {
        assert_eq!(bare.send(request).await.text(), "hello stranger");
    }
    let prefixed = app("old-");
    let request = with_authorization([format!("Token old-{token}")]);
    assert_eq!(prefixed.send(request).await.status, StatusCode::BAD_REQUEST);
}

mod layers_in_layers {
    use super::*;

    fn auth(keys: &Keys) -> Authenticator {
        keys.builder().default_rate_limits(Quota::per_minute(10).unwrap()).build().0
    }

    #[tokio::test]
    async fn a_request_admitted_by_the_same_authenticator_passes_uncounted() {
        let keys = Keys::new();
        let (auth, key) = (auth(&keys), keys.key().await);
        let layer = || ApiKeyLayer::new(auth.clone());
        for (left, outer, inner) in [
            (9, layer(), layer()),
            (8, layer(), layer().optional(true)),
            (7, layer().optional(true), layer()),
            (6, layer(), layer().only_header(X_API_KEY)),
            (5, layer().keep_credential(true), layer()),
            (4, layer().keep_credential(true), layer().keep_credential(true)),
        ] {
            let app = App::new((outer, inner));
            let answer = app.get(&key).await;
            assert_eq!((answer.status, answer.text()), (StatusCode::OK, "hello acme"));
            let ratelimit = answer.header("ratelimit").unwrap();
            assert!(ratelimit.starts_with(&format!(r#""minute";r={left};"#)), "{ratelimit}");
        }
        assert_eq!(keys.queries(), 1);
    }

    #[tokio::test]
    async fn a_kept_key_is_removed_by_the_inner_layer() {
        let keys = Keys::new();
        let (auth, key) = (auth(&keys), keys.key().await);
        let layer = ApiKeyLayer::new(auth);
        let handler = get(|request: Request| async move {
            assert!(!request.headers().contains_key(header::AUTHORIZATION));
        });
        let app = Router::new()
            .route("/", handler)
            .layer(layer.clone())
            .layer(layer.keep_credential(true));
        assert_eq!(send(app, with_key(&key)).await.status, StatusCode::OK);
    }

    #[tokio::test]
    async fn another_key_in_the_inner_layers_header_is_checked_and_counted() {
        let keys = Keys::new();
        let (auth, key) = (auth(&keys), keys.key().await);
        let layer = || ApiKeyLayer::new(auth.clone());
        let app = App::new((layer().keep_credential(true), layer().only_header(X_API_KEY)));
        let mut request = with_key(&key);
        request.headers_mut().insert(X_API_KEY, HeaderValue::from_static("junk"));
        assert_eq!(app.send(request).await.kind(), Some(RejectionKind::Malformed));
    }

    #[tokio::test]
    async fn a_rejection_inside_two_layers_has_one_challenge() {
        let keys = Keys::new();
        let key = keys.key().await;
        let layer = ApiKeyLayer::new(keys.auth());
        let scope = RequireScope::one("a").unwrap();
        let app = App::new((layer.clone(), layer, scope));
        let answer = app.get(&key).await;
        assert_eq!(answer.kind(), Some(RejectionKind::InsufficientScope));
        assert!(answer.challenge().unwrap().contains("insufficient_scope"));
    }

    #[tokio::test]
    async fn an_inner_layer_that_does_not_charge_tells_the_handler_what_is_left() {
        type Status = tower_api_key::auth::RateLimitStatus;

        let keys = Keys::new();
        let (auth, key) = (auth(&keys), keys.key().await);
        let layer = ApiKeyLayer::new(auth);
        let handler = get(|Extension(status): Extension<Status>| async move {
            let left: Vec<_> = status.iter().map(|(_, decision)| decision.remaining()).collect();
            format!("{left:?}")
        });
        let app = Router::new()
            .route("/", handler)
            .layer(layer.clone().danger_without_charge())
            .layer(layer);
        let answer = send(app, with_key(&key)).await;
        assert_eq!((answer.status, answer.text()), (StatusCode::OK, "[9]"));
        assert_eq!(answer.header("ratelimit"), Some(r#""minute";r=9;t=6"#));
    }

    #[tokio::test]
    async fn another_authenticators_layer_around_this_one_is_an_error_of_the_service() {
        let keys = Keys::new();
        let key = keys.key().await;
        let format = KeyFormat::new("pk_other_").unwrap();
        let (other, _) = Authenticator::builder(MemoryKeyStore::new(), format).build();
        let (outer, inner) = (ApiKeyLayer::new(keys.auth()), ApiKeyLayer::new(other));
        let app = App::new((outer.clone(), inner.clone()));
        let answer = app.get(&key).await;
        assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(answer.kind(), Some(RejectionKind::ForeignLayer));
        assert_eq!(answer.json()["code"], "internal_error");
        let detail = "Another authenticator's `ApiKeyLayer` around this one has taken the key. \
                      Apply one of them to each route, or read the keys from different headers.";
        assert_eq!(answer.json()["detail"], detail);

        // Read from another header, the inner key is simply missing.
        let app = App::new((outer.clone(), inner.clone().only_header(X_API_KEY)));
        assert_eq!(app.get(&key).await.kind(), Some(RejectionKind::Missing));
        let app = App::new((outer.clone().only_header(X_API_KEY), inner.clone()));
        let answer = app.send(with_header("x-api-key", &key)).await;
        assert_eq!(answer.kind(), Some(RejectionKind::Missing));
        // An optional layer admits without a key of its own.
        let app = App::new((outer, inner.optional(true)));
        assert_eq!(app.get(&key).await.text(), "hello stranger");
    }

    #[tokio::test]
    async fn a_consumer_that_no_layer_admitted_is_not_let_in() {
        let (keys, others) = (Keys::new(), Keys::new());
        let (auth, key) = (others.auth(), others.key().await);
        let admission = auth.check(key.as_bytes()).await.unwrap();
        let app = ApiKeyLayer::new(keys.auth()).layer(Handler::default());
        let mut request = crate::app::get("/");
        request.extensions_mut().insert(admission.consumer().clone());
        let answer = send::<_, Body>(app, request).await;
        assert!(answer.status.is_server_error(), "{}", answer.status);
    }
}
