//! The compared servers on axum: a route that answers "ok", and the middleware before it.
//!
//! Each is a process of its own: this program, started again as `serve NAME`.

use std::{error::Error, future::pending, io::Read, thread, time::Duration};

use axum::{Router, middleware::from_fn_with_state, routing::get};
use sqlx::{PgPool, postgres::PgPoolOptions};
use tokio::net::TcpListener;
use tower_api_key::{
    ApiKeyLayer, Authenticator,
    key::KeyFormat,
    layer::RateLimitHeaders,
    rate_limit::Quota,
    store::{PgChangeFeed, PgKeyStore},
};
use tower_governor::{GovernorLayer, governor::GovernorConfigBuilder};

use crate::baseline;

/// The middleware before the handler.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Server {
    Bare,
    LayerWithoutHeaders,
    Layer,
    LayerWithXHeaders,
    FromFnAttempt,
    FromFnCache,
    FromFnQuery,
    TowerGovernor,
}

impl Server {
    pub(crate) const ALL: [Self; 8] = [
        Self::Bare,
        Self::LayerWithoutHeaders,
        Self::Layer,
        Self::LayerWithXHeaders,
        Self::FromFnAttempt,
        Self::FromFnCache,
        Self::FromFnQuery,
        Self::TowerGovernor,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Bare => "axum",
            Self::LayerWithoutHeaders => "layer-headers-off",
            Self::Layer => "layer",
            Self::LayerWithXHeaders => "layer-x-ratelimit",
            Self::FromFnAttempt => "from_fn-attempt",
            Self::FromFnCache => "from_fn-cache",
            Self::FromFnQuery => "from_fn-query",
            Self::TowerGovernor => "tower_governor",
        }
    }

    /// The label in the figure.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Bare => "axum alone",
            Self::LayerWithoutHeaders => "tower-api-key, no headers",
            Self::Layer => "tower-api-key",
            Self::LayerWithXHeaders => "tower-api-key, X-RateLimit",
            Self::FromFnAttempt => "the same work in from_fn",
            Self::FromFnCache => "from_fn, moka, governor",
            Self::FromFnQuery => "from_fn, a query each",
            Self::TowerGovernor => "tower_governor, limits only",
        }
    }

    pub(crate) const fn description(self) -> &'static str {
        match self {
            Self::Bare => "axum alone: no keys, no limits",
            Self::LayerWithoutHeaders => "ApiKeyLayer, PgKeyStore and PgChangeFeed; headers off",
            Self::Layer => "ApiKeyLayer, PgKeyStore and PgChangeFeed; default headers",
            Self::LayerWithXHeaders => "the same; X-RateLimit headers instead",
            Self::FromFnAttempt => "the work of `layer` in an axum from_fn, by the Authenticator",
            Self::FromFnCache => "axum from_fn: moka, keyed governor, X-RateLimit headers",
            Self::FromFnQuery => "axum from_fn: a query per request, no limits",
            Self::TowerGovernor => "tower_governor: limits and headers, no authentication",
        }
    }

    /// Whether it refuses unknown keys.
    pub(crate) const fn authenticates(self) -> bool {
        !matches!(self, Self::Bare | Self::TowerGovernor)
    }

    /// Whether it caches keys.
    pub(crate) const fn caches(self) -> bool {
        self.authenticates() && !matches!(self, Self::FromFnQuery)
    }

    async fn app(self, url: &str) -> Result<Router, Box<dyn Error>> {
        let routes = Router::new().route("/", get(|| async { "ok" }));
        let layer = async || Ok::<_, Box<dyn Error>>(ApiKeyLayer::new(authenticator(url).await?));
        Ok(match self {
            Self::Bare => routes,
            Self::LayerWithoutHeaders => {
                routes.layer(layer().await?.rate_limit_headers(RateLimitHeaders::Off))
            }
            Self::Layer => routes.layer(layer().await?),
            Self::LayerWithXHeaders => {
                routes.layer(layer().await?.rate_limit_headers(RateLimitHeaders::Legacy))
            }
            Self::FromFnAttempt => {
                let gate = baseline::Gate::new(authenticator(url).await?, &quota()?);
                routes.layer(from_fn_with_state(gate, baseline::attempt))
            }
            Self::FromFnCache => {
                let cache = baseline::Cache::new(PgPoolOptions::new().connect(url).await?, BURST);
                routes.layer(from_fn_with_state(cache, baseline::cached::<PgPool>))
            }
            Self::FromFnQuery => {
                let pool = PgPoolOptions::new().connect(url).await?;
                routes.layer(from_fn_with_state(pool, baseline::queried))
            }
            Self::TowerGovernor => {
                let config = GovernorConfigBuilder::default()
                    .key_extractor(baseline::BearerKey)
                    .period(Duration::from_secs(1) / BURST)
                    .burst_size(BURST)
                    .use_headers()
                    .finish();
                routes.layer(GovernorLayer::new(config.ok_or("tower_governor's settings")?))
            }
        })
    }
}

/// A limit that no load reaches.
const BURST: u32 = 50_000_000;

fn quota() -> Result<Quota, Box<dyn Error>> {
    Ok(Quota::per_second(BURST)?.named("minute")?)
}

pub(crate) fn key_format() -> Result<KeyFormat, Box<dyn Error>> {
    Ok(KeyFormat::new("sk_live_")?)
}

async fn authenticator(url: &str) -> Result<Authenticator, Box<dyn Error>> {
    let store = PgKeyStore::connect(url).await?;
    let feed = PgChangeFeed::new(store.pool().clone());
    let (auth, worker) = Authenticator::builder(store, key_format()?)
        .default_rate_limits(quota()?)
        .change_feed(feed)
        .build();
    tokio::spawn(worker.run(pending()));
    Ok(auth)
}

/// Serves until standard input closes, which happens when the parent process ends.
pub(crate) fn serve(name: &str) -> Result<(), Box<dyn Error>> {
    let server = Server::ALL.into_iter().find(|server| server.name() == name);
    let server = server.ok_or_else(|| format!("there is no server {name:?}"))?;
    let url = std::env::var("DATABASE_URL")?;
    thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    // As many threads as the process may use cores.
    tokio::runtime::Runtime::new()?.block_on(async {
        let app = server.app(&url).await?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("{{\"port\": {}}}", listener.local_addr()?.port());
        Ok(axum::serve(listener, app).await?)
    })
}
