//! The head of a rejection, without a gRPC client: content types, renderers, and what the service
//! observes.

use axum::{
    Router,
    body::Body,
    routing::{get, post},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, Request, Response, header::CONTENT_TYPE, request::Parts};
use http_body_util::BodyExt;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use tower::ServiceExt;
use tower_api_key::{
    ApiKeyLayer, Consumer, RequireScope,
    auth::{Rejection, RejectionKind},
    layer::{
        ConcurrencyLimit, Cost, ProblemJson, RejectionResponse, Scheme, StatusOnly,
        UntilKeyEndsLayer,
    },
};

use crate::{
    cases::Seen,
    doubles::{Said, Service, within},
};

const GRPC: &str = "application/grpc";

fn request(content_type: &str, key: Option<&str>) -> Request<Body> {
    let mut request = Request::post("/").header(CONTENT_TYPE, content_type);
    if let Some(key) = key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    request.body(Body::empty()).unwrap()
}

async fn send(app: &Router, request: Request<Body>) -> Response<Body> {
    app.clone().oneshot(request).await.unwrap()
}

fn status(headers: &HeaderMap) -> Option<Status> {
    Status::from_header_map(headers)
}

fn layered<R>(layer: ApiKeyLayer<R>) -> Router
where
    R: RejectionResponse<Body> + Send + Sync + 'static,
{
    Router::new().route("/", post(async || "ok")).layer(layer)
}

#[tokio::test]
async fn the_content_type_of_the_request_decides_and_is_repeated() {
    let app = layered(ApiKeyLayer::new(Service::new().auth));
    for content_type in [
        "application/grpc",
        "application/grpc+proto",
        "application/grpc+json",
        "Application/GRPC;charset=x",
        "application/grpc-web",
        "application/grpc-web+proto",
        "application/grpc-web-text",
    ] {
        let response = send(&app, request(content_type, None)).await;
        assert_eq!(response.status(), 200, "{content_type}");
        assert_eq!(response.headers()[CONTENT_TYPE], content_type);
        assert_eq!(response.headers()["cache-control"], "no-store", "{content_type}");
        let status = status(response.headers()).unwrap();
        assert_eq!(status.code(), Code::Unauthenticated, "{content_type}");
        let body = response.into_body();
        assert!(http_body::Body::is_end_stream(&body), "{content_type}: no trailers follow");
    }
    for content_type in ["application/json", "application/grpcx", "application/grp", "text/grpc"] {
        let response = send(&app, request(content_type, None)).await;
        assert_eq!(response.status(), 401, "{content_type}");
        assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
        assert!(response.headers().contains_key("www-authenticate"));
        assert!(status(response.headers()).is_none());
    }
}

#[tokio::test]
async fn metadata_may_have_the_key_in_any_scheme_that_is_read() {
    let service = Service::new();
    let layer = ApiKeyLayer::new(service.auth.clone())
        .also_scheme(Scheme::new("Api-Key").unwrap())
        .also_scheme(Scheme::BASIC_USER_NAME);
    let app = layered(layer);
    let key = service.issue("acme").await.text;
    let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
    for (authorization, code) in [
        (format!("Bearer {key}"), None),
        (format!("api-key {key}"), None),
        (basic(&format!("{key}:")), None),
        ("Api-Key unknown".to_owned(), Some(Code::Unauthenticated)),
        (basic(&format!("{key}:password")), Some(Code::InvalidArgument)),
        (format!("Token {key}"), Some(Code::InvalidArgument)),
    ] {
        let mut request = request(GRPC, None);
        request.headers_mut().insert("authorization", authorization.parse().unwrap());
        let response = send(&app, request).await;
        let status = status(response.headers()).map(|status| status.code());
        assert_eq!(status, code, "{authorization}");
    }
}

#[derive(Clone)]
struct OwnRenderer;

impl RejectionResponse<Body> for OwnRenderer {
    fn response(&self, _: &Rejection, _: &Parts) -> Response<Body> {
        Response::new(Body::from("no"))
    }

    fn empty_body(&self) -> Body {
        Body::empty()
    }
}

async fn is_empty(response: Response<Body>) -> bool {
    response.into_body().collect().await.unwrap().to_bytes().is_empty()
}

#[tokio::test]
async fn every_renderer_answers_grpc_alike() {
    let auth = Service::new().auth;
    let layer = || ApiKeyLayer::new(auth.clone());
    let closure = |_: &Rejection, _: &Parts| Response::new(Body::from("no"));
    for app in [
        layered(layer()),
        layered(layer().render_rejections(StatusOnly)),
        layered(layer().render_rejections(OwnRenderer)),
        layered(layer().render_rejections(closure)),
    ] {
        let response = send(&app, request(GRPC, Some("hello"))).await;
        assert_eq!(status(response.headers()).unwrap().code(), Code::Unauthenticated);
        assert!(is_empty(response).await);
    }
}

/// tonic's `Status` takes a rejection, so that a renderer can add to it.
#[tokio::test]
async fn a_renderer_may_answer_grpc_itself() {
    let renderer = |rejection: &Rejection, _: &Parts| {
        let mut status = Status::from(rejection.clone());
        status.metadata_mut().insert("x-docs", "here".parse().unwrap());
        status.into_http()
    };
    let app = layered(ApiKeyLayer::new(Service::new().auth).render_rejections(renderer));
    let response = send(&app, request(GRPC, None)).await;
    let status = status(response.headers()).unwrap();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert_eq!(response.headers()["x-docs"], "here");
    assert!(!response.headers().contains_key("www-authenticate"));
}

#[tokio::test]
async fn the_reason_is_disclosed_where_that_is_wanted() {
    let service = Service::new();
    let key = service.issue("acme").await;
    service.revoke(&key).await;
    for (renderer, expected) in [
        (ProblemJson::default(), None),
        (ProblemJson::default().danger_disclose_reason(), Some("revoked")),
    ] {
        let app = layered(ApiKeyLayer::new(service.auth.clone()).render_rejections(renderer));
        let response = send(&app, request(GRPC, Some(&key.text))).await;
        let info = status(response.headers()).unwrap().get_details_error_info().unwrap();
        assert_eq!(info.metadata.get("reason").map(String::as_str), expected);
    }
}

/// A handler of axum that answers gRPC requests, as a proxy may.
#[tokio::test]
async fn the_extractor_rejects_grpc_alike() {
    let app = Router::new().route("/", post(async |_: Consumer| "ok"));
    let response = send(&app, request(GRPC, None)).await;
    assert_eq!(status(response.headers()).unwrap().code(), Code::Internal);
    let optional = ApiKeyLayer::new(Service::new().auth).optional(true);
    let response = send(&app.layer(optional), request(GRPC, None)).await;
    assert_eq!(status(response.headers()).unwrap().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_scope_that_a_tonic_handler_requires_is_observed() {
    let service = Service::new();
    let key = service.issue("acme").await;
    let handler = post(async |consumer: Consumer| {
        let status: Status = consumer.require("orders:write").unwrap_err().into();
        status.into_http::<Body>()
    });
    let app = Router::new().route("/", handler).layer(ApiKeyLayer::new(service.auth.clone()));

    let response = send(&app, request(GRPC, Some(&key.text))).await;

    let seen = Seen::of(&status(response.headers()).unwrap());
    assert_eq!((seen.code, &*seen.reason), (7, "INSUFFICIENT_SCOPE"));
    assert!(!response.headers().contains_key("www-authenticate"));
    let id = Some(key.record.id);
    assert_eq!(service.heard.take(), [Said::Rejected(RejectionKind::InsufficientScope, id)]);
}

#[tokio::test]
async fn a_rejection_is_observed_once() {
    let service = Service::new();
    let key = service.issue("acme").await;
    let route = post(async || "ok").layer(RequireScope::one("orders:read").unwrap());
    let app = Router::new().route("/", route).layer(ApiKeyLayer::new(service.auth.clone()));
    for (key, expected) in [
        (None, Said::Rejected(RejectionKind::Missing, None)),
        (Some(&*key.text), Said::Rejected(RejectionKind::InsufficientScope, Some(key.record.id))),
    ] {
        send(&app, request(GRPC, key)).await;
        assert_eq!(service.heard.take(), [expected]);
    }
}

/// The draft forbids `RateLimit` in trailers.
#[tokio::test]
async fn quotas_are_in_the_head_of_a_response() {
    let service = Service::new();
    let key = service.issue("acme").await;
    let limit = ConcurrencyLimit::per_key(1).unwrap();
    let route = post(async || Status::ok("").into_http::<Body>()).layer(limit);
    let layer = ApiKeyLayer::new(service.auth.clone());
    let app = Router::new().route("/", route).layer(layer);
    let first = send(&app, request(GRPC, Some(&key.text))).await;
    assert_eq!(first.headers()["ratelimit"], r#""concurrent";r=0"#);
}

#[tokio::test]
async fn a_stream_of_grpc_web_ends_with_its_key_as_over_http() {
    let service = Service::new();
    let key = service.issue("acme").await;
    let body = || Body::from_stream(futures_util::stream::pending::<Result<String, Status>>());
    let route = post(async move || ([(CONTENT_TYPE, "application/grpc-web")], body()));
    let app = Router::new().route("/", route.layer(UntilKeyEndsLayer::new()));
    let app: Router = app.layer(ApiKeyLayer::new(service.auth.clone()));
    let response = send(&app, request("application/grpc-web", Some(&key.text))).await;

    service.revoke(&key).await;

    assert!(within(response.into_body().frame()).await.unwrap().is_err());
}

#[tokio::test]
async fn over_http_a_stream_ends_with_its_key_as_ever() {
    let service = Service::new();
    let key = service.issue("acme").await;
    let body = || Body::from_stream(futures_util::stream::pending::<Result<String, Status>>());
    let route = get(async move || body()).layer(UntilKeyEndsLayer::new());
    let app: Router = Router::new().route("/", route).layer(ApiKeyLayer::new(service.auth.clone()));
    let bearer = format!("Bearer {}", key.text);
    let request = Request::get("/").header("authorization", bearer).body(Body::empty()).unwrap();
    let response = send(&app, request).await;

    service.revoke(&key).await;

    let end = within(response.into_body().frame()).await.unwrap();
    assert!(end.unwrap_err().to_string().contains("the API key ended"));
    // Without a layer that reads keys, it is a mistake.
    let route = get(async || "ok").layer(UntilKeyEndsLayer::new());
    let app: Router = Router::new().route("/", route);
    let request = Request::get("/").body(Body::empty()).unwrap();
    assert_eq!(send(&app, request).await.status(), 500);
}

#[tokio::test]
async fn a_charge_is_rejected_in_the_way_of_grpc() {
    let service = Service::with(|builder| {
        builder.default_rate_limits(tower_api_key::rate_limit::Quota::per_hour(5).unwrap())
    });
    let key = service.issue("acme").await;
    let route = post(async || "ok").layer(Cost::new(9));
    let app = Router::new().route("/", route).layer(ApiKeyLayer::new(service.auth.clone()));
    let response = send(&app, request(GRPC, Some(&key.text))).await;
    let seen = Seen::of(&status(response.headers()).unwrap());
    assert_eq!((seen.code, seen.has_rate_limit, seen.retry.is_some()), (8, true, true));
}
