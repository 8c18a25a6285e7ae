//! Projects of users. Each user has keys: 64 hexadecimal digits, stored as their SHA-256.

use std::error::Error;

use axum::{
    Extension, Json, Router,
    extract::{Request, State},
    http::{StatusCode, header::AUTHORIZATION},
    middleware::{self, Next},
    response::Response,
    routing::get,
};
use sha2::{Digest as _, Sha256};
use sqlx::{PgPool, query_scalar};

/// The service on the database at `url`.
pub async fn open(url: &str) -> Result<Router, Box<dyn Error>> {
    let pool = PgPool::connect(url).await?;
    sqlx::migrate!().run(&pool).await?;
    let keys = middleware::from_fn_with_state(pool.clone(), authenticate);
    Ok(Router::new().route("/projects", get(projects)).layer(keys).with_state(pool))
}

async fn projects(
    State(pool): State<PgPool>,
    Extension(User(user)): Extension<User>,
) -> Result<Json<Vec<String>>, StatusCode> {
    let names = query_scalar("select name from projects where user_id = $1 order by name");
    let names = names.bind(user).fetch_all(&pool).await;
    names.map(Json).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}

#[derive(Clone, Copy)]
struct User(i64);

async fn authenticate(
    State(pool): State<PgPool>,
    mut request: Request,
    next: Next,
) -> Result<Response, StatusCode> {
    let header = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let key = header.and_then(|value| value.strip_prefix("Bearer "));
    let hash = format!("{:x}", Sha256::digest(key.ok_or(StatusCode::UNAUTHORIZED)?));
    let user = query_scalar(
        "update api_keys set last_used = now() where key_hash = $1 and is_active
        returning user_id",
    );
    let user = user.bind(hash).fetch_optional(&pool).await;
    let user = user.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    request.extensions_mut().insert(User(user.ok_or(StatusCode::UNAUTHORIZED)?));
    Ok(next.run(request).await)
}
