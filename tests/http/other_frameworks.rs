//! The layer without axum: on hyper alone, and around filters of warp. Each over HTTP/1.1, and over
//! HTTP/2 with prior knowledge.

use std::{convert::Infallible, net::SocketAddr};

use http::{Request, Response, request::Parts};
use http_body::Body;
use http_body_util::{Empty, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::net::TcpListener;
use tower::{BoxError, Layer, Service, service_fn};
use tower_api_key::{
    ApiKeyLayer, Consumer, RequireScope,
    auth::Rejection,
    layer::{ProblemJson, RejectionResponse},
    rate_limit::Quota,
    test_util::TestKeys,
};
use warp::Filter;

use crate::app::{Answer, server};

/// Serves with hyper, without a framework.
async fn serve<S, B>(service: S) -> SocketAddr
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (connection, _) = listener.accept().await.unwrap();
            let service = TowerToHyperService::new(service.clone());
            tokio::spawn(async move {
                let server = auto::Builder::new(TokioExecutor::new());
                // A client that hangs up is an error here, but not a failure of the test.
                let _ = server.serve_connection(TokioIo::new(connection), service).await;
            });
        }
    });
    address
}

async fn send(address: SocketAddr, mut request: Request<Empty<Bytes>>, version: u8) -> Answer {
    let response = match version {
        1 => {
            request.headers_mut().insert("host", "a".parse().unwrap());
            server::http1(address, request).await
        }
        _ => server::http2(address, request).await,
    };
    server::collect(response).await
}

/// Asserts that `/` says whose key it is, and that `/reports` requires a scope.
async fn is_guarded(keys: &TestKeys, address: SocketAddr) {
    let url = |path: &str| format!("http://{address}{path}");
    let anonymous = || Request::get(url("/")).body(Empty::new()).unwrap();
    for version in [1, 2] {
        let key = keys.issue("acme").rate_limits(Quota::per_hour(2).unwrap()).await;
        for (request, status, code) in [
            (anonymous(), 401, "missing_api_key"),
            (key.get(&url("/reports")), 403, "insufficient_scope"),
            (key.get(&url("/")), 200, ""),
            (key.get(&url("/")), 429, "rate_limit_exceeded"),
        ] {
            let answer = send(address, request, version).await;
            assert_eq!(answer.status, status, "HTTP/{version}: {}", answer.wire());
            match status {
                200 => assert_eq!(answer.text(), "acme"),
                _ => assert_eq!(answer.json()["code"], code),
            }
            assert_eq!(answer.challenge().is_some(), [401, 403].contains(&status));
            assert_eq!(answer.header("ratelimit").is_some(), status != 401);
        }
    }
}

#[tokio::test]
async fn hyper_alone() {
    async fn handler(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let consumer = request.extensions().get::<Consumer>().map_or("none", Consumer::id);
        Ok(Response::new(Full::from(consumer.to_owned())))
    }
    let keys = TestKeys::new();
    let reports = RequireScope::one("reports:read").unwrap().layer(service_fn(handler));
    let routes = service_fn(move |request: Request<Incoming>| {
        let mut reports = reports.clone();
        async move {
            match request.uri().path() {
                "/reports" => reports.call(request).await,
                _ => handler(request).await,
            }
        }
    });
    let service = ApiKeyLayer::new(keys.authenticator().clone()).layer(routes);
    is_guarded(&keys, serve(service).await).await;
}

/// warp's body can be made from a `String`, and not from the `Cow` that `ProblemJson` has.
fn for_warp(rejection: &Rejection, request: &Parts) -> warp::reply::Response {
    let problem: Response<String> = ProblemJson::default().response(rejection, request);
    problem.map(Into::into)
}

#[tokio::test]
async fn filters_of_warp() {
    let keys = TestKeys::new();
    let consumer =
        || warp::ext::get::<Consumer>().map(|consumer: Consumer| consumer.id().to_owned());
    let reports = RequireScope::one("reports:read").unwrap().render_rejections(for_warp);
    let reports = reports.layer(warp::service(consumer()));
    let others = warp::service(warp::path::end().and(consumer()));
    let routes = service_fn(move |request: Request<Incoming>| {
        let (mut reports, mut others) = (reports.clone(), others);
        async move {
            match request.uri().path() {
                "/reports" => reports.call(request).await,
                _ => others.call(request).await,
            }
        }
    });
    let layer = ApiKeyLayer::new(keys.authenticator().clone()).render_rejections(for_warp);
    is_guarded(&keys, serve(layer.layer(routes)).await).await;
}
