//! Rate limits: quotas, and the port behind which they are enforced.
//!
//! 1. A [`Quota`] is a budget of requests per window, for one key or for all keys of a consumer
//!    together. It refills evenly (GCRA, the *generic cell rate algorithm*) or is a sliding window;
//!    the manual says [which to choose](crate::manual::limits).
//! 2. [`RateLimits`] are the quotas of one key. A request must fit all of them, and takes from all
//!    or from none.
//! 3. [`Plans`] are named limits that many keys share.
//! 4. [`Buckets`](port::Buckets) are the live state of a key's quotas, created by a [`RateLimiter`]:
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
mod decision;
mod gcra_math;
mod health;
mod limits;
mod local;
mod measure;
mod meter;
mod plan_name;
mod plans;
pub mod port;
mod quota;
#[cfg(feature = "redis")]
mod redis;

#[cfg(feature = "redis")]
pub use self::redis::{
    InvalidRedisRateLimiter, Leases, OutagePolicy, RedisRateLimiter, RedisRateLimiterBuilder,
};
pub use self::{
    decision::Decision,
    health::LimiterHealth,
    limits::RateLimits,
    local::LocalRateLimiter,
    plans::{InvalidPlan, Plans},
    port::rate_limiter::RateLimiter,
    quota::{Algorithm, CountedPer, InvalidQuota, Quota},
};
pub(crate) use self::{
    meter::{Meter, Meters},
    plan_name::{InvalidPlanName, PlanName},
};
