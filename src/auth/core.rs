//! What the requests and the worker of an authenticator share.

use std::{sync::Arc, time::Duration};

#[cfg(feature = "metrics")]
use super::metrics::Levels;
use super::{
    Event, Rejection, RejectionKind,
    attempt::Charge,
    cache::{CachePolicy, Entry, KeyCache, LimitResolver},
    catch_panic::catch_request_panic,
    client::{PlaceReason, PlaceRefusal},
    clock_gap::ClockCheck,
    health::FeedState,
    hour_total::HourTotal,
    key_log::KeyLog,
    lookup::{DynStore, Legacy, Lookup},
    metrics::Metrics,
    panic_safe_observer::PanicSafeObserver,
    use_reports::{Full, UseReports},
};
use crate::{
    clock::Clock,
    record::{Consumer, KeyId, KeyStatus, UseRejection},
    trace,
};

/// The cache, the look-ups that fill it, and what both need.
pub(super) struct Core {
    pub(super) store: Arc<dyn DynStore>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) clock_check: ClockCheck,
    observer: PanicSafeObserver,
    /// Revoked and expired keys whose use was logged.
    ended: KeyLog<KeyId>,
    /// Would-be rejections in shadow mode that were logged.
    shadowed: KeyLog<(Option<KeyId>, RejectionKind)>,
    pub(super) limits: LimitResolver,
    pub(super) cache: KeyCache,
    pub(super) feed: FeedState,
    pub(super) lookup: Lookup,
    /// Verifies keys that still have hashes of another system.
    pub(super) legacy: Option<Arc<Legacy>>,
    place_refusals: trace::ErrorLog,
    pub(super) use_reports: UseReports,
    pub(super) hour_total: HourTotal,
}

impl Core {
    pub(super) fn new(
        store: Arc<dyn DynStore>,
        limits: LimitResolver,
        observer: PanicSafeObserver,
        lookup: Lookup,
        legacy: Option<Arc<Legacy>>,
        policy: CachePolicy,
        use_reports: UseReports,
    ) -> Self {
        Self {
            store,
            clock: Arc::clone(&limits.meters.clock),
            clock_check: ClockCheck::default(),
            observer,
            ended: KeyLog::default(),
            shadowed: KeyLog::default(),
            limits,
            feed: FeedState::default(),
            lookup,
            legacy,
            cache: KeyCache::new(policy),
            place_refusals: trace::ErrorLog::default(),
            use_reports,
            hour_total: HourTotal::default(),
        }
    }

    /// The status of the key at `now` of the monotonic clock, corrected by the time that this clock
    /// missed.
    pub(super) fn status(&self, entry: &Entry, now: Duration) -> KeyStatus {
        match self.missed_since(entry) {
            Duration::ZERO => entry.status(now),
            missed => entry.status_after_gap(now, missed),
        }
    }

    /// The time that the monotonic clock has missed since the key was loaded.
    pub(super) fn missed_since(&self, entry: &Entry) -> Duration {
        Duration::from_nanos(self.clock_check.missed().saturating_sub(entry.ext.missed))
    }

    /// If the wall clock ran ahead of the monotonic clock, cached keys may have expired meanwhile;
    /// they must all be confirmed.
    pub(super) fn check_clocks(&self) {
        if let Some(ahead) = self.clock_check.check(&*self.clock) {
            trace::warn!(?ahead, "wall clock ran ahead of the monotonic one; cached keys expired");
            self.expire_all();
            self.observe(&Event::ClockGap { ahead });
        }
    }

    /// Logs a key that was used from where it does not work, at most once a minute for each key and
    /// reason.
    pub(super) fn refuse_place(&self, refusal: PlaceRefusal, now: Duration) -> Rejection {
        let address = match refusal.reason {
            PlaceReason::Network(address) => Some(address),
            _ => None,
        };
        self.place_refusals.warn_from("key refused", &refusal, address, now);
        Rejection::of_place(&refusal)
    }

    /// Counts a request that is let in.
    pub(super) fn count_admission(&self, entry: &Arc<Entry>, charge: Charge, now: Duration) {
        if entry.ext.uses.admit(charge != Charge::Nothing) {
            self.tell_use(Consumer::of(entry), Some(now));
        }
    }

    /// Counts a request with a known key that is not let in.
    pub(super) fn count_rejection(&self, entry: &Arc<Entry>, rejection: UseRejection) {
        if entry.ext.uses.reject(rejection) {
            self.tell_use(Consumer::of(entry), None);
        }
    }

    /// Tells the worker that the counts of `key` are not zero, and when it was used if it was.
    #[cold]
    pub(super) fn tell_use(&self, key: Consumer, at: Option<Duration>) {
        if let Err(Full) = self.use_reports.tell(key, at) {
            self.observe(&Event::UsageDropped);
        }
    }

    /// Reports an event to the observer.
    pub(super) fn observe(&self, event: &Event<'_>) {
        self.observer.observe(event);
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.observer.metrics
    }

    /// Updates the metrics that are not events.
    pub(super) fn refresh_metrics(&self) {
        #[cfg(feature = "metrics")]
        self.metrics().refresh(&Levels {
            entries: self.cache.entries(),
            is_store_up: self.lookup.is_store_up() == Some(true),
            feed: self.feed.health(),
            limiter: self.limits.meters.limiter.health(),
            legacy_left: self.legacy.as_ref().and_then(|legacy| legacy.left()),
        });
    }

    /// Logs the use of a key that was revoked or has expired: a client still has it.
    pub(super) fn ended_key_used(&self, key_id: KeyId, kind: RejectionKind) {
        // Without the feature `tracing`, nothing is logged.
        let _ = key_id;
        let is_due = || self.ended.is_due(&key_id, self.clock.monotonic());
        if !trace::is_warn_enabled() || !catch_request_panic(is_due).unwrap_or(false) {
            return;
        }
        if kind == RejectionKind::Revoked {
            trace::warn!(%key_id, "revoked key used");
        } else {
            trace::warn!(%key_id, "expired key used");
        }
    }

    /// Logs a request that passes in shadow mode and would be rejected without it, at most once a
    /// minute for each key and reason. All requests without a known key are one key.
    pub(super) fn request_would_be_rejected(&self, key_id: Option<KeyId>, kind: RejectionKind) {
        let is_due = || self.shadowed.is_due(&(key_id, kind), self.clock.monotonic());
        if !trace::is_warn_enabled() || !catch_request_panic(is_due).unwrap_or(false) {
            return;
        }
        let key_id = key_id.map(|key_id| key_id.to_string());
        let reason = kind.as_str();
        trace::warn!(key_id, reason, "request would be rejected");
        // Without the feature `tracing`, nothing is logged.
        let _ = (key_id, reason);
    }
}
