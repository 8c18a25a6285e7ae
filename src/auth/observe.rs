use std::time::Duration;

use super::RejectionKind;
use crate::{record::KeyId, store::StoreError};

/// Hears of what is worth counting. For metrics and alerts.
///
/// Called in the middle of a request: be quick, and do not block. Requests that are let in make no
/// event, but for those of rotated keys; the layer around them counts those. A panic is caught and logged, and changes no answer.
pub trait Observer: Send + Sync + 'static {
    /// Something happened.
    fn observe(&self, event: &Event<'_>);
}

impl<F: Fn(&Event<'_>) + Send + Sync + 'static> Observer for F {
    fn observe(&self, event: &Event<'_>) {
        self(event);
    }
}

/// Something worth counting.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A request was turned away. A key that is [`Revoked`](RejectionKind::Revoked) is worth an
    /// alert: somebody still has it.
    #[non_exhaustive]
    Rejected {
        /// Why.
        kind: RejectionKind,
        /// The key, where it is one of ours.
        key_id: Option<KeyId>,
    },
    /// A key was let in that was rotated and is on its way out. Once nobody uses it any more, it can
    /// be revoked.
    #[non_exhaustive]
    RetiredKeyUsed {
        /// The key.
        key_id: KeyId,
    },
    /// A key names a plan that neither the store nor the [builder](super::Builder::plans) defines. It
    /// has the limits of keys without one. Told whenever the key is loaded.
    #[non_exhaustive]
    UnknownPlan {
        /// The key.
        key_id: KeyId,
    },
    /// A key was judged by an old record, because the store did not answer.
    #[non_exhaustive]
    StaleServed {
        /// The key.
        key_id: KeyId,
    },
    /// The store did not answer, or not in time.
    #[non_exhaustive]
    LoadFailed {
        /// What it said.
        error: &'a StoreError,
    },
    /// Times of last use were written.
    #[non_exhaustive]
    UsageFlushed {
        /// Of how many keys.
        keys: usize,
    },
    /// Times of last use could not be written. They are kept for the next time.
    #[non_exhaustive]
    UsageFlushFailed {
        /// What the store said.
        error: &'a StoreError,
    },
    /// There was no room to remember that a key was used.
    UsageDropped,
    /// The change feed is connected, for the first time or after a gap. Everything cached is
    /// confirmed before it is trusted again.
    FeedLive,
    /// The change feed failed, or reads a replica that is too far behind: a gap begins. Told once a
    /// gap.
    #[non_exhaustive]
    FeedLost {
        /// Why.
        error: &'a StoreError,
    },
    /// The change feed brought a message that is forged, was sent before, or makes no sense. It was
    /// ignored.
    FeedJunk,
    /// The wall clock ran ahead of the [monotonic](crate::clock::Clock::monotonic) one, because the
    /// machine slept or because the wall clock was set. Everything cached is confirmed before it is
    /// trusted again.
    #[non_exhaustive]
    ClockGap {
        /// How far.
        ahead: Duration,
    },
    /// A duty of the [`Worker`](super::Worker) panicked, and begins again after 50 ms to 5 s. The
    /// others go on.
    #[non_exhaustive]
    DutyPanicked {
        /// Which: `change feed`, `usage`, `limiter sweep`, `store probe` or `clock check`.
        duty: &'static str,
    },
}
