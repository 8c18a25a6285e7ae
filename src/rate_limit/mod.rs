//! Rate limits: quotas, and the port behind which they are enforced.
//!
//! 1. A [`Quota`] is a budget of requests per window, for one key or for all keys of a consumer
//!    together. It refills evenly (GCRA, the *generic cell rate algorithm*) or is a sliding window;
//!    the manual says [which to choose](crate::manual::limits).
//! 2. [`RateLimits`] are the quotas of one key. A request must fit all of them, and takes from all
//!    or from none.
//! 3. [`Plans`] are named limits that many keys share.
//! 4. [`Buckets`] are the live state of a key's quotas, created by a [`RateLimiter`]:
//!    [`LocalRateLimiter`] keeps them in this process, `RedisRateLimiter` shares them across a
//!    fleet.
//!
//! A bucket outlives the cached record of its key: evicting, refreshing, rotating or changing a key
//! never refills it.
//!
//! ```
//! use std::time::Duration;
//! use tower_api_key::rate_limit::{Quota, RateLimits};
//!
//! // 600 requests a minute on average, up to 600 at once.
//! let quota = Quota::per_minute(600)?;
//! assert_eq!(quota.most_in(Duration::from_secs(60)), 1200);
//!
//! // The same rate, up to 20 at once.
//! let smooth = Quota::per_minute(600)?.burst(20)?;
//! assert_eq!(smooth.most_in(Duration::from_secs(60)), 620);
//!
//! // Never more than 600 in any minute, whenever it starts: paced, or all at once if need be.
//! let strict = Quota::at_most(600, Duration::from_secs(60))?;
//! assert!(strict.most_in(Duration::from_secs(60)) <= 600);
//! let sliding = Quota::sliding(600, Duration::from_secs(60))?;
//! assert_eq!(sliding.most_in(Duration::from_secs(60)), 600);
//!
//! // 20 a second for each key, and 50,000 a day for all keys of a consumer together.
//! let day = Quota::sliding(50_000, Duration::from_secs(86_400))?.named("day")?.per_consumer();
//! let both = RateLimits::new([Quota::per_second(20)?, day])?;
//! # drop(both);
//! # Ok::<(), tower_api_key::rate_limit::InvalidQuota>(())
//! ```

#[cfg(feature = "redis")]
mod bucket_snapshot;
mod gcra_math;
mod limits;
mod local;
mod measure;
mod meter;
mod plan_name;
mod plans;
mod quota;
#[cfg(feature = "redis")]
mod redis;
mod subject;

use std::{
    fmt,
    future::Future,
    num::NonZeroU32,
    ops::{Deref, DerefMut},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use smallvec::SmallVec;

#[cfg(feature = "redis")]
pub use self::redis::{
    InvalidRedisRateLimiter, Leases, OutagePolicy, RedisRateLimiter, RedisRateLimiterBuilder,
};
pub use self::{
    limits::RateLimits,
    local::LocalRateLimiter,
    plans::{InvalidPlan, Plans},
    quota::{Algorithm, CountedPer, InvalidQuota, Quota},
    subject::Subject,
};
pub(crate) use self::{
    meter::{Meter, Meters},
    plan_name::{InvalidPlanName, PlanName},
};

/// Creates buckets, in this process or in a store that a fleet shares.
pub trait RateLimiter: Send + Sync + 'static {
    /// The buckets of a subject, which from now on enforce `limits`. Decisions come in that order.
    ///
    /// Called each time a key is loaded from the store, never per request for a cached key.
    ///
    /// A bucket is identified by the subject, not by its quotas: all per-key quotas of a key share
    /// one bucket, and so do all per-consumer quotas of the keys of a consumer. Each quota counts
    /// every unit taken from the bucket, whichever quota admitted it. So, whatever quotas apply to
    /// a bucket in turn, or at the same time while some callers still use earlier ones, any
    /// interval admits no more than the most generous of those quotas, or lists of quotas, would
    /// alone ([`Quota::most_in`]). This holds for each key, whose per-consumer quotas count as
    /// well, and for each consumer. [Charged](Buckets::charge) units come on top;
    /// [refunded](Buckets::give_back) units do not count. A bucket always refills by itself.
    ///
    /// A limiter may drop a bucket that has been full and unused for ten minutes, but no earlier.
    fn buckets(
        &self,
        subject: &Subject<'_>,
        limits: &RateLimits,
        now: Duration,
    ) -> Arc<dyn Buckets>;

    /// Drops buckets that are full and no longer used. Called periodically.
    fn sweep(&self, now: Duration) {
        let _ = now;
    }
}

impl<L: RateLimiter + ?Sized> RateLimiter for Arc<L> {
    fn buckets(
        &self,
        subject: &Subject<'_>,
        limits: &RateLimits,
        now: Duration,
    ) -> Arc<dyn Buckets> {
        (**self).buckets(subject, limits, now)
    }

    fn sweep(&self, now: Duration) {
        (**self).sweep(now);
    }
}

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

/// The decisions of several quotas. The request is admitted if all of them admit it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decisions(SmallVec<[Decision; 1]>);

impl Decisions {
    /// Whether the request fits every quota.
    #[must_use]
    pub fn is_admitted(&self) -> bool {
        self.0.iter().all(Decision::is_admitted)
    }
}

impl Deref for Decisions {
    type Target = [Decision];

    fn deref(&self) -> &[Decision] {
        &self.0
    }
}

impl DerefMut for Decisions {
    fn deref_mut(&mut self) -> &mut [Decision] {
        &mut self.0
    }
}

impl From<Decision> for Decisions {
    fn from(decision: Decision) -> Self {
        Self(SmallVec::from([decision]))
    }
}

impl FromIterator<Decision> for Decisions {
    fn from_iter<I: IntoIterator<Item = Decision>>(decisions: I) -> Self {
        Self(decisions.into_iter().collect())
    }
}

/// The decision of a bucket, and its state afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    admitted: bool,
    remaining: u32,
    next_unit_in: Duration,
}

impl Decision {
    /// The request fits; `remaining` units are left, and the next one comes after `next_unit_in`.
    #[must_use]
    pub const fn admit(remaining: u32, next_unit_in: Duration) -> Self {
        Self { admitted: true, remaining, next_unit_in }
    }

    /// The request does not fit until `wait` has passed.
    #[must_use]
    pub const fn deny(wait: Duration) -> Self {
        Self { admitted: false, remaining: 0, next_unit_in: wait }
    }

    /// The request needs more than the `remaining` units, and does not fit until `wait` has passed.
    #[must_use]
    pub const fn deny_with(remaining: u32, wait: Duration) -> Self {
        Self { admitted: false, remaining, next_unit_in: wait }
    }

    /// Whether the request fits.
    #[must_use]
    pub const fn is_admitted(&self) -> bool {
        self.admitted
    }

    /// Units left. If denied, fewer than were asked for.
    #[must_use]
    pub const fn remaining(&self) -> u32 {
        self.remaining
    }

    /// The time until one more unit is available or, if denied, until this request would fit. Zero
    /// if the bucket is full.
    #[must_use]
    pub const fn next_unit_in(&self) -> Duration {
        self.next_unit_in
    }
}
