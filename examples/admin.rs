//! A service whose keys are managed over HTTP:
//!
//! ```text
//! DATABASE_URL=postgres://localhost/app cargo run --example admin --features openapi
//! ```
//!
//! `/v1/orders` is the service itself, `/admin` is for operators who manage its keys, and
//! `/account` is for the holders of keys. The service issues no key: the first one, the
//! administrator's, is issued on the command line. With the feature `openapi`, `/admin/openapi.json`
//! documents the routes.
//!
//! `API_KEY_PREFIX` (default `sk_live_`, as on the command line), `BIND`, `DATABASE_URL` and
//! `RUST_LOG` can be set in the environment or in a `.env` file. SIGTERM and Ctrl-C stop it:
//! running requests are answered, then the last uses of keys are written.

#[expect(dead_code, reason = "each example uses a part of it")]
mod shared;

use axum::{Json, Router, routing::get};
use serde_json::{Value, json};
use shared::{Result, bind, load_dotenv, serve, setting, terminated};
use tokio::net::TcpListener;
use tower_api_key::{
    ApiKeyLayer, Authenticator, Consumer, RequireScope, account, admin::Admin, key::KeyFormat,
    manage::KeyIssuer, rate_limit::Quota, record::InvalidScope, store::PgKeyStore,
};
use tower_http::trace::TraceLayer;
use tracing_subscriber::EnvFilter;

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

    let format = KeyFormat::new(setting("API_KEY_PREFIX").as_deref().unwrap_or("sk_live_"))?;
    let (auth, worker) = Authenticator::builder(store.clone(), format)
        .default_rate_limits(Quota::per_second(1000)?)
        // A key revoked on the command line is refused here within milliseconds.
        .change_feed(store.change_feed())
        .build();

    let end = terminated()?;
    let listener = TcpListener::bind(bind()).await?;
    println!("listening on http://{}", listener.local_addr()?);
    serve(listener, routes(auth.issuer(store), auth)?, worker, end).await
}

fn routes(issuer: KeyIssuer, auth: Authenticator) -> Result<Router, InvalidScope> {
    // The document is public, because browsers have no key to send.
    let admin = Admin::new(issuer.clone(), auth.clone()).open_document(true).router();
    Ok(Router::new()
        .route("/v1/orders", get(orders).layer(RequireScope::one("orders:read")?))
        .layer(ApiKeyLayer::new(auth.clone()))
        .nest_service("/admin", admin)
        .nest_service("/account", account::router(issuer, auth))
        // Outside the guards, headers contain keys. `TraceLayer` does not log headers.
        .layer(TraceLayer::new_for_http()))
}

async fn orders(consumer: Consumer) -> Json<Value> {
    Json(json!({ "consumer": consumer.id(), "orders": [] }))
}
