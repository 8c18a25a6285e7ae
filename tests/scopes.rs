//! What a key may do, and what handlers learn of it.

#![cfg(test)]

mod by_hand;
mod support;

use axum::{Router, routing::get};
use http::{Response, StatusCode};
use tower_api_key::{
    ApiKeyLayer, Consumer, RequireScope,
    auth::{Rejection, RejectionKind},
    layer::StatusOnly,
    manage::{Expiry, NewKey},
    rate_limit::Quota,
    record::{Metadata, Scopes},
};

use self::support::{Answer, App, INVALID_TOKEN, Keys, MISSING, send, text, unknown_key, with_key};

async fn key_with(keys: &Keys, scopes: &[&str]) -> String {
    let scopes = Scopes::parse(scopes.iter().copied()).unwrap();
    text(&keys.issue(NewKey::new("acme", Expiry::Never).scopes(scopes)).await)
}

/// What keys with these scopes get from a route that requires `scope`.
async fn statuses<const N: usize>(scope: &RequireScope, held: [&[&str]; N]) -> [u16; N] {
    let keys = Keys::new();
    let app = App::new((ApiKeyLayer::new(keys.auth()), scope.clone()));
    let mut statuses = [0; N];
    for (status, held) in statuses.iter_mut().zip(held) {
        *status = app.get(&key_with(&keys, held).await).await.status.as_u16();
    }
    statuses
}

#[tokio::test]
async fn one_scope_is_enough_where_one_is_asked_for() {
    let scope = RequireScope::one("reports:read").unwrap();
    let held: [&[&str]; _] = [&["reports:read"], &["a", "reports:read", "z"], &[], &["reports"]];
    assert_eq!(statuses(&scope, held).await, [200, 200, 403, 403]);
}

#[tokio::test]
async fn every_scope_is_needed_where_all_are_asked_for() {
    let scope = RequireScope::all(["a", "b"]).unwrap();
    let held: [&[&str]; _] = [&["a", "b"], &["a", "b", "c"], &["a"], &["b"], &["c"], &[]];
    assert_eq!(statuses(&scope, held).await, [200, 200, 403, 403, 403, 403]);
}

#[tokio::test]
async fn any_scope_is_enough_where_any_is_asked_for() {
    let scope = RequireScope::any(["a", "b"]).unwrap();
    let held: [&[&str]; _] = [&["a", "b"], &["a"], &["c", "b"], &["c"], &[]];
    assert_eq!(statuses(&scope, held).await, [200, 200, 200, 403, 403]);
}

#[tokio::test]
async fn scopes_are_opaque_and_case_sensitive() {
    let scope = RequireScope::one("reports:read").unwrap();
    let held: [&[&str]; _] =
        [&["Reports:Read"], &["reports:*"], &["*"], &["reports"], &["reports:read:all"]];
    assert_eq!(statuses(&scope, held).await, [403; 5]);
}

#[tokio::test]
async fn a_key_without_the_scope_gets_403_and_learns_which_it_needs() {
    let keys = Keys::new();
    let (auth, _) = keys.builder().default_rate_limits(Quota::per_minute(10).unwrap()).build();
    let app = App::new((
        ApiKeyLayer::new(auth).realm("orders").unwrap(),
        RequireScope::all(["reports:read", "export"]).unwrap(),
    ));
    let key = key_with(&keys, &["export"]).await;
    let answer = app.get(&key).await;
    assert_eq!(
        answer.wire(),
        "403 Forbidden\n\
         content-type: application/problem+json\n\
         cache-control: no-store\n\
         ratelimit-policy: \"minute\";q=10;w=60\n\
         ratelimit: \"minute\";r=9;t=6\n\
         www-authenticate: Bearer realm=\"orders\", error=\"insufficient_scope\", \
         scope=\"export reports:read\"\n\
         vary: Authorization\n\
         \n\
         {\"type\":\"about:blank\",\"title\":\"Forbidden\",\"status\":403,\
         \"detail\":\"The API key lacks a scope that this needs.\",\
         \"code\":\"insufficient_scope\",\"scope\":\"export reports:read\"}"
    );
    let rejection = answer.rejection.unwrap();
    assert_eq!(rejection.kind(), RejectionKind::InsufficientScope);
    assert!(rejection.key_id().is_some());
    assert_eq!(app.calls(), 0);
}

#[tokio::test]
async fn an_invalid_key_learns_nothing_of_the_scopes() {
    let keys = Keys::new();
    let scope = RequireScope::one("reports:read").unwrap();
    let app = App::new((ApiKeyLayer::new(keys.auth()), scope));
    let answer = app.get(&unknown_key()).await;
    assert_eq!(
        (answer.status, answer.challenge()),
        (StatusCode::UNAUTHORIZED, Some(INVALID_TOKEN))
    );
    assert!(!answer.text().contains("reports"));
}

#[test]
fn scopes_that_could_break_a_header_cannot_be_asked_for() {
    let long = "a".repeat(129);
    for odd in ["", " ", "a b", "a\"", "a\\", "a\r\nX-Evil: 1", "a\0", "\u{7f}", "ä", &long] {
        assert!(RequireScope::one(odd).is_err(), "{odd:?}");
        assert!(RequireScope::all(["a", odd]).is_err(), "{odd:?}");
        assert!(RequireScope::any([odd, "a"]).is_err(), "{odd:?}");
    }
}

#[test]
fn asking_for_no_scope_at_all_is_an_error() {
    assert!(RequireScope::all([""; 0]).is_err());
    assert!(RequireScope::any([""; 0]).is_err());
}

#[tokio::test]
async fn every_character_a_scope_may_have_survives_in_the_challenge() {
    let all: String = (b'!'..=b'~').map(char::from).filter(|c| !"\"\\".contains(*c)).collect();
    let keys = Keys::new();
    let app = App::new((ApiKeyLayer::new(keys.auth()), RequireScope::one(&all).unwrap()));
    let answer = app.get(&keys.key().await).await;
    let expected = format!(r#"Bearer realm="api", error="insufficient_scope", scope="{all}""#);
    assert_eq!(answer.challenge(), Some(expected.as_str()));
    assert_eq!(answer.json()["scope"], all);
}

#[tokio::test]
async fn a_renderer_of_ones_own_gets_the_scopes_and_keeps_the_challenge() {
    // 404 hides that there is anything to be allowed (RFC 9110 §15.5.4).
    for status in [StatusCode::FORBIDDEN, StatusCode::NOT_FOUND] {
        let keys = Keys::new();
        let scope = RequireScope::one("admin").unwrap();
        let scope = scope.render_rejections(move |rejection: &Rejection| {
            let mut response =
                Response::new(format!("needs {}", rejection.required_scopes()[0]).into());
            *response.status_mut() = status;
            response
        });
        let app = App::new((ApiKeyLayer::new(keys.auth()), scope));
        let answer = app.get(&keys.key().await).await;
        assert_eq!((answer.status, answer.text()), (status, "needs admin"));
        let challenge = r#"Bearer realm="api", error="insufficient_scope", scope="admin""#;
        assert_eq!(answer.challenge(), Some(challenge));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
    }
}

#[tokio::test]
async fn a_403_of_the_handler_is_left_alone() {
    let keys = Keys::new();
    let app = Router::new()
        .route("/", get(|| async { (StatusCode::FORBIDDEN, "not yours") }))
        .layer(ApiKeyLayer::new(keys.auth()));
    let answer = send(app, with_key(&keys.key().await)).await;
    assert_eq!((answer.status, answer.text()), (StatusCode::FORBIDDEN, "not yours"));
    assert_eq!((answer.challenge(), answer.header("cache-control")), (None, None));
}

fn assert_says_that_the_layer_is_missing(answer: &Answer) {
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(answer.kind(), Some(RejectionKind::LayerMissing));
    assert_eq!((answer.challenge(), answer.header("cache-control")), (None, Some("no-store")));
    let problem = answer.json();
    assert_eq!(problem["status"], 500);
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("Is `ApiKeyLayer` applied to this route?"), "{detail}");
}

#[tokio::test]
async fn a_scope_without_the_layer_is_a_mistake_of_the_service() {
    let app = App::new(RequireScope::one("a").unwrap());
    assert_says_that_the_layer_is_missing(&app.get(&unknown_key()).await);
    assert_eq!(app.calls(), 0);
}

#[tokio::test]
async fn a_scope_outside_the_layer_is_a_mistake_of_the_service() {
    let keys = Keys::new();
    let app = App::new((RequireScope::one("a").unwrap(), ApiKeyLayer::new(keys.auth())));
    let key = key_with(&keys, &["a"]).await;
    assert_says_that_the_layer_is_missing(&app.get(&key).await);
    assert_eq!(app.calls(), 0);
}

#[tokio::test]
async fn a_scope_on_an_optional_route_turns_strangers_away_with_a_challenge() {
    let keys = Keys::new();
    let scope = RequireScope::one("a").unwrap();
    let layer = ApiKeyLayer::new(keys.auth()).optional(true).realm("orders").unwrap();
    let app = App::new((layer, scope));
    let answer = app.send(support::get("/")).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert_eq!(answer.challenge(), Some(r#"Bearer realm="orders""#));
    assert_eq!(answer.kind(), Some(RejectionKind::Missing));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(app.calls(), 0);
    assert_eq!(app.get(&key_with(&keys, &["a"]).await).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_scope_works_for_bodies_that_cannot_be_made_from_text() {
    #[derive(Debug, Default, PartialEq)]
    struct Opaque;

    let inner = tower::service_fn(async |_: http::Request<()>| {
        Ok::<_, std::convert::Infallible>(Response::new(Opaque))
    });
    let scope = RequireScope::one("a").unwrap().render_rejections(StatusOnly);
    let service = tower::Layer::layer(&scope, inner);
    let Ok(response) = tower::ServiceExt::oneshot(service, http::Request::new(())).await;
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(response.body(), &Opaque);
}

async fn whoami(consumer: Consumer) -> String {
    consumer.id().to_owned()
}

async fn perhaps(consumer: Option<Consumer>) -> String {
    consumer.as_ref().map_or("nobody", Consumer::id).to_owned()
}

#[tokio::test]
async fn a_handler_learns_all_of_its_consumer() {
    async fn handler(consumer: Consumer) {
        assert_eq!(consumer.id(), "acme");
        assert_eq!(consumer.key_name(), Some("nightly"));
        assert!(consumer.has_scope("a") && consumer.has_scope("b") && !consumer.has_scope("c"));
        assert_eq!(consumer.metadata().as_json(), r#"{"plan":"pro"}"#);
    }

    let keys = Keys::new();
    let new = NewKey::new("acme", Expiry::Never)
        .name("nightly")
        .scopes(Scopes::parse(["a", "b"]).unwrap())
        .metadata(Metadata::from_json(r#"{"plan": "pro"}"#).unwrap());
    let issued = keys.issue(new).await;
    let key_id = issued.record.id;
    let app = Router::new()
        .route("/", get(handler))
        .route("/id", get(|consumer: Consumer| async move { consumer.key_id().to_string() }))
        .layer(ApiKeyLayer::new(keys.auth()));
    assert_eq!(send(app.clone(), with_key(&text(&issued))).await.status, StatusCode::OK);
    let mut request = with_key(&text(&issued));
    *request.uri_mut() = "/id".parse().unwrap();
    assert_eq!(send(app, request).await.text(), key_id.to_string());
}

#[tokio::test]
async fn a_consumer_without_the_layer_is_a_mistake_of_the_service() {
    let app = Router::new().route("/", get(whoami));
    assert_says_that_the_layer_is_missing(&send(app, support::get("/")).await);
    let app = Router::new().route("/", get(perhaps));
    assert_says_that_the_layer_is_missing(&send(app, support::get("/")).await);
}

#[tokio::test]
async fn a_route_added_after_the_layer_says_so_where_it_asks_for_a_consumer() {
    let keys = Keys::new();
    let app = Router::new()
        .route("/before", get(whoami))
        .layer(ApiKeyLayer::new(keys.auth()))
        .route("/", get(whoami))
        .route("/open", get(|| async { "open" }));
    assert_eq!(send(app.clone(), support::get("/before")).await.status, StatusCode::UNAUTHORIZED);
    assert_says_that_the_layer_is_missing(&send(app.clone(), with_key(&keys.key().await)).await);
    assert_eq!(send(app, support::get("/open")).await.status, StatusCode::OK);
}

#[tokio::test]
async fn an_optional_consumer_is_none_for_a_request_without_a_key() {
    let keys = Keys::new();
    let app =
        Router::new().route("/", get(perhaps)).layer(ApiKeyLayer::new(keys.auth()).optional(true));
    assert_eq!(send(app.clone(), support::get("/")).await.text(), "nobody");
    assert_eq!(send(app.clone(), with_key(&keys.key().await)).await.text(), "acme");
    assert_eq!(send(app, with_key(&unknown_key())).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_consumer_on_an_optional_route_turns_strangers_away_with_a_challenge() {
    let keys = Keys::new();
    let app =
        Router::new().route("/", get(whoami)).layer(ApiKeyLayer::new(keys.auth()).optional(true));
    let answer = send(app.clone(), support::get("/")).await;
    assert_eq!((answer.status, answer.challenge()), (StatusCode::UNAUTHORIZED, Some(MISSING)));
    assert_eq!(answer.kind(), Some(RejectionKind::Missing));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(send(app, with_key(&keys.key().await)).await.text(), "acme");
}
