use std::time::Duration;

use metrics::{
    Counter, Gauge, Key, KeyName, Label, Level, Metadata, Recorder, Unit, with_recorder,
};

use crate::webhooks::outcome::Outcome;

static METADATA: Metadata<'static> =
    Metadata::new("tower_api_key", Level::INFO, Some("tower_api_key"));

const DELIVERIES: &str = "api_key_webhook_deliveries_total";
const PARKED: &str = "api_key_webhooks_parked";
const LAG: &str = "api_key_webhook_lag_seconds";

/// Handles of the recorder that was installed when the worker was made.
pub(in crate::webhooks) struct Metrics {
    deliveries: [Counter; Outcome::ALL.len()],
    parked: Gauge,
    lag: Gauge,
}

impl Metrics {
    pub(in crate::webhooks) fn new() -> Self {
        with_recorder(describe);
        let deliveries = Outcome::ALL.map(|outcome| {
            let label = Label::from_static_parts("outcome", outcome.as_str());
            let key = Key::from_parts(DELIVERIES, vec![label]);
            with_recorder(|recorder| recorder.register_counter(&key, &METADATA))
        });
        let gauge = |name: &'static str| {
            let key = Key::from_static_name(name);
            with_recorder(|recorder| recorder.register_gauge(&key, &METADATA))
        };
        Self { deliveries, parked: gauge(PARKED), lag: gauge(LAG) }
    }

    pub(in crate::webhooks) fn count(&self, outcome: Outcome) {
        if let Some(counter) = self.deliveries.get(outcome as usize) {
            counter.increment(1);
        }
    }

    /// Sets the gauges: endpoints that are parked, and the age of the oldest undelivered event.
    pub(in crate::webhooks) fn show(&self, parked: usize, age: Duration) {
        #[expect(clippy::cast_precision_loss, reason = "there are at most 100 endpoints")]
        self.parked.set(parked as f64);
        self.lag.set(age.as_secs_f64());
    }

    /// Another node delivers, and shows them.
    pub(in crate::webhooks) fn clear(&self) {
        self.show(0, Duration::ZERO);
    }
}

fn describe(recorder: &dyn Recorder) {
    let name = KeyName::from_const_str;
    let text = "Requests to webhook endpoints by outcome.";
    recorder.describe_counter(name(DELIVERIES), Some(Unit::Count), text.into());
    let text = "Webhook endpoints that get no events, because deliveries failed for days.";
    recorder.describe_gauge(name(PARKED), Some(Unit::Count), text.into());
    let text = "The age of the oldest event that was not delivered to a webhook endpoint.";
    recorder.describe_gauge(name(LAG), Some(Unit::Seconds), text.into());
}
