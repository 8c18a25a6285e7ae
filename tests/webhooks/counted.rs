//! Metrics of deliveries.

use std::time::Duration;

use metrics_exporter_prometheus::PrometheusBuilder;
use tower_api_key::{
    clock::{Clock as _, ManualClock, SystemClock},
    record::EventFilter,
};

use crate::{
    databases::{Place, Running},
    receiver::{Receiver, Reply},
    wait::eventually,
};

#[tokio::test]
async fn deliveries_are_counted_by_outcome_and_parked_endpoints_and_the_lag_are_shown() {
    let place = Place::sqlite().await;
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    let value = |name: &str| -> f64 {
        let text = handle.render();
        let line =
            text.lines().find(|line| line.starts_with(&format!("{name} "))).map(str::to_owned);
        line.map_or(f64::NAN, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    };
    let deliveries = |outcome: &str| {
        value(&format!("api_key_webhook_deliveries_total{{outcome=\"{outcome}\"}}"))
    };
    let clock = ManualClock::at(SystemClock::new().now());
    let webhooks = place.webhooks().clock(clock.clone());
    let receiver = Receiver::start().await;
    receiver.replies(|_| Reply::Status(503));
    webhooks.add(&receiver.url(), EventFilter::all()).await.unwrap();
    let worker = metrics::with_local_recorder(&recorder, || webhooks.worker());
    let running = Running::run(worker);
    eventually("an attempt was rejected", async || deliveries("rejected") >= 1.0).await;
    clock.advance(Duration::from_secs(3));
    eventually("the lag is shown", async || value("api_key_webhook_lag_seconds") >= 2.0).await;
    eventually("the endpoint is parked", async || {
        clock.advance(Duration::from_secs(3600));
        value("api_key_webhooks_parked") == 1.0
    })
    .await;
    assert_eq!(deliveries("rejected"), 18.0);
    receiver.replies(|_| Reply::Status(200));
    let id = webhooks.list().await.unwrap()[0].id;
    webhooks.replay(id, None).await.unwrap();
    receiver.has_requests(19).await;
    eventually("a delivery is counted", async || deliveries("delivered") >= 1.0).await;
    eventually("nothing is parked or late", async || {
        value("api_key_webhooks_parked") == 0.0 && value("api_key_webhook_lag_seconds") == 0.0
    })
    .await;
    running.stop().await;
}
