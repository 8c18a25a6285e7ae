//! A service on hyper alone, without a web framework: HTTP/1.1 and HTTP/2 on one port.
//!
//! ```text
//! cargo run --example hyper --features sqlite
//! ```
//!
//! `BIND` and `DATABASE_URL` (`sqlite:` or `postgres:`) can be set in the environment or in a
//! `.env` file. Each start issues a key and prints it, which no real service should do. SIGTERM and
//! Ctrl-C stop it.

#[expect(dead_code, reason = "each example uses a part of it")]
mod shared;

use std::{convert::Infallible, pin::pin, time::Duration};

use http::{Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use serde_json::{Value, json};
use shared::{
    PREFIX, Result, bind, issue_demo_key, load_dotenv, print_requests, setting, terminated,
    timed::HEAD,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_api_key::{ApiKeyLayer, ApiKeys, Consumer, RequireScope, record::InvalidScope};

type Answer = Response<Full<Bytes>>;

/// A service for each connection, which clones it.
trait Handler:
    Service<Request<Incoming>, Response = Answer, Error = Infallible, Future: Send>
    + Clone
    + Send
    + 'static
{
}

impl<S> Handler for S where
    S: Service<Request<Incoming>, Response = Answer, Error = Infallible, Future: Send>
        + Clone
        + Send
        + 'static
{
}

fn main() -> Result<()> {
    load_dotenv()?;
    run()
}

#[tokio::main]
async fn run() -> Result<()> {
    let url = setting("DATABASE_URL");
    let keys = ApiKeys::open(url.as_deref().unwrap_or("sqlite::memory:"), PREFIX).await?;
    let end = terminated()?;
    let listener = TcpListener::bind(bind()).await?;
    let address = listener.local_addr()?;
    let key = issue_demo_key(&keys.issuer()).await?;
    print_requests(address, &key);
    serve(listener, routes(&keys.layer())?, end).await;
    keys.stop().await;
    Ok(())
}

/// `/healthz` is open, everything else requires a key, and `/v1/reports` also a scope.
fn routes(layer: &ApiKeyLayer) -> Result<impl Handler, InvalidScope> {
    let reports = RequireScope::one("reports:read")?.layer(service_fn(reports));
    let guarded = layer.layer(service_fn(move |request: Request<Incoming>| {
        let reports = reports.clone();
        async move {
            match request.uri().path() {
                "/v1/whoami" => whoami(&request),
                "/v1/reports" => reports.oneshot(request).await,
                _ => answer(StatusCode::NOT_FOUND, "text/plain", "not found"),
            }
        }
    }));
    Ok(service_fn(move |request: Request<Incoming>| {
        let guarded = guarded.clone();
        async move {
            match request.uri().path() {
                "/healthz" => answer(StatusCode::OK, "text/plain", "ok"),
                _ => guarded.oneshot(request).await,
            }
        }
    }))
}

fn whoami(request: &Request<Incoming>) -> Result<Answer, Infallible> {
    match request.extensions().get::<Consumer>() {
        Some(consumer) => json(&json!({
            "consumer_id": consumer.id(),
            "key_id": consumer.key_id().to_string(),
            "key_name": consumer.key_name(),
        })),
        // Only if the layer is left out.
        None => answer(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", "no consumer"),
    }
}

async fn reports(_: Request<Incoming>) -> Result<Answer, Infallible> {
    json(&json!({ "reports": [] }))
}

fn json(value: &Value) -> Result<Answer, Infallible> {
    answer(StatusCode::OK, "application/json", value.to_string())
}

fn answer(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Full<Bytes>>,
) -> Result<Answer, Infallible> {
    let mut answer = Response::new(body.into());
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    Ok(answer)
}

/// Serves until `end`, then answers running requests.
async fn serve(listener: TcpListener, routes: impl Handler, end: impl Future<Output = ()>) {
    let (stop, stopped) = watch::channel(());
    let mut connections = JoinSet::new();
    let mut end = pin!(end);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve_connection(stream, routes.clone(), stopped.clone()));
                }
                // Too many open files, for instance.
                Err(_) => sleep_until(Instant::now() + Duration::from_secs(1)).await,
            },
            Some(_) = connections.join_next() => {}
            () = &mut end => break,
        }
    }
    drop((listener, stop));
    connections.join_all().await;
}

async fn serve_connection(
    stream: TcpStream,
    routes: impl Handler,
    mut stopped: watch::Receiver<()>,
) {
    let mut server = auto::Builder::new(TokioExecutor::new());
    // Without a timer, hyper waits for the head of a request forever.
    server.http1().timer(TokioTimer::new()).header_read_timeout(HEAD);
    server.http2().timer(TokioTimer::new()).keep_alive_interval(HEAD).keep_alive_timeout(HEAD);
    let service = TowerToHyperService::new(routes);
    let mut connection = pin!(server.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        // A client that hangs up is an error here, which is of no interest.
        _ = connection.as_mut() => return,
        _ = stopped.changed() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}
