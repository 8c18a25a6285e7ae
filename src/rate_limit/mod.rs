//! How many requests a key may make: quotas, and the port behind which they are enforced.
//!
//! 1. A [`Quota`] is a budget of requests: so many in a window, of one key or of all keys of a
//!    consumer together. It refills evenly (GCRA, the *generic cell rate algorithm*), or is a sliding
//!    window; [which to take](crate::manual::limits) is in the manual.
//! 2. [`RateLimits`] are the quotas of one key. A request must fit all of them, and takes from all or
//!    from none.
//! 3. [`Plans`] are limits with a name, which many keys share.
//! 4. [`Buckets`] are the live state of the quotas of one key. A [`RateLimiter`] hands them out;
//!    [`LocalRateLimiter`] keeps them in this process, `RedisRateLimiter` where a fleet shares them.
//!
//! A bucket outlives the cached record of its key: evicting, refreshing, rotating or changing a key
//! never refills it.
//!
//! ```
//! use std::time::Duration;
//! use tower_api_key::rate_limit::{Quota, RateLimits};
//!
//! // 600 requests a minute on average, any 600 of them at once.
//! let quota = Quota::per_minute(600)?;
//! assert_eq!(quota.most_in(Duration::from_secs(60)), 1200);
//!
//! // The same rate, 20 at once.
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
mod level;
mod limits;
mod local;
mod measure;
mod meter;
mod plans;
mod quota;
#[cfg(feature = "redis")]
mod redis;
mod refill;
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

pub(crate) use self::meter::{Meter, Meters};
#[cfg(feature = "redis")]
pub use self::redis::{
    InvalidRedisRateLimiter, Leases, RedisRateLimiter, RedisRateLimiterBuilder, Unavailable,
};
pub use self::{
    limits::RateLimits,
    local::LocalRateLimiter,
    plans::{InvalidPlan, Plans},
    quota::{Algorithm, CountedPer, InvalidQuota, Quota},
    subject::Subject,
};

/// Where buckets live: in this process, or somewhere a fleet shares.
pub trait RateLimiter: Send + Sync + 'static {
    /// The buckets of a subject, enforced by these quotas from here on. Decisions come in their order.
    ///
    /// Called once each time a key is loaded from the store, never per request for a cached key.
    ///
    /// A bucket is named by the subject, not by its quotas: all quotas per key of a key are one, and
    /// so are all quotas per consumer of the keys of a consumer that have such. Each quota counts all
    /// that was taken there, whichever quota admitted it. So whatever quotas a bucket has one after the
    /// other, or at once for those who still use earlier ones: over any interval no more passes than the
    /// most generous of them, or list of them, allows alone ([`Quota::most_in`]). That holds of each
    /// key, which counts its quotas per consumer as well, and of each consumer. What was
    /// [charged](Buckets::charge) comes on top, and what was [given back](Buckets::give_back) does not
    /// count. And a bucket always comes back by itself.
    ///
    /// A limiter may forget a bucket that has been full and unused for ten minutes, and no earlier.
    fn buckets(
        &self,
        subject: &Subject<'_>,
        limits: &RateLimits,
        now: Duration,
    ) -> Arc<dyn Buckets>;

    /// Forgets buckets that are full again and no longer used. Called from time to time.
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

/// The live state of several quotas, of which a request takes from all or from none.
///
/// `now` is [`Clock::monotonic`](crate::clock::Clock::monotonic). Decisions come in the order of the
/// quotas.
///
/// In any window, what was taken less what was given back in it is no more than
/// [`Quota::most_in`]. What was charged comes on top.
pub trait Buckets: Send + Sync + 'static {
    /// Takes `units` of each quota if each has them; else takes nothing, and says how long to wait.
    fn take(&self, units: NonZeroU32, now: Duration) -> Check;

    /// Says where the quotas stand, and takes nothing: admitted where one unit is there.
    fn peek(&self, now: Duration) -> Check;

    /// Takes `units` of each quota whether they are there or not: for work that is done already.
    ///
    /// What is missing is owed, and paid off before anything is admitted again. A quota is owed no
    /// more than it holds when it is full: whatever is beyond that is forgiven, so that no single
    /// charge shuts a key out for longer than [`Quota::refill_time`] and one unit.
    ///
    /// It takes effect at once where the state is at hand, else soon.
    fn charge(&self, units: NonZeroU32, now: Duration);

    /// Gives `units` back that were taken a short while ago, of each quota, up to a full bucket. At
    /// the time they were taken, it is as if they never had been.
    ///
    /// Later they are given back *now*: of a sliding window, the units that were taken last. What
    /// has come back by itself meanwhile comes back all the same, once more; so give back soon.
    ///
    /// It takes effect as [`charge`](Self::charge) does.
    fn give_back(&self, units: NonZeroU32, now: Duration);
}

/// The answer of [`Buckets`]: at once where their state is at hand, else after a while.
#[non_exhaustive]
pub enum Check {
    /// Decided.
    Ready(Decisions),
    /// To be decided elsewhere.
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

/// What each of several quotas decided. The request is admitted if all of them say so.
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

/// What a bucket decided, and where it stands after that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    admitted: bool,
    remaining: u32,
    next_unit_in: Duration,
}

impl Decision {
    /// The request fits; `remaining` units are left, the next comes after `next_unit_in`.
    #[must_use]
    pub const fn admit(remaining: u32, next_unit_in: Duration) -> Self {
        Self { admitted: true, remaining, next_unit_in }
    }

    /// The request does not fit until after `wait`.
    #[must_use]
    pub const fn deny(wait: Duration) -> Self {
        Self { admitted: false, remaining: 0, next_unit_in: wait }
    }

    /// The request asks for more than the `remaining` units, and does not fit until after `wait`.
    #[must_use]
    pub const fn deny_with(remaining: u32, wait: Duration) -> Self {
        Self { admitted: false, remaining, next_unit_in: wait }
    }

    /// Whether the request fits.
    #[must_use]
    pub const fn is_admitted(&self) -> bool {
        self.admitted
    }

    /// Units left; fewer than were asked for when denied.
    #[must_use]
    pub const fn remaining(&self) -> u32 {
        self.remaining
    }

    /// Time until another unit is there; when denied, until this request would fit. Zero when the
    /// bucket is full.
    #[must_use]
    pub const fn next_unit_in(&self) -> Duration {
        self.next_unit_in
    }
}
