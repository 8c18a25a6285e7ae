use std::sync::atomic::AtomicBool;

use super::{metrics::Metrics, settings::Settings};
use crate::{store::StoreError, trace::ErrorLog};

/// What the deliveries of a worker share.
pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) metrics: Metrics,
    pub(super) is_stopping: AtomicBool,
    pub(super) errors: ErrorLog,
}

impl Shared {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            settings,
            metrics: Metrics::new(),
            is_stopping: AtomicBool::new(false),
            errors: ErrorLog::default(),
        }
    }

    pub(super) fn warn(&self, error: &StoreError) {
        self.errors.warn("webhooks delayed", error, self.settings.clock.monotonic());
    }
}
