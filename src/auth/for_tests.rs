//! What the test kit does in place of a running worker.

use super::Authenticator;

impl Authenticator {
    /// Asks the store again at once, rather than after the cool-down of its circuit breaker.
    pub(crate) fn store_is_back(&self) {
        self.core().lookup.store_is_back();
    }

    /// Wakes the streams that wait for the end of a key. They sleep by tokio's timers, which a
    /// test's clock does not move.
    pub(crate) fn clock_was_advanced(&self) {
        self.core().wake_watchers();
    }
}
