//! Handlers of HTTP that get a gRPC request: those of axum that require a scope, and the routers.

use axum::{
    Router,
    body::Body,
    middleware::map_response,
    routing::{MethodRouter, post},
};
use http::{
    Request, Response, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};
use http_body_util::BodyExt;
use tokio::net::TcpListener;
use tonic::{Code, Status};
use tower::ServiceExt;
use tower_api_key::{
    ApiKeyLayer, Authenticator, Consumer, RequireScope, account, admin,
    auth::RejectionKind,
    layer::{ConsumerRejection, Granted},
    manage::{Expiry, NewKey},
    record::Scopes,
    store::MemoryKeyStore,
};

use crate::{
    cases::Seen,
    doubles::{Key, Said, Service, format, within},
    tonic_client::Client,
};

tower_api_key::scopes! {
    enum Scope {
        OrdersRead = "orders:read",
    }
    mod scope;
}

async fn requires(consumer: Consumer) -> Result<&'static str, ConsumerRejection> {
    consumer.require(Scope::OrdersRead)?;
    Ok("ok")
}

async fn is_granted(_: Granted<scope::OrdersRead>) -> &'static str {
    "ok"
}

fn lacks_scope() -> Seen {
    let message = "The API key lacks a scope that this method requires: orders:read";
    let mut seen = Seen::new(Code::PermissionDenied, "INSUFFICIENT_SCOPE", message);
    seen.details.insert("scope".to_owned(), "orders:read".to_owned());
    seen
}

fn request(content_type: &str, path: &str, key: &Key) -> Request<Body> {
    let request = Request::post(path).header("authorization", format!("Bearer {}", key.text));
    request.header(CONTENT_TYPE, content_type).body(Body::from("{}")).unwrap()
}

async fn send(app: Router, request: Request<Body>) -> Response<Body> {
    within(app.oneshot(request)).await.unwrap()
}

#[tokio::test]
async fn a_scope_that_an_axum_handler_requires_is_rejected_in_the_way_of_grpc() {
    let service = Service::new();
    let key = service.issue("acme").await;
    let layer = ApiKeyLayer::new(service.auth.clone());
    for (handler, layer) in [
        (post(requires), layer.clone()),
        (post(is_granted), layer.clone()),
        (post(requires), layer.clone().optional(true)),
        (post(requires), layer.shadow(true)),
    ] {
        let app = Router::new().route("/demo.v1.Orders/Get", handler).layer(layer);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        let metadata = [("authorization", format!("Bearer {}", key.text))];
        let client = Client::connect(address, &metadata).await;
        service.heard.take();

        for _ in 0..2 {
            let status = client.get().await.unwrap_err();
            assert_eq!(Seen::of(&status), lacks_scope());
        }

        let rejected = Said::Rejected(RejectionKind::InsufficientScope, Some(key.record.id));
        assert_eq!(service.heard.count(rejected), 2);
    }
}

/// What is left of the response is what other layers added to it.
#[tokio::test]
async fn it_has_the_head_of_a_layer_that_requires_the_scope() {
    let service = Service::new();
    let key = service.issue("acme").await;
    let head = async |route: MethodRouter, content_type: &str| {
        let added = |mut response: Response<Body>| {
            response.headers_mut().insert("x-request-id", 7.into());
            response.headers_mut().insert(CONTENT_LENGTH, 1.into());
            async { response }
        };
        let app = Router::new().route("/", route.layer(map_response(added)));
        let app = app.layer(ApiKeyLayer::new(service.auth.clone()));
        let response = send(app, request(content_type, "/", &key)).await;
        let (head, body) = response.into_parts();
        (head.status, head.headers, body.collect().await.unwrap().to_bytes())
    };
    let by_layer = || post(async || "ok").layer(RequireScope::one(Scope::OrdersRead));
    for content_type in ["application/grpc", "application/grpc+proto", "application/grpc-web"] {
        let (_, mut expected, _) = head(by_layer(), content_type).await;
        expected.insert(CONTENT_LENGTH, 0.into());
        let (status, headers, body) = head(post(requires), content_type).await;
        assert_eq!((status, &headers), (StatusCode::OK, &expected), "{content_type}");
        assert!(headers.contains_key("x-request-id") && body.is_empty(), "{content_type}");
    }
    let (status, headers, body) = head(post(requires), "application/json").await;
    assert_eq!(
        (status, &headers[CONTENT_TYPE]),
        (StatusCode::FORBIDDEN, &"application/problem+json".parse().unwrap())
    );
    assert!(headers.contains_key("www-authenticate") && !body.is_empty());
}

/// What the layer in front of them rejects is rejected in the way of gRPC.
#[tokio::test]
async fn the_routers_answer_415_to_a_grpc_request() {
    let (store, format) = (MemoryKeyStore::new(), format());
    let (auth, _worker) = Authenticator::builder(store.clone(), format.clone()).build();
    let issuer = auth.issuer(store);
    let admin = NewKey::new("acme", Expiry::Never);
    let admin = admin.scopes(Scopes::parse(["api-keys:write"]).unwrap());
    let admin = Key::from(issuer.issue(admin).await.unwrap());
    let app = Router::new()
        .nest_service("/admin", admin::router(issuer.clone(), auth.clone()))
        .nest_service("/account", account::router(issuer, auth));
    let rotate = format!("/{}/rotate", admin.record.id);
    for router in ["/admin/api-keys", "/account/api-keys"] {
        for path in [router.to_owned(), format!("{router}{rotate}")] {
            for content_type in ["application/grpc", "application/grpc-web+proto"] {
                let response = send(app.clone(), request(content_type, &path, &admin)).await;
                assert_eq!(response.status(), 415, "{path}");
                assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
                let mut anonymous = request(content_type, &path, &admin);
                anonymous.headers_mut().remove("authorization");
                let response = send(app.clone(), anonymous).await;
                let status = Status::from_header_map(response.headers()).unwrap();
                assert_eq!(status.code(), Code::Unauthenticated, "{path}");
            }
        }
    }
}
