use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use super::{RejectionKind, catch_panic::Throttle};
use crate::{record::KeyId, store::StoreError, trace};

/// Receives events for metrics and alerts.
///
/// Called within requests, so implementations must be quick and must not block. Admitted requests
/// produce no event, except those with rotated keys; count them in the layer around this one. A
/// panic is caught and logged, and changes no answer.
pub trait Observer: Send + Sync + 'static {
    /// Called for each event.
    fn observe(&self, event: &Event<'_>);
}

impl<F: Fn(&Event<'_>) + Send + Sync + 'static> Observer for F {
    fn observe(&self, event: &Event<'_>) {
        self(event);
    }
}

/// An event for metrics and alerts.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A request was rejected. Alert on [`Revoked`](RejectionKind::Revoked): a client still has
    /// that key.
    #[non_exhaustive]
    Rejected {
        /// The reason.
        kind: RejectionKind,
        /// The key, if it exists.
        key_id: Option<KeyId>,
    },
    /// A rotated key was let in during its grace period. Once these events stop, the key can be
    /// revoked.
    #[non_exhaustive]
    RetiredKeyUsed {
        /// The key.
        key_id: KeyId,
    },
    /// A key names a plan that neither the store nor the [builder](super::Builder::plans) defines.
    /// It has the limits of keys without a plan. Reported each time the key is loaded.
    #[non_exhaustive]
    UnknownPlan {
        /// The key.
        key_id: KeyId,
    },
    /// A key was checked against an old record, because the store did not answer or is a replica
    /// that is too far behind.
    #[non_exhaustive]
    StaleServed {
        /// The key.
        key_id: KeyId,
    },
    /// A look-up failed: the store did not answer, not in time, or with an invalid record.
    #[non_exhaustive]
    LoadFailed {
        /// The error.
        error: &'a StoreError,
    },
    /// Last uses were written.
    #[non_exhaustive]
    UsageFlushed {
        /// The number of keys.
        keys: usize,
    },
    /// Last uses could not be written. They are kept for the next attempt.
    #[non_exhaustive]
    UsageFlushFailed {
        /// The store's error.
        error: &'a StoreError,
    },
    /// The use of a key was dropped because a buffer was full.
    UsageDropped,
    /// The change feed is connected, for the first time or after a gap. Every cached record is
    /// confirmed before it is trusted again.
    FeedLive,
    /// The change feed failed, or reads a replica that is too far behind: a gap begins. Reported
    /// once per gap.
    #[non_exhaustive]
    FeedLost {
        /// The error.
        error: &'a StoreError,
    },
    /// The change feed received a message that is forged, replayed or malformed. It was ignored.
    FeedMessageUnrecognized,
    /// The wall clock ran ahead of the [monotonic](crate::clock::Clock::monotonic) one, because the
    /// machine slept or the wall clock was set. Every cached record is confirmed before it is
    /// trusted again.
    #[non_exhaustive]
    ClockGap {
        /// By how much.
        ahead: Duration,
    },
    /// A duty of the [`Worker`](super::Worker) panicked and is restarted after 50 ms to 5 s. The
    /// other duties are not affected.
    #[non_exhaustive]
    DutyPanicked {
        /// One of `change feed`, `usage`, `limiter sweep`, `store probe` and `clock check`.
        duty: &'static str,
    },
}

/// The observer, if there is one. A panic of it must not fail the request.
pub(super) struct PanicSafeObserver {
    observer: Option<Arc<dyn Observer>>,
    panics: Throttle,
}

impl PanicSafeObserver {
    pub(super) const fn new(observer: Option<Arc<dyn Observer>>) -> Self {
        Self { observer, panics: Throttle::new() }
    }

    pub(super) fn observe(&self, event: &Event<'_>) {
        if let Some(observer) = &self.observer
            && catch_unwind(AssertUnwindSafe(|| observer.observe(event))).is_err()
            && self.panics.is_due()
        {
            trace::warn!("observer panicked; see the panic's own message");
        }
    }
}
