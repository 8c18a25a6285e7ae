//! The scopes of a key, and the consumer that handlers see.

use std::sync::{Arc, Mutex};

use axum::{
    Router,
    body::Body,
    extract::State,
    handler::Handler as _,
    middleware::{Next, from_fn_with_state},
    routing::get,
};
use http::{HeaderName, Method, Request, Response, StatusCode};
use tower_api_key::{
    ApiKeyLayer, Authenticator, Consumer, RequireScope,
    auth::{Rejection, RejectionKind},
    layer::{ConcurrencyLimit, ConsumerRejection, Cost, Granted, RateClass, StatusOnly},
    manage::{Expiry, NewKey},
    rate_limit::Quota,
    record::{Metadata, ScopeCatalog, Scopes},
};

use crate::app::{Answer, App, INVALID_TOKEN, Keys, MISSING, send, text, unknown_key, with_key};

async fn key_with(keys: &Keys, scopes: &[&str]) -> String {
    let scopes = Scopes::parse(scopes.iter().copied()).unwrap();
    text(&keys.issue(NewKey::new("acme", Expiry::Never).scopes(scopes)).await)
}

/// The responses to keys with these scopes from a route that requires `scope`.
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
async fn each_method_of_a_path_may_require_another_scope() {
    let keys = Keys::new();
    let [read, write] =
        ["orders:read", "orders:write"].map(|scope| RequireScope::one(scope).unwrap());
    let orders = get((async || "read").layer(read)).post((async || "written").layer(write));
    let app = Router::new().route("/", orders).layer(ApiKeyLayer::new(keys.auth()));
    let reader = key_with(&keys, &["orders:read"]).await;
    let writer = key_with(&keys, &["orders:write"]).await;
    for (method, of_reader, of_writer) in [
        (Method::GET, 200, 403),
        // axum answers it with the handler of GET.
        (Method::HEAD, 200, 403),
        (Method::POST, 403, 200),
        (Method::PUT, 405, 405),
    ] {
        for (key, status) in [(&reader, of_reader), (&writer, of_writer)] {
            let mut request = with_key(key);
            *request.method_mut() = method.clone();
            let answer = send(app.clone(), request).await;
            assert_eq!(answer.status, status, "{method}");
        }
    }
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
         \"detail\":\"The API key lacks a scope that this route requires.\",\
         \"code\":\"insufficient_scope\",\"scope\":\"export reports:read\"}"
    );
    let rejection = answer.rejection.unwrap();
    assert_eq!(rejection.kind(), RejectionKind::InsufficientScope);
    assert!(rejection.key_id().is_some());
    assert_eq!(app.calls(), 0);
}

#[tokio::test]
async fn a_scope_required_by_a_handler_is_refused_as_one_required_by_a_route() {
    async fn export(consumer: Consumer) -> Result<String, ConsumerRejection> {
        consumer.require("reports:read")?;
        consumer.require("export")?;
        Ok(consumer.id().to_owned())
    }

    let keys = Keys::new();
    let by_route = get(whoami).layer(RequireScope::one("export").unwrap());
    let app = Router::new()
        .route("/handler", get(export))
        .route("/route", by_route)
        .layer(ApiKeyLayer::new(keys.auth()).realm("orders").unwrap());
    let key = key_with(&keys, &["reports:read"]).await;
    let answer = async |path, key: &str| send(app.clone(), to(path, with_key(key))).await;

    let refused = answer("/handler", &key).await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    let challenge = r#"Bearer realm="orders", error="insufficient_scope", scope="export""#;
    assert_eq!(refused.challenge(), Some(challenge));
    assert_eq!(refused.json()["scope"], "export");
    let rejection = refused.rejection.as_ref().unwrap();
    assert_eq!(rejection.kind(), RejectionKind::InsufficientScope);
    assert!(rejection.key_id().is_some());
    let by_route = answer("/route", &key).await;
    assert_eq!(refused.status, by_route.status);
    assert_eq!(refused.headers, by_route.headers);
    assert_eq!(refused.text(), by_route.text());

    let key = key_with(&keys, &["export", "reports:read"]).await;
    let admitted = answer("/handler", &key).await;
    assert_eq!((admitted.status, admitted.text()), (StatusCode::OK, "acme"));
}

#[tokio::test]
async fn an_invalid_scope_required_by_a_handler_is_a_mistake_of_the_service() {
    for odd in ["", "a b", "a\"", "a\\", "a\r\nX-Evil: 1", "ä"] {
        let keys = Keys::new();
        let handler = move |consumer: Consumer| async move { consumer.require(odd) };
        let app = Router::new().route("/", get(handler)).layer(ApiKeyLayer::new(keys.auth()));
        let answer = send(app, with_key(&key_with(&keys, &["a", "b"]).await)).await;
        assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR, "{odd:?}");
        assert_eq!(answer.kind(), Some(RejectionKind::Internal), "{odd:?}");
        assert_eq!(answer.challenge(), None, "{odd:?}");
    }
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
    // 404 hides the existence of the route (RFC 9110 §15.5.4).
    for status in [StatusCode::FORBIDDEN, StatusCode::NOT_FOUND] {
        let keys = Keys::new();
        let scope = RequireScope::one("admin").unwrap();
        let scope =
            scope.render_rejections(move |rejection: &Rejection, _: &http::request::Parts| {
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
    let answer = app.send(crate::app::get("/")).await;
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

    let inner = tower::service_fn(async |_: Request<()>| {
        Ok::<_, std::convert::Infallible>(Response::new(Opaque))
    });
    let scope = RequireScope::one("a").unwrap().render_rejections(StatusOnly);
    let service = tower::Layer::layer(&scope, inner);
    let Ok(response) = tower::ServiceExt::oneshot(service, Request::new(())).await;
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
    assert_says_that_the_layer_is_missing(&send(app, crate::app::get("/")).await);
    let app = Router::new().route("/", get(perhaps));
    assert_says_that_the_layer_is_missing(&send(app, crate::app::get("/")).await);
}

#[tokio::test]
async fn a_route_added_after_the_layer_says_so_where_it_asks_for_a_consumer() {
    let keys = Keys::new();
    let app = Router::new()
        .route("/before", get(whoami))
        .layer(ApiKeyLayer::new(keys.auth()))
        .route("/", get(whoami))
        .route("/open", get(|| async { "open" }));
    assert_eq!(
        send(app.clone(), crate::app::get("/before")).await.status,
        StatusCode::UNAUTHORIZED
    );
    assert_says_that_the_layer_is_missing(&send(app.clone(), with_key(&keys.key().await)).await);
    assert_eq!(send(app, crate::app::get("/open")).await.status, StatusCode::OK);
}

#[tokio::test]
async fn an_optional_consumer_is_none_for_a_request_without_a_key() {
    let keys = Keys::new();
    let app =
        Router::new().route("/", get(perhaps)).layer(ApiKeyLayer::new(keys.auth()).optional(true));
    assert_eq!(send(app.clone(), crate::app::get("/")).await.text(), "nobody");
    assert_eq!(send(app.clone(), with_key(&keys.key().await)).await.text(), "acme");
    assert_eq!(send(app, with_key(&unknown_key())).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_consumer_on_an_optional_route_turns_strangers_away_with_a_challenge() {
    let keys = Keys::new();
    let app =
        Router::new().route("/", get(whoami)).layer(ApiKeyLayer::new(keys.auth()).optional(true));
    let answer = send(app.clone(), crate::app::get("/")).await;
    assert_eq!((answer.status, answer.challenge()), (StatusCode::UNAUTHORIZED, Some(MISSING)));
    assert_eq!(answer.kind(), Some(RejectionKind::Missing));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(send(app, with_key(&keys.key().await)).await.text(), "acme");
}

// Several layers, and consumers from elsewhere.

/// Two authenticators: partners send their key as a bearer token, staff in `X-Api-Key`.
struct Two {
    partners: Keys,
    staff: Keys,
    partner_auth: Authenticator,
    staff_auth: Authenticator,
}

const STAFF_HEADER: HeaderName = HeaderName::from_static("x-api-key");

impl Two {
    fn new() -> Self {
        let (partners, staff) = (Keys::new(), Keys::new());
        let quota = Quota::per_minute(100).unwrap();
        let with_quota = |keys: &Keys| keys.builder().default_rate_limits(quota.clone()).build().0;
        let (partner_auth, staff_auth) = (with_quota(&partners), with_quota(&staff));
        Self { partners, staff, partner_auth, staff_auth }
    }

    fn partner_layer(&self) -> ApiKeyLayer {
        ApiKeyLayer::new(self.partner_auth.clone())
    }

    fn staff_layer(&self) -> ApiKeyLayer {
        ApiKeyLayer::new(self.staff_auth.clone()).only_header(STAFF_HEADER)
    }

    async fn partner(&self, scopes: &[&str]) -> String {
        issue_to(&self.partners, "partner", scopes).await
    }

    async fn staff(&self, scopes: &[&str]) -> String {
        issue_to(&self.staff, "staff", scopes).await
    }
}

async fn issue_to(keys: &Keys, consumer: &str, scopes: &[&str]) -> String {
    let scopes = Scopes::parse(scopes.iter().copied()).unwrap();
    text(&keys.issue(NewKey::new(consumer, Expiry::Never).scopes(scopes)).await)
}

fn and_staff(mut request: Request<Body>, key: &str) -> Request<Body> {
    request.headers_mut().insert(STAFF_HEADER, key.parse().unwrap());
    request
}

fn scope_a() -> RequireScope {
    RequireScope::one("a").unwrap()
}

/// Everything that uses the consumer, each on a route of its own.
fn asking() -> Router {
    async fn raw(request: Request<Body>) -> String {
        request.extensions().get().map_or("nobody", Consumer::id).to_owned()
    }

    Router::new()
        .route("/extractor", get(whoami))
        .route("/optional", get(perhaps))
        .route("/raw", get(raw))
        .route("/scope", get(raw).layer(scope_a()))
        .route("/class", get(raw).layer(class()))
        .route("/cost", get(raw).layer(Cost::new(3)))
        .route("/concurrency", get(raw).layer(ConcurrencyLimit::per_key(5).unwrap()))
}

fn class() -> RateClass {
    RateClass::new("search", Quota::per_minute(5).unwrap()).unwrap()
}

fn to(path: &str, mut request: Request<Body>) -> Request<Body> {
    *request.uri_mut() = path.parse().unwrap();
    request
}

#[tokio::test]
async fn behind_an_optional_layer_the_consumer_of_a_layer_around_is_nobody() {
    let two = Two::new();
    let app = asking().layer(two.staff_layer().optional(true)).layer(two.partner_layer());
    let partner = two.partner(&["a"]).await;
    let answer = async |path| send(app.clone(), to(path, with_key(&partner))).await;
    for path in ["/optional", "/raw", "/class", "/cost", "/concurrency"] {
        let answer = answer(path).await;
        assert_eq!((answer.status, answer.text()), (StatusCode::OK, "nobody"), "{path}");
    }
    for path in ["/extractor", "/scope"] {
        let answer = answer(path).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{path}");
        assert_eq!(answer.kind(), Some(RejectionKind::Missing), "{path}");
    }
}

#[tokio::test]
async fn behind_two_layers_the_consumer_of_the_inner_one_counts_in_either_order() {
    let two = Two::new();
    let (partner, staff) = (two.partner(&["a"]).await, two.staff(&[]).await);
    let request = |path| to(path, and_staff(with_key(&partner), &staff));
    for optional in [false, true] {
        let (partners, staff) =
            (two.partner_layer().optional(optional), two.staff_layer().optional(optional));
        let staff_inside = asking().layer(staff.clone()).layer(partners.clone());
        let partners_inside = asking().layer(partners).layer(staff);
        for path in ["/extractor", "/optional", "/raw", "/class", "/cost", "/concurrency"] {
            assert_eq!(send(staff_inside.clone(), request(path)).await.text(), "staff", "{path}");
            let answer = send(partners_inside.clone(), request(path)).await;
            assert_eq!(answer.text(), "partner", "{path}");
        }
        let refused = send(staff_inside, request("/scope")).await;
        assert_eq!(refused.kind(), Some(RejectionKind::InsufficientScope));
        assert_eq!(send(partners_inside, request("/scope")).await.text(), "partner");
    }
}

#[tokio::test]
async fn what_a_layer_around_found_or_did_not_find_changes_nothing_for_the_inner_one() {
    let two = Two::new();
    let staff = two.staff(&["a"]).await;
    let partners = two.partner_layer().optional(true).leave_header(STAFF_HEADER);
    let app = asking().layer(two.staff_layer()).layer(partners);
    for path in ["/extractor", "/optional", "/raw", "/scope", "/class"] {
        let answer = send(app.clone(), to(path, and_staff(crate::app::get("/"), &staff))).await;
        assert_eq!((answer.status, answer.text()), (StatusCode::OK, "staff"), "{path}");
    }
}

#[tokio::test]
async fn a_layer_around_that_does_not_charge_spares_no_key_of_the_inner_one() {
    let two = Two::new();
    let (partner, staff) = (two.partner(&[]).await, two.staff(&[]).await);
    let app = asking().layer(two.staff_layer()).layer(two.partner_layer().danger_without_charge());
    for _ in 0..5 {
        let request = to("/class", and_staff(with_key(&partner), &staff));
        assert_eq!(send(app.clone(), request).await.text(), "staff");
    }
    let answer = send(app, to("/class", and_staff(with_key(&partner), &staff))).await;
    assert_eq!(answer.kind(), Some(RejectionKind::RateLimited));
}

#[tokio::test]
async fn a_scope_of_an_authenticator_is_not_satisfied_by_the_key_of_another() {
    let two = Two::new();
    let (partner, staff) = (two.partner(&["a"]).await, two.staff(&["a"]).await);
    let request = || and_staff(with_key(&partner), &staff);
    let only_staff = scope_a().of(&two.staff_auth);
    let app = App::new((two.partner_layer(), two.staff_layer(), only_staff.clone()));
    assert_eq!(app.send(request()).await.text(), "hello staff");

    let app = App::new((two.staff_layer(), two.partner_layer(), only_staff.clone()));
    assert_says_that_the_layer_is_missing(&app.send(request()).await);
    let app = App::new((two.partner_layer(), only_staff.clone()));
    assert_says_that_the_layer_is_missing(&app.send(request()).await);
    assert_eq!(app.calls(), 0);

    // A clone counts as the same authenticator.
    let layer = ApiKeyLayer::new(two.staff_auth.clone()).only_header(STAFF_HEADER);
    let app = App::new((layer, only_staff.render_rejections(StatusOnly)));
    assert_eq!(app.send(request()).await.text(), "hello staff");
}

#[tokio::test]
async fn limits_of_an_authenticator_do_not_count_the_keys_of_another() {
    let two = Two::new();
    let (partner, staff) = (two.partner(&[]).await, two.staff(&[]).await);
    let request = || and_staff(with_key(&partner), &staff);
    let of = &two.staff_auth;
    let layer = || (two.partner_layer(), two.staff_layer());
    let ((p1, s1), (p2, s2), (p3, s3)) = (layer(), layer(), layer());
    let concurrency = ConcurrencyLimit::per_key(5).unwrap().of(of);
    let trusting = [
        App::new((p1, s1, class().of(of))),
        App::new((p2, s2, Cost::new(3).of(of))),
        App::new((p3, s3, MapBody, concurrency.clone())),
    ];
    for app in trusting {
        assert_eq!(app.send(request()).await.text(), "hello staff");
    }
    let layer = || two.partner_layer();
    let refusing = [
        App::new((layer(), class().of(of))),
        App::new((layer(), Cost::new(3).of(of))),
        App::new((layer(), MapBody, concurrency)),
    ];
    for app in refusing {
        assert_says_that_the_layer_is_missing(&app.send(request()).await);
    }
}

/// Unifies the body types of a [`ConcurrencyLimit`] and others.
#[derive(Clone)]
struct MapBody;

impl<S> tower::Layer<S> for MapBody {
    type Service = MappedBody<S>;

    fn layer(&self, inner: S) -> MappedBody<S> {
        MappedBody(inner)
    }
}

#[derive(Clone)]
struct MappedBody<S>(S);

impl<S, B> tower::Service<Request<Body>> for MappedBody<S>
where
    S: tower::Service<Request<Body>, Response = Response<B>, Future: Send + 'static>,
    B: axum::body::HttpBody<Data = bytes::Bytes, Error: Into<axum::BoxError>> + Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = futures_util::future::MapOk<S::Future, fn(Response<B>) -> Response<Body>>;

    fn poll_ready(
        &mut self,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        futures_util::TryFutureExt::map_ok(self.0.call(request), |answer| answer.map(Body::new))
    }
}

#[tokio::test]
async fn the_consumer_of_an_authenticator_that_is_gone_is_not_taken_for_another_ones() {
    let two = Two::new();
    let key = two.partner(&["a"]).await;
    let only_gone = scope_a().of(&two.partners.auth());
    // The memory of the dropped one would be reused, if anything could free it.
    for _ in 0..100 {
        let layer = ApiKeyLayer::new(two.partners.auth());
        let app = App::new((layer, only_gone.clone()));
        assert_says_that_the_layer_is_missing(&app.get(&key).await);
    }
}

/// A middleware that puts a consumer into the extensions of each request.
async fn put(
    State(consumer): State<Consumer>,
    mut request: Request<Body>,
    next: Next,
) -> axum::response::Response {
    request.extensions_mut().insert(consumer);
    next.run(request).await
}

#[tokio::test]
async fn a_consumer_that_no_authenticator_made_is_not_trusted() {
    let keys = Keys::new();
    let record = keys.issue(NewKey::new("acme", Expiry::Never)).await.record;
    let consumer = Consumer::from(record);
    let app = asking().layer(from_fn_with_state(consumer, put));
    for path in ["/extractor", "/optional", "/scope", "/class", "/cost", "/concurrency"] {
        assert_says_that_the_layer_is_missing(&send(app.clone(), crate::app::get(path)).await);
    }
}

#[tokio::test]
async fn a_consumer_that_no_authenticator_made_in_place_of_the_layers_is_not_trusted() {
    let keys = Keys::new();
    let record = keys.issue(NewKey::new("acme", Expiry::Never)).await.record;
    let key = key_with(&keys, &["a"]).await;
    let app = asking()
        .layer(from_fn_with_state(Consumer::from(record), put))
        .layer(ApiKeyLayer::new(keys.auth()));
    for path in ["/extractor", "/optional", "/scope", "/class", "/cost", "/concurrency"] {
        assert_says_that_the_layer_is_missing(&send(app.clone(), to(path, with_key(&key))).await);
    }
}

#[tokio::test]
async fn a_test_can_make_a_consumer_in_place_of_the_layer() {
    let keys = Keys::new();
    let scopes = Scopes::parse(["a"]).unwrap();
    let record = keys.issue(NewKey::new("acme", Expiry::Never).scopes(scopes)).await.record;
    let consumer = Consumer::for_test(record);
    let app = asking().layer(from_fn_with_state(consumer.clone(), put));
    for path in ["/extractor", "/optional", "/raw", "/scope", "/class", "/cost", "/concurrency"] {
        let answer = send(app.clone(), crate::app::get(path)).await;
        assert_eq!((answer.status, answer.text()), (StatusCode::OK, "acme"), "{path}");
    }
    // No layer that names its authenticator accepts it as that one's.
    let app = Router::new()
        .route("/", get(whoami).layer(scope_a().of(&keys.auth())))
        .layer(from_fn_with_state(consumer, put));
    assert_says_that_the_layer_is_missing(&send(app, crate::app::get("/")).await);
}

#[tokio::test]
async fn a_middleware_by_hand_may_hand_on_the_consumer_of_an_authenticator() {
    let keys = Keys::new();
    let key = key_with(&keys, &["a"]).await;
    let auth = keys.auth();
    let consumer = auth.check(key.as_bytes()).await.unwrap().consumer().clone();
    let app = asking().layer(from_fn_with_state(consumer, put));
    for path in ["/extractor", "/scope", "/class", "/concurrency"] {
        assert_eq!(send(app.clone(), crate::app::get(path)).await.text(), "acme", "{path}");
    }
}

#[tokio::test]
async fn a_middleware_that_puts_the_extensions_of_a_layer_around_back_makes_nobody_a_caller() {
    /// Like a batch endpoint that makes several requests out of one.
    async fn copy(
        State(before): State<Saved>,
        mut request: Request<Body>,
        next: Next,
    ) -> axum::response::Response {
        let saved = before.0.lock().unwrap().clone();
        request.extensions_mut().extend(saved);
        next.run(request).await
    }

    async fn save(
        State(saved): State<Saved>,
        request: Request<Body>,
        next: Next,
    ) -> axum::response::Response {
        saved.0.lock().unwrap().clone_from(request.extensions());
        next.run(request).await
    }

    #[derive(Clone, Default)]
    struct Saved(Arc<Mutex<http::Extensions>>);

    let two = Two::new();
    let (partner, saved) = (two.partner(&["a"]).await, Saved::default());
    let app = asking()
        .layer(from_fn_with_state(saved.clone(), copy))
        .layer(two.staff_layer().optional(true))
        .layer(from_fn_with_state(saved, save))
        .layer(two.partner_layer());
    let answer = async |path| send(app.clone(), to(path, with_key(&partner))).await;
    assert_eq!(answer("/optional").await.text(), "nobody");
    for path in ["/extractor", "/scope"] {
        assert_eq!(answer(path).await.kind(), Some(RejectionKind::Missing), "{path}");
    }
}

#[tokio::test]
async fn nested_routers_and_fallbacks_belong_to_the_innermost_layer_around_them() {
    let two = Two::new();
    let (partner, staff) = (two.partner(&["a"]).await, two.staff(&[]).await);
    let inner = Router::new()
        .route("/whoami", get(perhaps))
        .fallback(perhaps)
        .layer(two.staff_layer().optional(true));
    let app = Router::new()
        .nest("/staff", inner)
        .route("/whoami", get(perhaps))
        .fallback(perhaps)
        .layer(two.partner_layer().optional(true));
    let only_partner = || with_key(&partner);
    let both = || and_staff(with_key(&partner), &staff);
    let cases = [
        ("/whoami", only_partner(), "partner"),
        ("/nowhere", only_partner(), "partner"),
        ("/staff/whoami", only_partner(), "nobody"),
        ("/staff/nowhere", only_partner(), "nobody"),
        ("/whoami", both(), "partner"),
        ("/staff/whoami", both(), "staff"),
        ("/staff/nowhere", both(), "staff"),
        ("/staff/whoami", crate::app::get("/"), "nobody"),
    ];
    for (path, request, expected) in cases {
        assert_eq!(send(app.clone(), to(path, request)).await.text(), expected, "{path}");
    }
}

tower_api_key::scopes! {
    enum Permission {
        /// Read orders.
        OrdersRead = "orders:read",
        /// Create orders.
        OrdersWrite = "orders:write" implies OrdersRead,
        /// Everything about orders.
        Orders = "orders:*",
        BooksClose = "books:close",
    }
    mod permission;
}

#[tokio::test]
async fn a_key_has_what_its_scopes_contain_where_the_authenticator_knows_the_catalogue() {
    let keys = Keys::new();
    let (auth, _) = keys.builder().scopes(Permission::catalog()).build();
    let app = App::new((ApiKeyLayer::new(auth), RequireScope::one(Permission::OrdersRead)));
    let without = RequireScope::one(Permission::OrdersRead);
    let without = App::new((ApiKeyLayer::new(keys.auth()), without));
    for (held, with_catalog, by_itself) in [
        (["orders:read"], 200, 200),
        (["orders:write"], 200, 403),
        (["orders:*"], 200, 403),
        (["books:close"], 403, 403),
        // Not in the catalogue, so only itself.
        (["books:*"], 403, 403),
        (["*"], 403, 403),
    ] {
        let key = key_with(&keys, &held).await;
        assert_eq!(app.get(&key).await.status.as_u16(), with_catalog, "{held:?}");
        assert_eq!(without.get(&key).await.status.as_u16(), by_itself, "{held:?}");
    }
}

/// One of them covers all others.
#[tokio::test]
async fn a_key_has_all_scopes_of_the_largest_catalogue() {
    let names: Vec<_> = (0..255).map(|at| format!(r#"{{"name": "area:{at}"}}"#)).collect();
    let catalog = format!(r#"{{"scopes": [{}, {{"name": "area:*"}}]}}"#, names.join(","));
    let catalog: ScopeCatalog = catalog.parse().unwrap();
    assert_eq!(catalog.iter().len(), ScopeCatalog::MAX_SCOPES);
    let keys = Keys::new();
    let (auth, _) = keys.builder().scopes(catalog).build();
    let require = |scope: &str| RequireScope::one(scope).unwrap();
    let (all, one) = (key_with(&keys, &["area:*"]).await, key_with(&keys, &["area:7"]).await);
    for (scope, status, of_one) in
        [("area:0", 200, 403), ("area:7", 200, 200), ("area:254", 200, 403), ("area:255", 403, 403)]
    {
        let app = App::new((ApiKeyLayer::new(auth.clone()), require(scope)));
        assert_eq!(app.get(&all).await.status, status, "{scope}");
        assert_eq!(app.get(&one).await.status, of_one, "{scope}");
    }
}

#[tokio::test]
async fn a_granted_consumer_is_refused_as_by_a_route_that_requires_the_scope() {
    async fn granted(consumer: Granted<permission::OrdersRead>) -> String {
        consumer.id().to_owned()
    }

    let keys = Keys::new();
    let by_route = get(whoami).layer(RequireScope::one(Permission::OrdersRead));
    let routes = Router::new().route("/route", by_route).route("/handler", get(granted));
    let unguarded = routes.clone();
    let app = routes.layer(ApiKeyLayer::new(keys.auth()));
    let ask = async |app: &Router, path: &str, key: &str| {
        let mut request = with_key(key).map(|_| Body::empty());
        *request.uri_mut() = path.parse().unwrap();
        send(app.clone(), request).await
    };
    let (may, may_not) = (key_with(&keys, &["orders:read"]).await, key_with(&keys, &["a"]).await);
    assert_eq!(ask(&app, "/handler", &may).await.status, StatusCode::OK);
    let refused = ask(&app, "/handler", &may_not).await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    assert!(refused.wire().contains("scope=\"orders:read\""), "{}", refused.wire());
    assert_eq!(refused.wire(), ask(&app, "/route", &may_not).await.wire());
    let refused = refused.rejection.unwrap();
    assert_eq!(refused.kind(), RejectionKind::InsufficientScope);
    let answer = ask(&unguarded, "/handler", &may).await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
}
