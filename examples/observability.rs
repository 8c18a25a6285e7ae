//! Metrics for Prometheus, logs as JSON, and no key in either. With nothing to set up:
//!
//! ```text
//! cargo run --example observability --features metrics,sqlite
//! ```
//!
//! `GET /metrics` is for Prometheus; `docs/alerts.yml` has alert rules and `docs/grafana.json` a
//! dashboard. Logs go to stderr. `BIND`, `DATABASE_URL` (`sqlite:` or `postgres:`) and `RUST_LOG` can
//! be set in the environment or in a `.env` file. Each start issues a key and prints it, which no
//! real service should do. SIGTERM and Ctrl-C stop it.

#[expect(dead_code, reason = "each example uses a part of it")]
mod shared;

use std::{io, panic, time::Duration};

use axum::{Router, response::IntoResponse, routing::get};
use http::header::CONTENT_TYPE;
use metrics::{describe_gauge, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use shared::{
    PREFIX, Result, bind, issue_demo_key, load_dotenv, print_requests, routes, setting, terminated,
    timed,
};
use tokio::{
    net::TcpListener,
    time::{MissedTickBehavior, interval},
};
use tower_api_key::{
    ApiKeys, Authenticator,
    clock::{Clock, SystemClock},
    key::{KeyFormat, KeyMask, MaskingWriter},
    layer,
    manage::{KeyIssuer, ManageError},
    record::KeyStatus,
    store::KeyQuery,
};
use tower_http::trace::{DefaultOnResponse, TraceLayer};
use tracing::Level;
use tracing_subscriber::EnvFilter;

/// Keys that expire this soon are counted.
const SOON: Duration = Duration::from_secs(7 * 86_400);
const COUNT_EVERY: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    load_dotenv()?;
    run()
}

#[tokio::main]
async fn run() -> Result<()> {
    log()?;
    // Before the authenticator is built, which takes its handles from the recorder.
    let metrics = recorder()?;
    let url = setting("DATABASE_URL");
    let keys = ApiKeys::open(url.as_deref().unwrap_or("sqlite::memory:"), PREFIX).await?;
    start(&keys, metrics).await?;
    keys.stop().await;
    Ok(())
}

/// One line of JSON for each event, with the fields of its span. Whatever a line says, the keys in it
/// are masked, also in a panic.
fn log() -> Result<()> {
    let filter = EnvFilter::try_new(setting("RUST_LOG").as_deref().unwrap_or("info"))
        .map_err(|error| format!("RUST_LOG: {error}"))?;
    let mask = KeyMask::from(KeyFormat::new(PREFIX)?);
    tracing_subscriber::fmt()
        .json()
        .with_env_filter(filter)
        .with_writer(move || MaskingWriter::new(io::stderr(), mask.clone()))
        .init();
    panic::set_hook(Box::new(|panic| tracing::error!(%panic, "panicked")));
    Ok(())
}

/// Without buckets, the exporter would compute quantiles of each node, which cannot be aggregated.
fn recorder() -> Result<PrometheusHandle> {
    let seconds = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];
    let builder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full("api_key_lookup_seconds".into()), &seconds)?
        .set_buckets_for_metric(Matcher::Full("api_key_usage_flush_seconds".into()), &seconds)?;
    Ok(builder.install_recorder()?)
}

async fn start(keys: &ApiKeys, metrics: PrometheusHandle) -> Result<()> {
    let end = terminated()?;
    let listener = TcpListener::bind(bind()).await?;
    let address = listener.local_addr()?;
    let key = issue_demo_key(&keys.issuer()).await?;
    describe_gauge!("api_key_expiring_keys", "Keys that expire within 7 days.");
    count_expiring(&keys.issuer()).await?;
    tokio::spawn(keep_counting(keys.issuer()));
    print_requests(address, &key);
    println!("# 200: what Prometheus reads");
    println!("curl -i http://{address}/metrics");

    timed::serve(listener, app(keys.authenticator().clone(), metrics)?, end).await;
    Ok(())
}

fn app(auth: Authenticator, metrics: PrometheusHandle) -> Result<Router> {
    let api = routes(auth.clone())?.layer(
        TraceLayer::new_for_http()
            .make_span_with(layer::make_span)
            .on_response(DefaultOnResponse::new().level(Level::INFO)),
    );
    // A real service serves it on a port that only Prometheus reaches.
    let metrics = get(async move || {
        auth.refresh_metrics();
        metrics.run_upkeep();
        ([(CONTENT_TYPE, "text/plain; version=0.0.4")], metrics.render()).into_response()
    });
    Ok(api.route("/metrics", metrics))
}

async fn keep_counting(issuer: KeyIssuer) {
    let mut ticks = interval(COUNT_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Err(error) = count_expiring(&issuer).await {
            tracing::warn!(%error, "count of expiring keys failed");
        }
    }
}

/// The label of a metric is never a key: there may be any number of them.
async fn count_expiring(issuer: &KeyIssuer) -> Result<(), ManageError> {
    let soon = SystemClock::new().now() + SOON;
    let mut query = KeyQuery::new().status(KeyStatus::Active).expires_before(soon).limit(1_000);
    let mut count = 0;
    loop {
        let page = issuer.list(&query).await?;
        count += page.keys.len();
        match page.next {
            Some(next) => query = query.after(next),
            None => break,
        }
    }
    gauge!("api_key_expiring_keys").set(count as f64);
    Ok(())
}
