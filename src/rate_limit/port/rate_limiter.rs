use std::{sync::Arc, time::Duration};

use super::{Buckets, Subject};
#[cfg(doc)]
use crate::rate_limit::Quota;
use crate::rate_limit::{LimiterHealth, RateLimits};

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

    /// Where requests are counted at the moment, from what is already known. Default:
    /// [`Local`](LimiterHealth::Local).
    fn health(&self) -> LimiterHealth {
        LimiterHealth::Local
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

    fn health(&self) -> LimiterHealth {
        (**self).health()
    }
}
