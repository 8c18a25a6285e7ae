//! What a renderer sees of the request that was rejected.

use std::sync::{Arc, Mutex};

use axum::{
    Router,
    body::Body,
    extract::OriginalUri,
    routing::{MethodRouter, get},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderName, Method, Request, Response, StatusCode, header, request::Parts};
use tower::ServiceExt;
use tower_api_key::{
    ApiKeyLayer, RequireScope,
    auth::{Rejection, RejectionKind},
    layer::{ConcurrencyLimit, Cost, RateClass, RejectionResponse},
    rate_limit::Quota,
};

use crate::app::{Keys, PREFIX, unknown_key};

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Answers 418 and keeps the parts of the last rejected request.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Option<(RejectionKind, Parts)>>>);

impl Seen {
    fn take(&self) -> (RejectionKind, Parts) {
        self.0.lock().unwrap().take().expect("a rejected request")
    }
}

impl RejectionResponse<Body> for Seen {
    fn response(&self, rejection: &Rejection, request: &Parts) -> Response<Body> {
        *self.0.lock().unwrap() = Some((rejection.kind(), request.clone()));
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::IM_A_TEAPOT;
        response
    }

    fn empty_body(&self) -> Body {
        Body::empty()
    }
}

/// Everything in `parts` that could be logged.
fn text(parts: &Parts) -> String {
    let uri = parts.extensions.get().map(|OriginalUri(uri)| uri.clone());
    format!("{} {} {uri:?} {:?}", parts.method, parts.uri, parts.headers)
}

async fn teapot(app: Router, request: Request<Body>) {
    assert_eq!(app.oneshot(request).await.unwrap().status(), StatusCode::IM_A_TEAPOT);
}

fn app(keys: &Keys, seen: &Seen) -> Router {
    let layer = ApiKeyLayer::new(keys.auth()).also_header(X_API_KEY);
    let v1 = Router::new()
        .route("/{*path}", get(async || "ok"))
        .layer(layer.render_rejections(seen.clone()));
    Router::new().nest("/v1", v1)
}

#[tokio::test]
async fn it_sees_method_uri_headers_and_extensions() {
    let (keys, seen) = (Keys::new(), Seen::default());
    let request = Request::post("/v1/orders?page=2").header("x-request-id", "17").extension(7_u8);
    teapot(app(&keys, &seen), request.body(Body::empty()).unwrap()).await;
    let (kind, parts) = seen.take();
    assert_eq!(kind, RejectionKind::Missing);
    assert_eq!(
        (parts.method, parts.headers["x-request-id"].as_bytes()),
        (Method::POST, &b"17"[..])
    );
    assert_eq!(parts.uri, "/orders?page=2");
    assert_eq!(parts.extensions.get(), Some(&7_u8));
    assert_eq!(parts.extensions.get::<OriginalUri>().unwrap().0, "/v1/orders?page=2");
}

#[tokio::test]
async fn one_layer_answers_browsers_and_programs() {
    let keys = Keys::new();
    let renderer = |rejection: &Rejection, request: &Parts| {
        let html = request.headers.get(header::ACCEPT).is_some_and(|accept| accept == "text/html");
        let kind = rejection.kind().as_str();
        Response::new(Body::from(if html { format!("<p>{kind}") } else { format!("{{{kind:?}}}") }))
    };
    let app = Router::new()
        .route("/", get(async || "ok"))
        .layer(ApiKeyLayer::new(keys.auth()).render_rejections(renderer));
    for (accept, body) in [("text/html", "<p>unknown"), ("*/*", "{\"unknown\"}")] {
        let request = Request::get("/")
            .header(header::AUTHORIZATION, format!("Bearer {}", unknown_key()))
            .header(header::ACCEPT, accept);
        let response = app.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let bytes = axum::body::to_bytes(response.into_body(), 100).await.unwrap();
        assert_eq!(bytes, body);
    }
}

/// A URI, headers, and why the request is rejected.
type Case<'a> = (&'a str, &'a [(&'a str, String)], RejectionKind);

#[tokio::test]
async fn it_never_sees_the_key_wherever_the_client_sent_it() {
    let (keys, seen) = (Keys::new(), Seen::default());
    let (one, two) = (unknown_key(), unknown_key());
    let basic = |user: &str| format!("Basic {}", STANDARD.encode(format!("{user}:")));
    let bearer = format!("Bearer {one}");
    let requests: [Case<'_>; 11] = [
        ("/v1/a", &[("authorization", bearer.clone())], RejectionKind::Unknown),
        ("/v1/a", &[("x-api-key", one.clone())], RejectionKind::Unknown),
        (
            "/v1/a",
            &[("authorization", bearer.clone()), ("x-api-key", two.clone())],
            RejectionKind::InvalidRequest,
        ),
        (
            "/v1/a",
            &[("authorization", bearer.clone()), ("authorization", format!("Bearer {two}"))],
            RejectionKind::InvalidRequest,
        ),
        ("/v1/a", &[("authorization", one.clone())], RejectionKind::InvalidRequest),
        ("/v1/a", &[("authorization", basic(&one))], RejectionKind::InvalidRequest),
        ("/v1/a", &[("x-auth-token", one.clone())], RejectionKind::InvalidRequest),
        ("/v1/a", &[("proxy-authorization", basic(&one))], RejectionKind::InvalidRequest),
        (&format!("/v1/a?key={one}&b=c"), &[], RejectionKind::InvalidRequest),
        (
            &format!("https://{one}@localhost/v1/a"),
            &[("authorization", bearer.clone())],
            RejectionKind::Unknown,
        ),
        (
            &format!("/v1/keys/{one}x?{two}"),
            &[("authorization", bearer.clone()), ("cookie", format!("k={two}; l=1"))],
            RejectionKind::Unknown,
        ),
    ];
    for (uri, headers, expected) in requests {
        let mut request = Request::get(uri).header("x-request-id", "17");
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        teapot(app(&keys, &seen), request.body(Body::empty()).unwrap()).await;
        let (kind, parts) = seen.take();
        assert_eq!(kind, expected, "{uri} {headers:?}");
        let text = text(&parts);
        for key in [&one, &two] {
            assert!(
                !text.contains(&**key) && !text.contains(&STANDARD.encode(format!("{key}:"))),
                "{text}"
            );
        }
        assert_eq!(parts.headers["x-request-id"], "17");
        assert!(
            parts.uri.path().starts_with(if uri.contains("keys") {
                "/keys/sk_test_..."
            } else {
                "/a"
            }),
            "{text}"
        );
        assert!(parts.uri.query().is_none_or(|query| query.contains(PREFIX)), "{text}");
    }
}

#[tokio::test]
async fn nor_does_the_renderer_of_an_inner_layer() {
    for header in [header::AUTHORIZATION, X_API_KEY] {
        for limit in 0..4 {
            let (keys, seen) = (Keys::new(), Seen::default());
            let quota = Quota::per_hour(3).unwrap();
            let (auth, _worker) = keys.builder().default_rate_limits(quota).build();
            let route = get(async || "ok");
            let renderer = seen.clone();
            let route = match limit {
                0 => route.layer(RequireScope::one("no").unwrap().render_rejections(renderer)),
                1 => route.layer(Cost::new(9).render_rejections(renderer)),
                2 => {
                    let class = RateClass::new("c", Quota::per_hour(1).unwrap()).unwrap();
                    route.layer(class.render_rejections(renderer))
                }
                _ => {
                    let busy = ConcurrencyLimit::per_key(1).unwrap();
                    let route: MethodRouter = route.layer(busy.clone().render_rejections(renderer));
                    route.layer(busy)
                }
            };
            let layer = ApiKeyLayer::new(auth).also_header(X_API_KEY).keep_credential(true);
            let app = Router::new().route("/", route).layer(layer);
            let key = keys.key().await;
            let value = if header == X_API_KEY { key.clone() } else { format!("Bearer {key}") };
            let request =
                || Request::get("/").header(&header, &value).header("accept", "text/plain");
            let mut responses = Vec::new();
            while seen.0.lock().unwrap().is_none() && responses.len() < 2 {
                let request = request().body(Body::empty()).unwrap();
                // Kept, so that its place among those in flight is.
                responses.push(app.clone().oneshot(request).await.unwrap());
            }
            let (_, parts) = seen.take();
            assert!(!text(&parts).contains(&key), "{}", text(&parts));
            assert_eq!(parts.headers.len(), 1, "{limit}: {:?}", parts.headers);
        }
    }
}
