//! "My API keys" on the settings page of an application that has logins, with a signed cookie:
//!
//! ```text
//! cargo run --example signed_in --features admin,sqlite
//! ```
//!
//! `BIND` and `DATABASE_URL` (`sqlite:` or `postgres:`) can be set in the environment or in a
//! `.env` file. There are two users, `one` and `two`, who sign in by name alone, as no real service
//! should allow. Sessions end with the process.

#[expect(dead_code, reason = "each example uses a part of it")]
mod shared;

use std::time::Duration;

use axum::{
    Form, Router,
    http::{HeaderMap, StatusCode, request::Parts},
    response::{IntoResponse, Response},
    routing::post,
};
use axum_extra::extract::cookie::{Cookie, Key, SameSite, SignedCookieJar};
use serde::Deserialize;
use shared::{PREFIX, Result, bind, load_dotenv, setting, terminated, timed};
use tokio::net::TcpListener;
use tower_api_key::{
    ApiKeys,
    account::{Account, SignedIn},
    manage::{Grant, KeyIssuer, Member},
    record::Scopes,
};
use tower_http::csrf::CsrfLayer;

const DAY: Duration = Duration::from_secs(86_400);
const SESSION: &str = "session";

/// The users, and the scopes that each may give to keys.
const USERS: [(&str, &[&str]); 2] =
    [("one", &["orders:read", "orders:write"]), ("two", &["orders:read"])];

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

    println!("listening on http://{address}");
    println!();
    println!("curl -c cookies -d user=one http://{address}/login");
    println!(
        "curl -b cookies --json '{{\"expires\": \"30d\", \"scopes\": [\"orders:read\"]}}' \
         http://{address}/settings/api-keys"
    );
    println!("curl -b cookies http://{address}/settings/api-keys");

    let cookies = Key::try_generate().ok_or("no randomness for the cookies' signatures")?;
    timed::serve(listener, routes(&keys, cookies)?, end).await;
    keys.stop().await;
    Ok(())
}

fn routes(keys: &ApiKeys, cookies: Key) -> Result<Router> {
    Ok(Router::new()
        .nest_service("/settings", settings(keys.issuer(), cookies.clone()).router())
        .merge(
            Router::new()
                .route("/login", post(async move |user| log_in(user, cookies)))
                // Otherwise another site could sign its visitor in as another user.
                .layer(CsrfLayer::new()),
        )
        .merge(shared::routes(keys.authenticator().clone())?))
}

/// "My API keys", behind the session.
fn settings(issuer: KeyIssuer, cookies: Key) -> Account<SignedIn> {
    Account::signed_in_by(issuer, move |parts: &mut Parts| {
        let user = signed_in(&parts.headers, &cookies);
        async move {
            let (name, scopes) = user.ok_or_else(|| StatusCode::UNAUTHORIZED.into_response())?;
            let scopes = Scopes::parse(scopes.iter().copied());
            let scopes = scopes.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())?;
            Ok(Member::new(name, name).grant(Grant::new(90 * DAY).scopes(scopes)))
        }
    })
}

/// The user whose session the signed cookie is.
fn signed_in(
    headers: &HeaderMap,
    cookies: &Key,
) -> Option<(&'static str, &'static [&'static str])> {
    let session = SignedCookieJar::from_headers(headers, cookies.clone()).get(SESSION)?;
    USERS.into_iter().find(|(name, _)| *name == session.value())
}

#[derive(Deserialize)]
struct Login {
    user: String,
}

fn log_in(Form(login): Form<Login>, cookies: Key) -> Response {
    let Some((name, _)) = USERS.into_iter().find(|(name, _)| *name == login.user) else {
        return StatusCode::UNAUTHORIZED.into_response();
    };
    // `secure` too, where the service is reached over HTTPS.
    let session = Cookie::build((SESSION, name)).path("/").http_only(true).same_site(SameSite::Lax);
    (SignedCookieJar::new(cookies).add(session), StatusCode::NO_CONTENT).into_response()
}
