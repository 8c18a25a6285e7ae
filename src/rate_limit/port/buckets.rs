use std::{fmt, future::Future, num::NonZeroU32, pin::Pin, time::Duration};

use super::Decisions;
#[cfg(doc)]
use crate::rate_limit::Quota;

/// The live state of several quotas. A request takes from all of them or from none.
///
/// `now` is [`Clock::monotonic`](crate::clock::Clock::monotonic). Decisions come in the order of
/// the quotas.
///
/// In any window, the units taken less those refunded are at most [`Quota::most_in`]. Charged units
/// come on top.
pub trait Buckets: Send + Sync + 'static {
    /// Takes `units` from each quota if all have them; otherwise takes nothing and returns the
    /// wait.
    fn take(&self, units: NonZeroU32, now: Duration) -> Check;

    /// Returns the state of the quotas without taking anything: admitted if one unit is left.
    fn peek(&self, now: Duration) -> Check;

    /// Takes `units` from each quota even if it is exhausted: for work that is already done.
    ///
    /// A shortfall becomes debt, which is paid off before anything is admitted again. Debt is
    /// capped at the size of the bucket and the excess is forgiven, so that no single charge blocks
    /// a key for longer than [`Quota::refill_time`] plus one unit.
    ///
    /// Takes effect at once if the state is local, otherwise soon.
    fn charge(&self, units: NonZeroU32, now: Duration);

    /// Refunds `units` that were taken a short while ago to each quota, up to a full bucket. At the
    /// time they were taken, this undoes the take.
    ///
    /// Later, the refund happens *now*: in a sliding window it removes the units taken last. Units
    /// that have refilled by themselves in the meantime are refunded all the same, so refund soon.
    ///
    /// Takes effect like [`charge`](Self::charge).
    fn give_back(&self, units: NonZeroU32, now: Duration);
}

/// The answer of [`Buckets`]: ready if their state is local, otherwise pending.
#[non_exhaustive]
pub enum Check {
    /// Decided.
    Ready(Decisions),
    /// To be decided remotely.
    Pending(Pin<Box<dyn Future<Output = Decisions> + Send>>),
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready(decisions) => f.debug_tuple("Ready").field(decisions).finish(),
            Self::Pending(_) => f.write_str("Pending"),
        }
    }
}
