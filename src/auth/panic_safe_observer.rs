//! Passes events on, so that a panic of the recorder or the observer fails no request.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use super::{Event, Observer, catch_panic::Throttle, metrics::Metrics};
use crate::trace;

/// The metrics, and the observer if there is one. A panic of them must not fail the request.
pub(super) struct PanicSafeObserver {
    pub(super) metrics: Metrics,
    observer: Option<Arc<dyn Observer>>,
    panics: Throttle,
}

impl PanicSafeObserver {
    pub(super) const fn new(metrics: Metrics, observer: Option<Arc<dyn Observer>>) -> Self {
        Self { metrics, observer, panics: Throttle::new() }
    }

    #[inline]
    pub(super) fn observe(&self, event: &Event<'_>) {
        if Metrics::IS_ON || self.observer.is_some() {
            self.pass_on(event);
        }
    }

    fn pass_on(&self, event: &Event<'_>) {
        let observe = || {
            self.metrics.count(event);
            if let Some(observer) = &self.observer {
                observer.observe(event);
            }
        };
        if catch_unwind(AssertUnwindSafe(observe)).is_err() && self.panics.is_due() {
            trace::warn!("observer panicked; see the panic's own message");
        }
    }
}
