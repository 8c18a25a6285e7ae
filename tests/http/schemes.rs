//! Keys in other schemes than `Bearer`.

use axum::extract::Request;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderName, HeaderValue, StatusCode, header::AUTHORIZATION};
use tower_api_key::{ApiKeyLayer, auth::RejectionKind, layer::Scheme};

use crate::app::{Answer, App, Keys, MISSING, MISSING_IN_HEADER, unknown_key, with_authorization};

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

fn scheme(name: &str) -> Scheme {
    Scheme::new(name).unwrap()
}

fn basic(user_and_password: &str) -> String {
    format!("Basic {}", STANDARD.encode(user_and_password))
}

#[track_caller]
fn assert_advised(answer: &Answer, detail: &str) {
    assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{}", answer.text());
    assert_eq!(answer.json()["detail"], detail);
    assert_eq!(answer.json()["code"], "invalid_request");
}

#[tokio::test]
async fn rfc9110_11_a_scheme_is_case_insensitive_and_spaces_separate_it_from_the_key() {
    let keys = Keys::new();
    let key = keys.key().await;
    let layer = ApiKeyLayer::new(keys.auth())
        .also_scheme(scheme("Token"))
        .also_scheme(scheme("Api-Key"))
        .also_scheme(Scheme::BASIC_USER_NAME);
    let app = App::new(layer);
    let user = basic(&format!("{key}:"));
    for value in [
        format!("Bearer {key}"),
        format!("Token {key}"),
        format!("token   {key}"),
        format!("API-KEY {key}"),
        format!(" api-key  {key} "),
        user.clone(),
        user.replace("Basic ", "bASIC   "),
    ] {
        let answer = app.get_with(&value).await;
        assert_eq!((answer.status, answer.text()), (StatusCode::OK, "hello acme"), "{value}");
        assert_eq!(answer.header("vary"), Some("Authorization"));
    }
    // A scheme that merely begins alike, and one that has no key.
    for value in ["Tokens x", "Api-Keys x", "ApiKey x", "Token", "Api-Key  ", "Basic"] {
        assert_eq!(app.get_with(value).await.kind(), Some(RejectionKind::Missing), "{value}");
    }
}

#[tokio::test]
async fn rfc9110_11_6_1_each_way_to_send_a_key_has_its_challenge() {
    const ERROR: &str = r#", error="invalid_token", error_description="The API key is not valid""#;

    let keys = Keys::new();
    let layer = || ApiKeyLayer::new(keys.auth());
    let all = layer()
        .also_scheme(scheme("Api-Key"))
        .also_scheme(Scheme::BASIC_USER_NAME)
        .also_header(X_API_KEY)
        .realm("orders")
        .unwrap();
    for (layer, value, first, others) in [
        (
            all,
            format!("api-key {}", unknown_key()),
            r#"Bearer realm="orders""#,
            r#", Api-Key realm="orders", Basic realm="orders", charset="UTF-8", ApiKey realm="orders", header="x-api-key""#,
        ),
        (
            layer().only_scheme(scheme("Token")),
            format!("Token {}", unknown_key()),
            r#"Token realm="api""#,
            "",
        ),
        (
            // `Bearer` comes first wherever it was added.
            layer().only_scheme(scheme("Token")).also_scheme(Scheme::BEARER),
            format!("Token {}", unknown_key()),
            MISSING,
            r#", Token realm="api""#,
        ),
        (
            layer().only_scheme(Scheme::BASIC_USER_NAME),
            basic(&format!("{}:", unknown_key())),
            r#"Basic realm="api", charset="UTF-8""#,
            "",
        ),
    ] {
        let app = App::new(layer);
        let missing = app.send(crate::app::get("/")).await;
        assert_eq!(missing.status, StatusCode::UNAUTHORIZED);
        assert_eq!(missing.challenge(), Some(&*format!("{first}{others}")));
        let unknown = app.get_with(&value).await;
        assert_eq!(unknown.kind(), Some(RejectionKind::Unknown));
        assert_eq!(unknown.challenge(), Some(&*format!("{first}{ERROR}{others}")));
    }

    let app = App::new(layer().only_header(X_API_KEY));
    assert_eq!(app.send(crate::app::get("/")).await.challenge(), Some(MISSING_IN_HEADER));
    let mut request = crate::app::get("/");
    request.headers_mut().insert(X_API_KEY, HeaderValue::try_from(unknown_key()).unwrap());
    let answer = app.send(request).await;
    assert_eq!(answer.challenge(), Some(&*format!("{MISSING_IN_HEADER}{ERROR}")));
}

#[tokio::test]
async fn a_layer_reads_no_scheme_that_it_does_not_name() {
    let keys = Keys::new();
    let key = keys.key().await;
    let app = App::new(ApiKeyLayer::new(keys.auth()).only_scheme(scheme("Api-Key")));
    assert_eq!(app.get_with(format!("Api-Key {key}")).await.status, StatusCode::OK);
    let form = "`Authorization: Api-Key <key>`";
    for value in [format!("Bearer {key}"), format!("Token {key}"), basic(&format!("{key}:"))] {
        let detail = format!("The API key has another scheme than `Api-Key`: send it as {form}.");
        assert_advised(&app.get_with(value).await, &detail);
    }
    let detail = format!("The API key has no `Api-Key` before it: send it as {form}.");
    assert_advised(&app.get_with(&key).await, &detail);
    for value in [format!("Api-Key Api-Key {key}"), format!("Api-Key Bearer {key}")] {
        let detail = format!("`Api-Key` comes twice: send the API key as {form}.");
        assert_advised(&app.get_with(value).await, &detail);
    }
    assert_eq!(app.get_with("Bearer abc").await.kind(), Some(RejectionKind::Missing));
}

#[tokio::test]
async fn two_keys_in_two_schemes_are_an_invalid_request() {
    let keys = Keys::new();
    let (key, other) = (keys.key().await, unknown_key());
    let layer = ApiKeyLayer::new(keys.auth())
        .also_scheme(scheme("Token"))
        .also_scheme(Scheme::BASIC_USER_NAME)
        .also_header(X_API_KEY);
    let app = App::new(layer);
    let form = "`Authorization: Bearer <key>` or `Authorization: Token <key>` or \
                `Authorization: Basic <base64 of key and colon>` or `x-api-key: <key>`";
    let detail = format!("The request has more than one API key: send exactly one, as {form}.");
    let user = basic(&format!("{key}:"));
    let mut requests = vec![
        with_authorization([format!("Bearer {key}"), format!("Token {other}")]),
        with_authorization([format!("Token {key}, Bearer {other}")]),
        with_authorization([format!("Bearer {key}, Token {other}")]),
        with_authorization([format!("Digest a=b, Token {key}")]),
    ];
    for value in [format!("Token {key}"), user] {
        let mut request = with_authorization([value]);
        request.headers_mut().insert(X_API_KEY, HeaderValue::try_from(&other).unwrap());
        requests.push(request);
    }
    for request in requests {
        let sent = format!("{:?}", request.headers());
        let answer = app.send(request).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{sent}");
        assert_advised(&answer, &detail);
    }
    assert_eq!((app.calls(), keys.queries()), (0, 0));
}

#[tokio::test]
async fn basic_takes_the_key_as_user_name_and_no_password() {
    let keys = Keys::new();
    let key = keys.key().await;
    let layer = || ApiKeyLayer::new(keys.auth()).also_scheme(Scheme::BASIC_USER_NAME);
    for layer in [layer(), layer().optional(true)] {
        let app = App::new(layer);
        let form =
            "`Authorization: Bearer <key>` or `Authorization: Basic <base64 of key and colon>`";
        let detail = format!(
            "`Basic` takes the API key as user name, with an empty password: send it as {form}."
        );
        for value in [
            basic(&format!("{key}:password")),
            basic(&format!("user:{key}")),
            basic(&key),
            basic(":"),
            basic(&format!("{}:", "k".repeat(300))),
            "Basic %%%".to_owned(),
            format!("Basic {key}"),
        ] {
            assert_advised(&app.get_with(&value).await, &detail);
        }
        for value in [basic("user:"), basic(&format!("{}:", &key[1..]))] {
            let answer = app.get_with(&value).await;
            assert_eq!(answer.kind(), Some(RejectionKind::Malformed), "{value}");
        }
        assert_eq!(app.calls(), 0);
        assert_eq!(app.get_with(basic(&format!("{key}:"))).await.text(), "hello acme");
    }
}

#[tokio::test]
async fn a_key_of_any_scheme_is_taken_out_of_the_request() {
    let keys = Keys::new();
    let key = keys.key().await;
    let handler = |request: Request| async move {
        assert!(!request.headers().contains_key(AUTHORIZATION));
        "none"
    };
    let layer = ApiKeyLayer::new(keys.auth())
        .also_scheme(scheme("Token"))
        .also_scheme(Scheme::BASIC_USER_NAME);
    let app = axum::Router::new().route("/", axum::routing::get(handler)).layer(layer);
    for value in [format!("Token {key}"), basic(&format!("{key}:"))] {
        let answer = crate::app::send(app.clone(), with_authorization([value])).await;
        assert_eq!(answer.text(), "none");
    }
}

#[test]
fn a_scheme_is_a_token_and_not_one_whose_credentials_are_more_than_a_key() {
    for name in ["Token", "Api-Key", "X.y_z~1"] {
        assert!(Scheme::new(name).is_ok(), "{name}");
    }
    for name in ["", "Api Key", "Key:", "K\"", "Clé", "basic", "BASIC", "Digest"] {
        assert!(Scheme::new(name).is_err(), "{name}");
    }
}
