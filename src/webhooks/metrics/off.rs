use std::time::Duration;

use crate::webhooks::outcome::Outcome;

/// Counts nothing.
pub(in crate::webhooks) struct Metrics;

impl Metrics {
    pub(in crate::webhooks) fn new() -> Self {
        Self
    }

    pub(in crate::webhooks) fn count(&self, outcome: Outcome) {
        let _ = (Outcome::ALL, outcome.as_str());
    }

    pub(in crate::webhooks) fn show(&self, _: usize, _: Duration) {}

    pub(in crate::webhooks) fn clear(&self) {}
}
