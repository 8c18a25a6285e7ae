//! How many requests a key may make: quotas, and the port behind which they are enforced.
//!
//! 1. A [`Quota`] is a budget that refills evenly (GCRA, the *generic cell rate algorithm*): a
//!    rate and a burst.
//! 2. [`RateLimits`] are the quotas of one key; a request must fit all of them.
//! 3. A [`Bucket`] is the live state of one quota of one key. A [`RateLimiter`] hands buckets out;
//!    [`LocalRateLimiter`] keeps them in this process.
//!
//! A bucket outlives the cached record of its key: evicting, refreshing or changing a key never
//! refills it. A request that is denied is not charged to the quota that denies it, nor to those
//! with a longer window; the shorter ones, which it fitted, have been charged.
//!
//! ```
//! use std::time::Duration;
//! use tower_api_key::rate_limit::Quota;
//!
//! // 600 requests a minute on average, any 600 of them at once.
//! let quota = Quota::per_minute(600)?;
//! assert_eq!(quota.most_in(Duration::from_secs(60)), 1200);
//!
//! // The same rate, 20 at once.
//! let smooth = Quota::per_minute(600)?.burst(20)?;
//! assert_eq!(smooth.most_in(Duration::from_secs(60)), 620);
//!
//! // Never more than 600 in any minute, whenever it starts.
//! let strict = Quota::at_most(600, Duration::from_secs(60))?;
//! assert!(strict.most_in(Duration::from_secs(60)) <= 600);
//! # Ok::<(), tower_api_key::rate_limit::InvalidQuota>(())
//! ```

mod local;
mod quota;

use std::{fmt, future::Future, num::NonZeroU32, pin::Pin, sync::Arc, time::Duration};

pub use self::{
    local::LocalRateLimiter,
    quota::{InvalidQuota, Quota, RateLimits},
};

/// Where buckets live: in this process, or somewhere a fleet shares.
pub trait RateLimiter: Send + Sync + 'static {
    /// The bucket of `id`, with the state it has, now filled according to `quota`.
    ///
    /// Called once each time a key is loaded from the store, never per request. A quota that
    /// changed applies from the next request on: the bucket is as full of it as it was of the
    /// earlier one. A quota of another name has another bucket.
    fn bucket(&self, id: &BucketId, quota: &Quota, now: Duration) -> Arc<dyn Bucket>;

    /// Forgets buckets that are full again and used by nobody. Called from time to time.
    fn sweep(&self, now: Duration) {
        let _ = now;
    }
}

impl<L: RateLimiter + ?Sized> RateLimiter for Arc<L> {
    fn bucket(&self, id: &BucketId, quota: &Quota, now: Duration) -> Arc<dyn Bucket> {
        (**self).bucket(id, quota, now)
    }

    fn sweep(&self, now: Duration) {
        (**self).sweep(now);
    }
}

/// The live state of one quota of one key.
pub trait Bucket: Send + Sync + 'static {
    /// Takes `cost` units, or says how long to wait for them.
    ///
    /// `now` is [`Clock::monotonic`](crate::clock::Clock::monotonic).
    fn take(&self, cost: NonZeroU32, now: Duration) -> Check;

    /// Says where the bucket stands, and takes nothing: admitted if one unit is there.
    fn peek(&self, now: Duration) -> Check;
}

/// Whose bucket: stable over evictions, refreshes, rotations and restarts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BucketId {
    subject: u128,
    policy: Box<str>,
}

impl BucketId {
    /// The bucket of the policy named `policy` of `subject`, the id of the first of a chain of rotated keys.
    #[must_use]
    pub fn new(subject: u128, policy: &str) -> Self {
        Self { subject, policy: policy.into() }
    }
}

/// The answer of a bucket: at once where its state is at hand, else after a while.
#[non_exhaustive]
pub enum Check {
    /// Decided.
    Ready(Decision),
    /// To be decided elsewhere.
    Pending(Pin<Box<dyn Future<Output = Decision> + Send>>),
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready(decision) => f.debug_tuple("Ready").field(decision).finish(),
            Self::Pending(_) => f.write_str("Pending"),
        }
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

    /// Whether the request fits.
    #[must_use]
    pub const fn is_admitted(&self) -> bool {
        self.admitted
    }

    /// Units left, 0 when denied.
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
