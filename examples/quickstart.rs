//! The quickstart, with nothing to set up:
//!
//! ```text
//! cargo run --example quickstart --features sqlite
//! ```
//!
//! `BIND` and `DATABASE_URL` (`sqlite:` or `postgres:`) can be set in the environment or in a
//! `.env` file. Each start issues a key and prints it, which no real service should do. SIGTERM and
//! Ctrl-C stop it: running requests are answered, then the last uses of keys are written.

mod shared;

use shared::{Result, bind, issue_demo_key, key_format, load_dotenv, routes, setting, terminated};
use tokio::net::TcpListener;
use tower_api_key::{
    Authenticator,
    store::{ManageKeys, PgKeyStore, SqliteKeyStore},
};

fn main() -> Result<()> {
    load_dotenv()?;
    run()
}

#[tokio::main]
async fn run() -> Result<()> {
    match setting("DATABASE_URL") {
        Some(url) if url.starts_with("postgres") => {
            let store = PgKeyStore::connect(&url).await?;
            store.migrate().await?;
            start(store).await
        }
        url => {
            let store =
                SqliteKeyStore::connect(url.as_deref().unwrap_or("sqlite::memory:")).await?;
            store.migrate().await?;
            start(store).await
        }
    }
}

async fn start(store: impl ManageKeys + Clone) -> Result<()> {
    let (auth, worker) = Authenticator::builder(store.clone(), key_format()?).build();
    let end = terminated()?;
    let listener = TcpListener::bind(bind()).await?;
    let address = listener.local_addr()?;
    let key = issue_demo_key(store, &auth).await?;

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

    shared::serve(listener, routes(auth)?, worker, end).await
}
