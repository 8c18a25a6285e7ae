//! "My API keys" on the settings page of an application that has logins, with `axum-login`:
//!
//! ```text
//! cargo run --example axum_login --features admin,sqlite
//! ```
//!
//! `BIND` and `DATABASE_URL` (`sqlite:` or `postgres:`) can be set in the environment or in a
//! `.env` file. There are two users, `one` and `two`, who sign in by name alone, as no real service
//! should allow. Sessions are in memory and end with the process.

#[expect(dead_code, reason = "each example uses a part of it")]
mod shared;

use std::{convert::Infallible, time::Duration};

use axum::{
    Form, Router,
    http::{StatusCode, request::Parts},
    response::IntoResponse,
    routing::post,
};
use axum_login::{AuthManagerLayerBuilder, AuthSession, AuthUser, AuthnBackend};
use serde::Deserialize;
use shared::{PREFIX, Result, bind, load_dotenv, setting, terminated, timed};
use tokio::net::TcpListener;
use tower_api_key::{
    ApiKeys,
    account::Account,
    manage::{Grant, Member},
    record::Scopes,
};
use tower_http::csrf::CsrfLayer;
use tower_sessions::{MemoryStore, SessionManagerLayer, cookie::SameSite};

const DAY: Duration = Duration::from_secs(86_400);

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
    println!("listening on http://{}", listener.local_addr()?);
    timed::serve(listener, routes(&keys)?, end).await;
    keys.stop().await;
    Ok(())
}

fn routes(keys: &ApiKeys) -> Result<Router> {
    let settings = Account::signed_in_by(keys.issuer(), |parts: &mut Parts| {
        // Left by the layer of `axum-login`.
        let user = parts.extensions.get::<Session>().and_then(|session| session.user.clone());
        async move {
            let user = user.ok_or_else(|| StatusCode::UNAUTHORIZED.into_response())?;
            let grant = Grant::new(90 * DAY).scopes(user.scopes);
            Ok(Member::new(user.name.clone(), user.name).grant(grant))
        }
    });
    // `with_secure(false)` because the example is not reached over HTTPS.
    let sessions = SessionManagerLayer::new(MemoryStore::default())
        .with_same_site(SameSite::Lax)
        .with_secure(false);
    Ok(Router::new()
        .nest_service("/settings", settings.router())
        // Otherwise another site could sign its visitor in as another user.
        .merge(Router::new().route("/login", post(log_in)).layer(CsrfLayer::new()))
        .route("/logout", post(log_out))
        .layer(AuthManagerLayerBuilder::new(Users, sessions).build())
        .merge(shared::routes(keys.authenticator().clone())?))
}

type Session = AuthSession<Users>;

async fn log_in(mut session: Session, Form(login): Form<Login>) -> StatusCode {
    match session.authenticate(login).await {
        Ok(Some(user)) => match session.login(&user).await {
            Ok(()) => StatusCode::NO_CONTENT,
            Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
        },
        Ok(None) => StatusCode::UNAUTHORIZED,
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

async fn log_out(mut session: Session) -> StatusCode {
    match session.logout().await {
        Ok(_) => StatusCode::NO_CONTENT,
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[derive(Deserialize)]
struct Login {
    user: String,
}

#[derive(Clone, Debug)]
struct User {
    name: String,
    /// Those that it may give to keys.
    scopes: Scopes,
}

impl AuthUser for User {
    type Id = String;

    fn id(&self) -> String {
        self.name.clone()
    }

    /// A real service returns the hash of the password: a new password ends all sessions.
    fn session_auth_hash(&self) -> &[u8] {
        self.name.as_bytes()
    }
}

/// The users. A real service reads them from its database.
#[derive(Clone)]
struct Users;

impl AuthnBackend for Users {
    type User = User;
    type Credentials = Login;
    type Error = Infallible;

    async fn authenticate(&self, Login { user }: Login) -> Result<Option<User>, Infallible> {
        self.get_user(&user).await
    }

    async fn get_user(&self, name: &String) -> Result<Option<User>, Infallible> {
        let scopes: &[&str] = match name.as_str() {
            "one" => &["orders:read", "orders:write"],
            "two" => &["orders:read"],
            _ => return Ok(None),
        };
        let scopes = Scopes::parse(scopes.iter().copied()).ok();
        Ok(scopes.map(|scopes| User { name: name.clone(), scopes }))
    }
}
