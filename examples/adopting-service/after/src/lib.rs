//! Projects of users. Each user has keys: 64 hexadecimal digits, stored as their SHA-256.

use std::error::Error;

use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use sqlx::{PgPool, query_scalar};
use tower_api_key::{
    ApiKeys, Consumer,
    key::{Alphabet, ImportedFormat, KeyFormat},
    store::PgKeyStore,
};

/// The service on the database at `url`.
pub async fn open(url: &str) -> Result<(Router, ApiKeys), Box<dyn Error>> {
    let store = PgKeyStore::builder().schema("keys").connect(url).await?;
    let keys = ApiKeys::builder(store, KeyFormat::new("sk_live_")?)
        .accept(ImportedFormat::new("", Alphabet::Hex, 64)?)
        .await?;
    let pool = PgPool::connect(url).await?;
    sqlx::migrate!().run(&pool).await?;
    let app = Router::new().route("/projects", get(projects)).layer(keys.layer());
    Ok((app.with_state(pool), keys))
}

async fn projects(
    State(pool): State<PgPool>,
    consumer: Consumer,
) -> Result<Json<Vec<String>>, StatusCode> {
    let user: i64 = consumer.id().parse().map_err(|_| StatusCode::FORBIDDEN)?;
    let names = query_scalar("select name from projects where user_id = $1 order by name");
    let names = names.bind(user).fetch_all(&pool).await;
    names.map(Json).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}
