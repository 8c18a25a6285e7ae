//! What the examples have in common: settings from the environment, and the routes.

use std::{env, error::Error};

use axum::{
    Json, Router,
    routing::{MethodRouter, get},
};
use serde_json::{Value, json};
use tower_api_key::{
    ApiKeyLayer, Authenticator, Consumer, RequireScope,
    key::{InvalidFormat, KeyFormat},
    manage::{KeyIssuer, NewKey},
    rate_limit::Quota,
    record::{InvalidScope, Scope},
    store::ManageKeys,
};

pub(crate) type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// An environment variable, or its line in a `.env` file.
pub(crate) fn setting(name: &str) -> Option<String> {
    let _ = dotenvy::dotenv();
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// `BIND`, the address to listen on.
pub(crate) fn bind() -> String {
    setting("BIND").unwrap_or_else(|| "127.0.0.1:3000".into())
}

pub(crate) fn key_format() -> Result<KeyFormat, InvalidFormat> {
    KeyFormat::new("sk_test_")
}

/// Issues a key for 10 requests a minute, 5 of them at once, and without the scope `reports:read`.
pub(crate) async fn issue_demo_key(store: impl ManageKeys, auth: &Authenticator) -> Result<String> {
    let quota = Quota::per_minute(10)?.burst(5)?;
    let issuer = KeyIssuer::new(store, key_format()?).invalidates(auth.clone());
    let issued = issuer.issue(NewKey::new("acme").name("demo").rate_limits(quota)).await?;
    Ok(issued.key.expose_secret().to_owned())
}

/// `/healthz` is open, `/v1` asks for a key, `/v1/reports` for a scope.
pub(crate) fn routes(auth: Authenticator) -> Result<Router> {
    let v1 = Router::new()
        .route("/whoami", get(whoami))
        .route("/reports", reports()?)
        .layer(ApiKeyLayer::new(auth));
    Ok(Router::new().nest("/v1", v1).route("/healthz", get(async || "ok")))
}

fn reports() -> Result<MethodRouter, InvalidScope> {
    Ok(get(async || Json(json!({ "reports": [] }))).layer(RequireScope::one("reports:read")?))
}

async fn whoami(consumer: Consumer) -> Json<Value> {
    let scopes: Vec<_> = consumer.scopes().iter().map(Scope::as_str).collect();
    Json(json!({
        "consumer_id": consumer.id(),
        "key_id": consumer.key_id().to_string(),
        "key_name": consumer.key_name(),
        "scopes": scopes,
    }))
}
