//! Shared by the examples: settings from the environment, the routes, and a graceful shutdown.

pub(crate) mod timed;

use std::{env, error::Error, net::SocketAddr};

use axum::{
    Json, Router,
    routing::{MethodRouter, get},
};
use http::StatusCode;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};
use tower_api_key::{
    ApiKeyLayer, Authenticator, Consumer, RequireScope,
    auth::Worker,
    manage::{Expiry, KeyIssuer, NewKey},
    rate_limit::Quota,
    record::{InvalidScope, Scope},
};

pub(crate) type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// Adds the lines of a `.env` file to the environment. A variable that is already set wins.
///
/// Call this at the start of `main`: the environment may change only while there is one thread.
pub(crate) fn load_dotenv() -> Result<()> {
    match dotenvy::dotenv() {
        Ok(_) => Ok(()),
        Err(error) if error.not_found() => Ok(()),
        // The error quotes the line, and the line may hold a password.
        Err(dotenvy::Error::LineParse(..)) => {
            Err(".env cannot be parsed: its lines are NAME=value, with quotes around spaces".into())
        }
        Err(error) => Err(format!(".env cannot be read: {error}").into()),
    }
}

/// An environment variable, unless it is empty.
pub(crate) fn setting(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// `BIND`, the address to listen on.
pub(crate) fn bind() -> String {
    setting("BIND").unwrap_or_else(|| "127.0.0.1:3000".into())
}

/// What keys begin with.
pub(crate) const PREFIX: &str = "sk_test_";

/// Issues a key for 10 requests a minute, 5 at once, without the scope `reports:read`.
pub(crate) async fn issue_demo_key(issuer: &KeyIssuer) -> Result<String> {
    let quota = Quota::per_minute(10)?.burst(5)?;
    let issued =
        issuer.issue(NewKey::new("acme", Expiry::Never).name("demo").rate_limits(quota)).await?;
    Ok(issued.key.expose_secret().to_owned())
}

/// The address, the key, and a command for each answer that [`routes`] give.
pub(crate) fn print_requests(address: SocketAddr, key: &str) {
    println!("listening on http://{address}");
    println!("key: {key}");
    println!();
    println!("# 200: a valid key");
    println!("curl -i -H 'Authorization: Bearer {key}' http://{address}/v1/whoami");
    println!("# 401: no key");
    println!("curl -i http://{address}/v1/whoami");
    println!("# 403: the key lacks a scope");
    println!("curl -i -H 'Authorization: Bearer {key}' http://{address}/v1/reports");
    println!("# 429: the key has used up its quota");
    println!(
        "for n in 1 2 3 4 5 6; do curl -i -H 'Authorization: Bearer {key}' \
         http://{address}/v1/whoami; echo; done"
    );
}

/// `/healthz` and `/readyz` are open, `/v1` requires a key, `/v1/reports` also a scope.
pub(crate) fn routes(auth: Authenticator) -> Result<Router> {
    let v1 = Router::new()
        .route("/whoami", get(whoami))
        .route("/reports", reports()?)
        .layer(ApiKeyLayer::new(auth.clone()));
    Ok(Router::new()
        .nest("/v1", v1)
        .route("/healthz", get(async || "ok"))
        .route("/readyz", get(async move || ready(&auth))))
}

/// For a load balancer: whether to send requests here, and the state of the parts.
fn ready(auth: &Authenticator) -> (StatusCode, String) {
    let health = auth.health();
    let status = if health.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, format!("store: {:?}, feed: {:?}\n", health.store, health.feed))
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

/// Serves until `end`, answers running requests, then lets the worker write last uses.
///
/// `axum::serve(listener, app).with_graceful_shutdown(end)` does the same, but waits forever for
/// clients that send nothing.
pub(crate) async fn serve(
    listener: TcpListener,
    app: Router,
    worker: Worker,
    end: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    // The worker outlives the server, so that it counts the last requests too.
    let (server_done, done) = oneshot::channel::<()>();
    let worker = tokio::spawn(worker.run(async {
        let _ = done.await;
    }));
    timed::serve(listener, app, end).await;
    drop(server_done);
    Ok(worker.await?)
}

/// SIGTERM or Ctrl-C, both caught from this call on, not only once the future is polled.
pub(crate) fn terminated() -> Result<impl Future<Output = ()> + Send + 'static> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
