use std::{net::IpAddr, time::Duration};

use super::RejectionKind;
use crate::{
    rate_limit::Decision,
    record::{Consumer, KeyId},
    store::StoreError,
};

/// Receives events for metrics and alerts.
///
/// Called within requests, so implementations must be quick and must not block: an admitted request
/// costs one call, and nothing without an observer. A panic is caught and logged, and changes no
/// answer. With the feature `metrics`, the metrics of the
/// [manual](crate::manual::observability) are counted without an observer.
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
    /// A request was admitted. With [`Rejected`](Self::Rejected), each request is reported once: by
    /// [`ApiKeyLayer`](crate::ApiKeyLayer) when the response begins or the client has hung up, and
    /// not as admitted if an inner layer such as [`RequireScope`](crate::RequireScope) rejected it;
    /// by [`Authenticator::check`](super::Authenticator::check) when it is awaited. A request that
    /// passes several layers of one authenticator is reported by the outermost one. Requests
    /// without a key, on optional routes, are not reported.
    #[non_exhaustive]
    Admitted {
        /// The consumer.
        consumer: &'a Consumer,
        /// What was left of each quota of the key, in the order of its limits.
        decisions: &'a [Decision],
    },
    /// A query for a key ended, including the worker's probes of the store.
    #[non_exhaustive]
    Loaded {
        /// How.
        outcome: LoadOutcome,
        /// The time of the query, without the wait for a permit.
        took: Duration,
    },
    /// A request was rejected. Alert on [`Revoked`](RejectionKind::Revoked): a client still has
    /// that key.
    #[non_exhaustive]
    Rejected {
        /// The reason.
        kind: RejectionKind,
        /// The key, if it exists.
        key_id: Option<KeyId>,
    },
    /// A request passed a layer in [shadow mode](crate::ApiKeyLayer::shadow), which decided this.
    /// Neither [`Admitted`](Self::Admitted) nor [`Rejected`](Self::Rejected) is reported of it,
    /// unless another layer or an extractor decides about the same request.
    #[non_exhaustive]
    Shadowed {
        /// Why it would have been rejected; `None` if it would have been admitted.
        would_reject: Option<RejectionKind>,
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
    /// An unknown key was compared with the [legacy hash](super::Builder::legacy_hashes) of one key,
    /// or with none because there was no capacity.
    #[non_exhaustive]
    LegacyHashCompared {
        /// How.
        outcome: VerificationOutcome,
        /// The time of the comparison.
        took: Duration,
    },
    /// A key was used for the first time since its import, and its legacy hash was replaced.
    #[non_exhaustive]
    Rehashed {
        /// The key.
        key_id: KeyId,
    },
    /// A [canary](crate::record::KeyKind::Canary) key was presented, and refused as an unknown one.
    /// Alert on it: an intruder has found it. Reported by the
    /// [`Worker`](super::Worker), at most once an hour for each key and
    /// [network](super::ClientNetwork), and at most 64 times an hour for the keys of a consumer.
    #[non_exhaustive]
    CanaryUsed {
        /// The key.
        key_id: KeyId,
        /// The address of the client, if the layer [knows](crate::ApiKeyLayer::client_address) it.
        address: Option<IpAddr>,
        /// What the client calls itself, up to 512 bytes.
        user_agent: Option<&'a str>,
    },
    /// Uses of keys were written, of at most 5,000 keys at once.
    #[non_exhaustive]
    UsageFlushed {
        /// The number of keys.
        keys: usize,
        /// How long it took.
        took: Duration,
    },
    /// Uses of keys could not be written. They are kept for the next attempt.
    #[non_exhaustive]
    UsageFlushFailed {
        /// The store's error.
        error: &'a StoreError,
    },
    /// The use of a key was dropped because a buffer was full: when it was last used, how often it was
    /// used in an hour, or both. If the queue of the worker was full, the counts stay in the cache
    /// until the key is used again.
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
        /// One of `change feed`, `usage`, `limiter sweep`, `store probe`, `clock check`,
        /// `legacy hashes`, `metrics` and `canary uses`.
        duty: &'static str,
    },
}

/// How a query for a key ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LoadOutcome {
    /// The key exists, whether or not it may be used.
    Found,
    /// There is no such key.
    NotFound,
    /// The store failed, did not answer in time or returned an invalid record.
    Failed,
}

impl LoadOutcome {
    /// The name for logs and metrics, such as `not_found`. It never changes.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Found => "found",
            Self::NotFound => "not_found",
            Self::Failed => "failed",
        }
    }
}

/// How the comparison of a key with a [legacy hash](super::Builder::legacy_hashes) ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum VerificationOutcome {
    /// The hash is of this key.
    Matched,
    /// The hash is of another key.
    NotMatched,
    /// The key was rejected because the capacity for unknown keys is used up.
    Overloaded,
}

impl VerificationOutcome {
    #[cfg(feature = "metrics")]
    pub(super) const ALL: [Self; 3] = [Self::Matched, Self::NotMatched, Self::Overloaded];

    #[cfg(feature = "legacy-hashes")]
    pub(super) const fn of(is_match: bool) -> Self {
        if is_match { Self::Matched } else { Self::NotMatched }
    }

    /// The name for logs and metrics, such as `not_matched`. It never changes.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Matched => "matched",
            Self::NotMatched => "not_matched",
            Self::Overloaded => "overloaded",
        }
    }
}
