//! How a request presents its key, clause by clause of RFC 6750 and RFC 9110.

use axum::{Router, body::Body, routing::get};
use http::{HeaderName, HeaderValue, Request, StatusCode};
use proptest::prelude::*;
use regex::bytes::Regex;
use tower_api_key::{ApiKeyLayer, Consumer, rate_limit::Quota};

use crate::app::{
    Answer, App, INVALID_TOKEN, Keys, MISSING, PREFIX, SEVERAL_KEYS, server, unknown_key,
    with_authorization, with_key,
};

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// An app with one valid key, whose quota is ten requests.
struct Guarded {
    keys: Keys,
    app: App,
    key: String,
}

impl Guarded {
    async fn new() -> Self {
        Self::with(|layer| layer).await
    }

    async fn with(change: impl FnOnce(ApiKeyLayer) -> ApiKeyLayer) -> Self {
        let keys = Keys::new();
        let quota = Quota::per_minute(10).unwrap();
        let (auth, _) = keys.builder().default_rate_limits(quota).build();
        let key = keys.key().await;
        Self { app: App::new(change(ApiKeyLayer::new(auth))), keys, key }
    }

    /// Checks that the refused requests so far made no query, reached no handler and cost the key
    /// nothing.
    async fn assert_untouched(&self) {
        assert_eq!(self.keys.queries(), 0, "the store was asked");
        assert_eq!(self.app.calls(), 0, "the handler was called");
        let answer = self.app.get(&self.key).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.header("ratelimit"), Some(r#""minute";r=9;t=6"#));
    }
}

#[track_caller]
fn assert_refused(answer: &Answer, status: StatusCode, challenge: &str) {
    assert_eq!((answer.status, answer.challenge()), (status, Some(challenge)));
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(answer.header("vary"), Some("Authorization"));
    assert_eq!(answer.rate_limit_headers(), [""; 0]);
    assert_eq!(answer.header("retry-after"), None);
}

#[track_caller]
fn assert_missing(answer: &Answer) {
    assert_refused(answer, StatusCode::UNAUTHORIZED, MISSING);
    assert_eq!(answer.json()["code"], "missing_api_key");
}

#[track_caller]
fn assert_invalid_request(answer: &Answer) {
    assert!(answer.is_invalid_request(), "{:?}", answer.challenge());
    assert_refused(answer, StatusCode::BAD_REQUEST, answer.challenge().unwrap());
    assert_eq!(answer.json()["code"], "invalid_request");
}

#[track_caller]
fn assert_invalid_token(answer: &Answer) {
    assert_refused(answer, StatusCode::UNAUTHORIZED, INVALID_TOKEN);
    assert_eq!(answer.json()["code"], "invalid_api_key");
}

#[tokio::test]
async fn section_3_1_a_request_without_credentials_gets_a_challenge_without_an_error_code() {
    let guarded = Guarded::new().await;
    assert_missing(&guarded.app.send(crate::app::get("/")).await);
    guarded.assert_untouched().await;
}

#[tokio::test]
async fn section_3_1_an_empty_header_is_no_credentials() {
    let guarded = Guarded::new().await;
    for value in ["", " ", "   ", "\t"] {
        assert_missing(&guarded.app.get_with(value).await);
    }
    guarded.assert_untouched().await;
}

#[tokio::test]
async fn section_3_1_another_scheme_gets_a_challenge_without_an_error_code() {
    let guarded = Guarded::new().await;
    for value in [
        "Basic dXNlcjpwYXNz",
        "Basic",
        r#"Digest username="a", realm="b", uri="/", response="c""#,
        "Negotiate YII=",
        "Token k",
        "Bearer2 k",
    ] {
        assert_missing(&guarded.app.get_with(value).await);
    }
    guarded.assert_untouched().await;
}

#[tokio::test]
async fn a_key_in_another_scheme_is_an_invalid_request() {
    let guarded = Guarded::new().await;
    let key = &guarded.key;
    for value in [
        &format!("Token {key}"),
        &format!("ApiKey {key}"),
        &format!("Bearer2 {key}"),
        &format!("Bear {key}"),
        key,
    ] {
        assert_invalid_request(&guarded.app.get_with(value).await);
    }
    guarded.assert_untouched().await;
}

#[tokio::test]
async fn section_2_1_the_key_follows_the_bearer_scheme() {
    let guarded = Guarded::new().await;
    let answer = guarded.app.get(&guarded.key).await;
    assert_eq!((answer.status, answer.text()), (StatusCode::OK, "hello acme"));
    assert_eq!(guarded.keys.queries(), 1);
}

#[tokio::test]
async fn rfc9110_11_1_the_scheme_is_case_insensitive() {
    for scheme in ["bearer", "BEARER", "BeArEr"] {
        let guarded = Guarded::new().await;
        let answer = guarded.app.get_with(format!("{scheme} {}", guarded.key)).await;
        assert_eq!(answer.status, StatusCode::OK, "{scheme}");
        assert_eq!(guarded.keys.queries(), 1, "{scheme}");
    }
}

#[tokio::test]
async fn section_2_1_any_number_of_spaces_separates_scheme_and_key() {
    let guarded = Guarded::new().await;
    for spaces in [" ", "  ", "        "] {
        let answer = guarded.app.get_with(format!("Bearer{spaces}{}", guarded.key)).await;
        assert_eq!(answer.status, StatusCode::OK, "{} spaces", spaces.len());
    }
}

#[tokio::test]
async fn section_2_1_a_tab_does_not_separate_scheme_and_key() {
    let guarded = Guarded::new().await;
    for separator in ["\t", " \t", "\t "] {
        let value = format!("Bearer{separator}{}", guarded.key);
        assert_invalid_request(&guarded.app.get_with(value).await);
    }
    guarded.assert_untouched().await;
}

#[tokio::test]
async fn rfc9110_5_5_whitespace_around_the_value_is_not_part_of_it() {
    let guarded = Guarded::new().await;
    for value in [format!("  Bearer {}", guarded.key), format!("Bearer {}\t ", guarded.key)] {
        assert_eq!(guarded.app.get_with(&value).await.status, StatusCode::OK, "{value:?}");
    }
}

#[tokio::test]
async fn section_2_1_the_scheme_alone_is_no_credentials() {
    let guarded = Guarded::new().await;
    for value in ["Bearer", "Bearer ", "bearer     ", "Bearer\t"] {
        assert_missing(&guarded.app.get_with(value).await);
    }
    guarded.assert_untouched().await;
}

#[tokio::test]
async fn section_2_two_authorization_lines_are_an_invalid_request() {
    let guarded = Guarded::new().await;
    let valid = format!("Bearer {}", guarded.key);
    let other = format!("Bearer {}", unknown_key());
    let basic = "Basic dXNlcjpwYXNz".to_owned();
    let empty = String::new();
    let mut answers = Vec::new();
    for lines in [
        [&valid, &valid],
        [&valid, &other],
        [&other, &valid],
        [&valid, &basic],
        [&basic, &valid],
        [&valid, &empty],
        [&empty, &valid],
    ] {
        let answer = guarded.app.send(with_authorization(lines)).await;
        assert_invalid_request(&answer);
        answers.push(answer.wire());
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "the answer tells which of two keys is valid");
    guarded.assert_untouched().await;
}

#[tokio::test]
async fn section_2_two_authorization_lines_are_an_invalid_request_on_the_wire() {
    let keys = Keys::new();
    let valid = keys.key().await;
    let other = unknown_key();
    let app = Router::new()
        .route("/", get(|consumer: Consumer| async move { consumer.id().to_owned() }))
        .layer(ApiKeyLayer::new(keys.auth()));
    let address = server::serve(app).await;
    let mut answers = Vec::new();
    for [first, second] in [[&valid, &valid], [&valid, &other], [&other, &valid]] {
        let request = format!(
            "GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {first}\r\n\
             X-Between: 1\r\naUTHORIZATION: Bearer {second}\r\nConnection: close\r\n\r\n"
        );
        let answer = server::raw(address, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        let lines = answer.split("\r\n").filter(|line| !line.starts_with("date:"));
        answers.push(lines.collect::<Vec<_>>().join("\n"));
    }
    assert!(answers[0].contains(&format!("www-authenticate: {SEVERAL_KEYS}")), "{}", answers[0]);
    assert_eq!(answers[0], answers[1]);
    assert_eq!(answers[1], answers[2]);
    assert_eq!(keys.queries(), 0);
}

#[tokio::test]
async fn rfc9110_5_3_lines_that_a_proxy_joined_are_an_invalid_request() {
    let guarded = Guarded::new().await;
    let (key, other) = (&guarded.key, unknown_key());
    for value in [
        format!("Bearer {key}, Bearer {other}"),
        format!("Bearer {other}, Bearer {key}"),
        format!("Bearer {key},Bearer {key}"),
        format!("Bearer {key},"),
        format!("Bearer ,{key}"),
        format!("Bearer {key}, Basic dXNlcjpwYXNz"),
    ] {
        assert_invalid_request(&guarded.app.get_with(value).await);
    }
    guarded.assert_untouched().await;
}

#[tokio::test]
async fn section_2_a_key_in_two_headers_is_an_invalid_request() {
    let guarded = Guarded::with(|layer| layer.also_header(X_API_KEY)).await;
    let (valid, other) = (guarded.key.clone(), unknown_key());
    let mut answers = Vec::new();
    for [bearer, own] in [[&valid, &valid], [&valid, &other], [&other, &valid]] {
        let mut request = with_key(bearer);
        request.headers_mut().insert(X_API_KEY, HeaderValue::try_from(own).unwrap());
        let answer = guarded.app.send(request).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert!(answer.is_invalid_request());
        answers.push(answer.wire());
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "the answer tells which of two keys is valid");
    guarded.assert_untouched().await;
}

#[tokio::test]
async fn section_2_3_a_key_in_the_uri_is_not_read() {
    let guarded = Guarded::new().await;
    for name in ["access_token", "api_key", "key"] {
        let uri = format!("/?{name}={}", guarded.key);
        assert_invalid_request(&guarded.app.send(crate::app::get(&uri)).await);
    }
    guarded.assert_untouched().await;
}

#[tokio::test]
async fn section_2_2_a_key_in_the_body_is_no_credentials() {
    let guarded = Guarded::new().await;
    let request = Request::post("/")
        .header("content-type", "application/x-www-form-urlencoded")
        .body(Body::from(format!("access_token={}", guarded.key)))
        .unwrap();
    assert_missing(&guarded.app.send(request).await);
    guarded.assert_untouched().await;
}

#[tokio::test]
async fn section_2_1_what_is_no_b64token_is_an_invalid_request() {
    let guarded = Guarded::new().await;
    let key = &guarded.key;
    let (head, tail) = key.split_at(20);
    for value in [
        format!("Bearer {head}={tail}"),
        format!("Bearer ={key}"),
        format!("Bearer {head}%{tail}"),
        format!("Bearer {head}\"{tail}"),
        format!("Bearer \"{key}\""),
        format!("Bearer {head},{tail}"),
        format!("Bearer {head} {tail}"),
        format!("Bearer {key} x"),
        format!("Bearer {key};"),
        format!("Bearer {key}\t{key}"),
        format!("Bearer Bearer {key}"),
        "Bearer =".to_owned(),
        "Bearer ===".to_owned(),
    ] {
        assert_invalid_request(&guarded.app.get_with(value).await);
    }
    guarded.assert_untouched().await;
}

#[tokio::test]
async fn bytes_beyond_ascii_are_an_invalid_request() {
    let guarded = Guarded::new().await;
    for byte in 0x80..=0xff_u8 {
        let in_the_key = [b"Bearer ", guarded.key.as_bytes(), &[byte]].concat();
        assert_invalid_request(&guarded.app.get_with(in_the_key).await);
        let in_the_scheme =
            [b"Beare\x72", [byte].as_slice(), b" ", guarded.key.as_bytes()].concat();
        assert_invalid_request(&guarded.app.get_with(in_the_scheme).await);
    }
    guarded.assert_untouched().await;
}

#[tokio::test]
async fn control_characters_on_the_wire_reach_no_handler() {
    let keys = Keys::new();
    let key = keys.key().await;
    let app = Router::new()
        .route("/", get(|consumer: Consumer| async move { consumer.id().to_owned() }))
        .layer(ApiKeyLayer::new(keys.auth()));
    let address = server::serve(app).await;
    for byte in [b'\0', b'\x01', b'\x0b', b'\x1b', b'\x7f'] {
        let mut request =
            format!("GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}").into_bytes();
        request.push(byte);
        request.extend_from_slice(b"\r\nConnection: close\r\n\r\n");
        let answer = server::raw(address, &request).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{byte}: {answer}");
    }
    assert_eq!(keys.queries(), 0);
    let request = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n\r\n"
    );
    let answer = server::raw(address, request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("acme"), "{answer}");
}

#[tokio::test]
async fn a_folded_header_line_reaches_no_handler() {
    let keys = Keys::new();
    let key = keys.key().await;
    let app = Router::new()
        .route("/", get(|consumer: Consumer| async move { consumer.id().to_owned() }))
        .layer(ApiKeyLayer::new(keys.auth()));
    let address = server::serve(app).await;
    let request = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer\r\n {key}\r\nConnection: close\r\n\r\n"
    );
    let answer = server::raw(address, request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert_eq!(keys.queries(), 0);
}

#[tokio::test]
async fn a_token_with_another_prefix_is_an_invalid_token() {
    let guarded = Guarded::new().await;
    for key in [
        "a",
        "eyJhbGciOiJub25lIn0.e30.",
        "dG9rZW4=",
        "~+/-._==",
        &guarded.key.replace(PREFIX, "sk_live_"),
        &guarded.key.replace(PREFIX, "SK_TEST_"),
        &guarded.key.replace(PREFIX, ""),
    ] {
        assert_invalid_token(&guarded.app.get(key).await);
    }
    guarded.assert_untouched().await;
}

#[tokio::test]
async fn every_change_of_one_character_of_a_key_is_refused_before_the_store() {
    let guarded = Guarded::new().await;
    let b64token = Regex::new(r"^[A-Za-z0-9\-._~+/]+=*$").unwrap();
    let (mut invalid_tokens, mut invalid_requests) = (Vec::new(), Vec::new());
    for at in 0..guarded.key.len() {
        for byte in b'!'..=b'~' {
            let mut mutated = guarded.key.clone().into_bytes();
            if std::mem::replace(&mut mutated[at], byte) == byte {
                continue;
            }
            let answer = guarded.app.get_with([b"Bearer ", mutated.as_slice()].concat()).await;
            if b64token.is_match(&mutated) {
                assert_invalid_token(&answer);
                invalid_tokens.push(answer.wire());
            } else {
                assert_invalid_request(&answer);
                invalid_requests.push(answer.wire());
            }
        }
    }
    assert_eq!(invalid_tokens.len() + invalid_requests.len(), guarded.key.len() * 93);
    invalid_tokens.dedup();
    invalid_requests.dedup();
    assert_eq!((invalid_tokens.len(), invalid_requests.len()), (1, 1));
    guarded.assert_untouched().await;
}

#[tokio::test]
async fn a_key_of_another_length_is_an_invalid_token() {
    let guarded = Guarded::new().await;
    let key = &guarded.key;
    for token in [
        key[..key.len() - 1].to_owned(),
        key[1..].to_owned(),
        format!("{key}A"),
        format!("{key}="),
        format!("A{key}"),
        format!("{key}{key}"),
        format!("{PREFIX}{}", "A".repeat(257 - PREFIX.len())),
        format!("{PREFIX}{}", "A".repeat(400 * 1024)),
        key.repeat(7_000),
    ] {
        assert_invalid_token(&guarded.app.get(&token).await);
    }
    guarded.assert_untouched().await;
}

proptest! {
    #[test]
    fn section_2_1_the_grammar_decides_between_invalid_request_and_invalid_token(
        credentials in prop_oneof![
            "[A-Za-z0-9._~+/=-]{0,80}",
            r#"[ -~\t]{0,40}"#,
            "sk_test_[A-Za-z0-9_]{40,60}[=,% ]{0,3}",
        ]
        .prop_map(String::into_bytes)
        .boxed()
        .prop_union(
            proptest::collection::vec(
                any::<u8>().prop_filter("no header", |&byte| byte == b'\t' || byte >= b' ' && byte != 0x7f),
                0..40,
            )
            .boxed(),
        ),
    ) {
        let credential = Regex::new(r"(?-u)^ +([A-Za-z0-9\-._~+/]+=*)[ \t]*$").unwrap();
        let value = [b"Bearer ".as_slice(), &credentials].concat();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let guarded = Guarded::new().await;
            let answer = guarded.app.get_with(&value).await;
            let is_empty = value["Bearer".len()..].trim_ascii().is_empty();
            if is_empty {
                assert_missing(&answer);
            } else if credential.is_match(&value[b"Bearer".len()..]) {
                assert_invalid_token(&answer);
            } else {
                assert_invalid_request(&answer);
            }
            guarded.assert_untouched().await;
        });
    }
}
