//! The quickstart, with nothing to set up:
//!
//! ```text
//! cargo run --example quickstart --features sqlite
//! ```
//!
//! `BIND` and `DATABASE_URL` (`sqlite:` or `postgres:`) can be set in the environment or in a
//! `.env` file. Each start issues a key and prints it, which no real service should do. SIGTERM and
//! Ctrl-C stop it: running requests are answered, then the last uses of keys are written.

#[expect(dead_code, reason = "each example uses a part of it")]
mod shared;

use shared::{
    PREFIX, Result, bind, issue_demo_key, load_dotenv, print_requests, routes, setting, terminated,
    timed,
};
use tokio::net::TcpListener;
use tower_api_key::ApiKeys;

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
    let key = issue_demo_key(&keys.issuer()).await?;
    print_requests(address, &key);
    timed::serve(listener, routes(keys.authenticator().clone())?, end).await;
    keys.stop().await;
    Ok(())
}
