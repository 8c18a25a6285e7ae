//! A small service behind API keys, with unit tests that need no database: `cargo test`.
//!
//! It reads `DATABASE_URL` (`postgres:`) and `BIND` (default `127.0.0.1:3000`).

use std::{env, error::Error};

use axum::{
    Json, Router,
    extract::Path,
    routing::{delete, get},
};
use tower_api_key::{
    ApiKeys, ApiKeysBuilder, Consumer, RequireScope,
    rate_limit::{InvalidQuota, Quota},
    record::InvalidScope,
};

#[cfg(test)]
mod tests;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = env::var("DATABASE_URL")?;
    let keys = configured(ApiKeys::open(&url, "sk_live_"))?.await?;
    let bind = env::var("BIND").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let listener = tokio::net::TcpListener::bind(bind).await?;
    axum::serve(listener, app(&keys)?)
        .with_graceful_shutdown(async { _ = tokio::signal::ctrl_c().await })
        .await?;
    keys.stop().await;
    Ok(())
}

/// The settings of the keys, in production and in tests.
fn configured(keys: ApiKeysBuilder) -> Result<ApiKeysBuilder, InvalidQuota> {
    Ok(keys.default_rate_limits(Quota::per_minute(60)?))
}

/// The service. In `main` it gets the keys of the database, in tests those of the test kit.
fn app(keys: &ApiKeys) -> Result<Router, InvalidScope> {
    Ok(orders()?.layer(keys.layer()).route("/health", get(|| async {})))
}

fn orders() -> Result<Router, InvalidScope> {
    Ok(Router::new()
        .route("/orders", get(list).layer(RequireScope::one("orders:read")?))
        .route("/orders/{id}", delete(cancel).layer(RequireScope::one("orders:write")?)))
}

async fn list(consumer: Consumer) -> Json<Vec<String>> {
    Json(vec![format!("an order of {}", consumer.id())])
}

async fn cancel(consumer: Consumer, Path(id): Path<u32>) -> String {
    format!("{} has cancelled {id}", consumer.id())
}
