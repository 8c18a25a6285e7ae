//! A small service on PostgreSQL, as one would deploy it:
//!
//! ```text
//! DATABASE_URL=postgres://localhost/app ISSUE_DEMO_KEY=1 cargo run --example postgres
//! ```
//!
//! `BIND`, `DATABASE_URL` and `ISSUE_DEMO_KEY` may be set in the environment or in a `.env` file.
//! It issues a key only if `ISSUE_DEMO_KEY` is 1. SIGTERM and Ctrl-C end it: requests under way are
//! answered, then the last uses of keys are written.

mod shared;

use std::time::Duration;

use axum::Router;
use http::{HeaderName, Request, StatusCode, header::AUTHORIZATION};
use shared::{Result, bind, issue_demo_key, key_format, routes, setting};
use tokio::signal::unix::{SignalKind, signal};
use tower::ServiceBuilder;
use tower_api_key::{Authenticator, rate_limit::Quota, store::PgKeyStore};
use tower_http::{
    cors::{Any, CorsLayer},
    request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer},
    sensitive_headers::SetSensitiveRequestHeadersLayer,
    timeout::TimeoutLayer,
    trace::TraceLayer,
};
use tracing::{Span, info_span};
use tracing_subscriber::EnvFilter;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

#[tokio::main]
async fn main() -> Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();

    let url =
        setting("DATABASE_URL").ok_or("set DATABASE_URL, such as postgres://localhost/app")?;
    let store = PgKeyStore::connect(&url).await?;
    store.migrate().await?;

    let (auth, worker) = Authenticator::builder(store.clone(), key_format()?)
        .default_rate_limits(Quota::per_minute(600)?)
        .build();

    let listener = tokio::net::TcpListener::bind(bind()).await?;
    println!("listening on http://{}", listener.local_addr()?);
    if setting("ISSUE_DEMO_KEY").as_deref() == Some("1") {
        println!("key: {}", issue_demo_key(store, &auth).await?);
    }

    let app = around(routes(auth)?);
    // The worker goes on until the server is done, and so sees the last requests too.
    let (server_done, done) = tokio::sync::oneshot::channel::<()>();
    let worker = tokio::spawn(worker.run(async {
        let _ = done.await;
    }));
    axum::serve(listener, app).with_graceful_shutdown(terminated()?).await?;
    drop(server_done);
    Ok(worker.await?)
}

/// The layers every service has, outermost first. The order is not a matter of taste.
fn around(routes: Router) -> Router {
    routes.layer(
        ServiceBuilder::new()
            // Before anything that logs: from here on the key prints as `Sensitive`.
            .layer(SetSensitiveRequestHeadersLayer::new([AUTHORIZATION]))
            // Before tracing, whose spans name the id.
            .layer(SetRequestIdLayer::new(REQUEST_ID, MakeRequestUuid))
            // Around everything that can answer, 401 and 504 included.
            .layer(TraceLayer::new_for_http().make_span_with(span))
            .layer(PropagateRequestIdLayer::new(REQUEST_ID))
            // Around the look-up of the key too.
            .layer(TimeoutLayer::with_status_code(
                StatusCode::GATEWAY_TIMEOUT,
                Duration::from_secs(10),
            ))
            // Outside the keys: a preflight has none, and a browser may only read a 401 that has
            // CORS headers.
            .layer(
                CorsLayer::new()
                    .allow_origin(Any)
                    .allow_methods(Any)
                    .allow_headers([AUTHORIZATION])
                    .expose_headers(
                        ["ratelimit", "ratelimit-policy", "retry-after"]
                            .map(HeaderName::from_static),
                    ),
            ),
        // Innermost, and only around the routes that need it, comes the `ApiKeyLayer`.
    )
}

/// The path alone: a query may hold what nobody meant to log.
fn span<B>(request: &Request<B>) -> Span {
    let id = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok());
    info_span!("request", id, method = %request.method(), path = request.uri().path())
}

fn terminated() -> Result<impl Future<Output = ()> + Send + 'static> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
