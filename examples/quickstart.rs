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
    PREFIX, Result, bind, issue_demo_key, load_dotenv, routes, setting, terminated, timed,
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

    timed::serve(listener, routes(keys.authenticator().clone())?, end).await;
    keys.stop().await;
    Ok(())
}
