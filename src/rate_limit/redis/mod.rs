//! Buckets in Redis or Valkey, which a fleet shares.

mod breaker;
mod builder;
mod lease;
mod leases;
mod link;
mod name;
mod script;
mod shared;

use std::{
    fmt,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use self::{
    builder::Settings,
    lease::Lease,
    link::Link,
    script::Named,
    shared::{Shared, SharedBuckets},
};
pub use self::{
    builder::{InvalidRedisRateLimiter, RedisRateLimiterBuilder},
    leases::Leases,
    shared::Unavailable,
};
use super::{BucketId, Buckets, Quota, RateLimiter, local::LocalRateLimiter};

/// Buckets in Redis or Valkey, which a fleet shares.
pub struct RedisRateLimiter {
    link: Arc<Link>,
    /// The buckets as this node knows them.
    own: LocalRateLimiter,
    settings: Settings,
}

impl RedisRateLimiter {
    /// A limiter whose buckets are in the Redis of this URL.
    #[must_use]
    pub fn builder(url: &str) -> RedisRateLimiterBuilder {
        RedisRateLimiterBuilder::new(url)
    }

    fn new(link: Arc<Link>, settings: Settings) -> Self {
        Self { link, own: LocalRateLimiter::new(), settings }
    }

    /// Whether Redis decides: it has answered, and did not fail five times in a row since. Until then
    /// this node is on its own. For metrics and dashboards.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.link.has_answered()
    }
}

impl RateLimiter for RedisRateLimiter {
    fn buckets(&self, quotas: &[(BucketId, Quota)], now: Duration) -> Arc<dyn Buckets> {
        let named = |(id, quota): &(BucketId, Quota)| Named {
            key: name::key(&self.settings.prefix, id).into(),
            quota: quota.clone(),
        };
        let leases = self.settings.leases.as_ref();
        Arc::new(SharedBuckets::new(Shared {
            link: Arc::clone(&self.link),
            buckets: quotas.iter().map(named).collect(),
            own: self.own.followers(quotas, now),
            unavailable: self.settings.unavailable,
            nodes: self.settings.nodes,
            lease: leases.map(|leases| Lease::of(quotas.iter().map(|(_, quota)| quota), leases)),
            has_callers_time: self.settings.has_callers_time,
            is_reported: AtomicBool::new(false),
        }))
    }

    /// Forgets what this node knows of buckets. Redis forgets those that are full by itself.
    fn sweep(&self, now: Duration) {
        self.own.sweep(now);
    }
}

impl fmt::Debug for RedisRateLimiter {
    /// The URL may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisRateLimiter")
            .field("is_shared", &self.is_shared())
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
