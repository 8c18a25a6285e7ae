//! A small service on PostgreSQL, ready to deploy. It puts the parts together that `ApiKeys` in
//! `quickstart.rs` puts together by itself:
//!
//! ```text
//! DATABASE_URL=postgres://localhost/app ISSUE_DEMO_KEY=1 cargo run --example postgres
//! ```
//!
//! `BIND`, `DATABASE_URL`, `ISSUE_DEMO_KEY` and `RUST_LOG` can be set in the environment or in a
//! `.env` file. It issues a key only if `ISSUE_DEMO_KEY` is 1. SIGTERM and Ctrl-C stop it: running
//! requests are answered, then the last uses of keys are written.

#[expect(dead_code, reason = "each example uses a part of it")]
mod shared;

use std::time::Duration;

use axum::Router;
use http::{
    HeaderName, Request, StatusCode,
    header::{AUTHORIZATION, RETRY_AFTER},
};
use shared::{
    PREFIX, Result, bind, issue_demo_key, load_dotenv, routes, serve, setting, terminated,
};
use tokio::net::TcpListener;
use tower::ServiceBuilder;
use tower_api_key::{Authenticator, key::KeyFormat, rate_limit::Quota, store::PgKeyStore};
use tower_http::{
    cors::{Any, CorsLayer},
    request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer},
    sensitive_headers::SetSensitiveRequestHeadersLayer,
    timeout::TimeoutLayer,
    trace::{DefaultOnResponse, TraceLayer},
};
use tracing::{Level, Span, info_span};
use tracing_subscriber::EnvFilter;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

fn main() -> Result<()> {
    load_dotenv()?;
    run()
}

#[tokio::main]
async fn run() -> Result<()> {
    let filter = EnvFilter::try_new(setting("RUST_LOG").as_deref().unwrap_or("info"))
        .map_err(|error| format!("RUST_LOG: {error}"))?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();

    let url =
        setting("DATABASE_URL").ok_or("set DATABASE_URL, such as postgres://localhost/app")?;
    let store = PgKeyStore::connect(&url).await?;
    store.migrate().await?;

    let (auth, worker) = Authenticator::builder(store.clone(), KeyFormat::new(PREFIX)?)
        .default_rate_limits(Quota::per_minute(600)?)
        // A key revoked by another node, or in SQL, is refused here within milliseconds.
        .change_feed(store.change_feed())
        .build();

    let end = terminated()?;
    let listener = TcpListener::bind(bind()).await?;
    println!("listening on http://{}", listener.local_addr()?);
    if setting("ISSUE_DEMO_KEY").as_deref() == Some("1") {
        println!("key: {}", issue_demo_key(&auth.issuer(store)).await?);
    }
    serve(listener, around(routes(auth)?), worker, end).await
}

/// The layers of any service, outermost first. The order matters.
fn around(routes: Router) -> Router {
    routes.layer(
        ServiceBuilder::new()
            // Outside anything that logs: from here on the key prints as `Sensitive`.
            .layer(SetSensitiveRequestHeadersLayer::new([AUTHORIZATION]))
            // Outside tracing, whose spans contain the id.
            .layer(SetRequestIdLayer::new(REQUEST_ID, MakeRequestUuid))
            // Around everything that can respond, including 401 and 504. At the default level,
            // `debug`, the filter would drop the responses.
            .layer(
                TraceLayer::new_for_http()
                    .make_span_with(span)
                    .on_response(DefaultOnResponse::new().level(Level::INFO)),
            )
            .layer(PropagateRequestIdLayer::new(REQUEST_ID))
            // Outside the key check, because a preflight has no key, and outside the time-out: a
            // browser can read a response, even a 401 or a 504, only if it has CORS headers.
            .layer(
                CorsLayer::new()
                    .allow_origin(Any)
                    .allow_methods(Any)
                    .allow_headers([AUTHORIZATION])
                    .expose_headers([
                        HeaderName::from_static("ratelimit"),
                        HeaderName::from_static("ratelimit-policy"),
                        RETRY_AFTER,
                        REQUEST_ID,
                    ]),
            )
            // Covers the look-up of the key too.
            .layer(TimeoutLayer::with_status_code(
                StatusCode::GATEWAY_TIMEOUT,
                Duration::from_secs(10),
            )),
        // The `ApiKeyLayer` is innermost, and only around the routes that need it.
    )
}

/// The path alone: a query may hold secrets.
fn span<B>(request: &Request<B>) -> Span {
    let id = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok());
    info_span!("request", id, method = %request.method(), path = request.uri().path())
}
