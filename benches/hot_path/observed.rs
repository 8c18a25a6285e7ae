//! What observation costs: metrics on the hit path, and a log line whose keys are masked.

use std::io;

use tokio::runtime::Runtime;
use tower_api_key::key::{KeyFormat, KeyMask, MaskingWriter};
use tracing::Dispatch;

use crate::{run, support::Cases};

/// Nanoseconds.
#[cfg(feature = "metrics")]
const MOST_FOR_METRICS: f64 = 10.0;
/// The share of a log line without keys.
const MOST_FOR_MASKING: f64 = 0.1;

pub(crate) fn measure(runtime: &Runtime) {
    metrics(runtime);
    masking();
}

/// Without a recorder, handles do nothing. The feature itself is compared by the benchmark of
/// instructions.
#[cfg(feature = "metrics")]
fn metrics(runtime: &Runtime) {
    use http::StatusCode;
    use metrics_exporter_prometheus::PrometheusBuilder;

    use crate::service::{self, Service, ask};

    let without = Service::new(runtime, 1, service::roomy());
    let _prometheus = PrometheusBuilder::new().install_recorder().unwrap();
    let with = Service::new(runtime, 1, service::roomy());
    let (plain, counted) =
        (service::bare().layer(without.layer()), service::bare().layer(with.layer()));
    let mut cases = Cases::default();
    cases.add("hit, no recorder", || {
        assert_eq!(ask(&plain, without.hot()), StatusCode::OK);
    });
    cases.add("hit, Prometheus' recorder", || {
        assert_eq!(ask(&counted, with.hot()), StatusCode::OK);
    });
    run(&mut cases);
    println!(
        "metrics: {:+.1} ns (paired {:+.1}), should be at most {MOST_FOR_METRICS:.0}\n",
        cases.min("hit, Prometheus' recorder") - cases.min("hit, no recorder"),
        cases.more_than("hit, no recorder", "hit, Prometheus' recorder"),
    );
}

#[cfg(not(feature = "metrics"))]
fn metrics(_: &Runtime) {
    println!("metrics: not measured without the feature\n");
}

/// To a writer that does nothing, since writing to a file would hide the difference.
fn masking() {
    let mask = KeyMask::from(KeyFormat::new("sk_live_").unwrap());
    let masked = move || MaskingWriter::new(io::sink(), mask.clone());
    let plain = Dispatch::new(tracing_subscriber::fmt().with_writer(io::sink).finish());
    let masked = Dispatch::new(tracing_subscriber::fmt().with_writer(masked).finish());
    let mut cases = Cases::default();
    for (name, dispatch) in [("log line", &plain), ("log line, masked", &masked)] {
        cases.add(name, move || tracing::dispatcher::with_default(dispatch, log));
    }
    run(&mut cases);
    let (plain, masked) = (cases.min("log line"), cases.min("log line, masked"));
    let paired = cases.more_than("log line", "log line, masked");
    println!(
        "masking: {:+.1} % (paired {:+.1} %), should be below {:.0} %",
        (masked / plain - 1.0) * 100.0,
        paired / cases.median("log line") * 100.0,
        MOST_FOR_MASKING * 100.0,
    );
}

fn log() {
    tracing::info!(
        method = "GET",
        path = "/v1/orders/4711/items",
        status = 200,
        latency_ms = 3,
        consumer = "acme",
        request_id = "0198c0de-7d1c-7a33-8f3e-2b1d0c9e8f7a",
        "finished processing request",
    );
}
