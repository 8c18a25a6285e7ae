use std::{
    num::NonZeroU32,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;

use super::{BucketId, Buckets, Check, CountedPer, Quota, RateLimiter, RateLimits};
use crate::clock::Clock;

/// What all meters of an authenticator share.
pub(crate) struct Meters {
    pub(crate) limiter: Arc<dyn RateLimiter>,
    pub(crate) clock: Arc<dyn Clock>,
}

/// The limits of one key and the live buckets behind them, for as long as the key is cached.
pub(crate) struct Meter {
    meters: Arc<Meters>,
    limits: RateLimits,
    /// `None` where there is no limit.
    buckets: Option<Arc<dyn Buckets>>,
    policy: OnceLock<Bytes>,
}

/// Whose requests are counted: a consumer, and the first of a chain of rotated keys.
#[derive(Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) consumer: &'a str,
    pub(crate) root: u128,
}

impl Meter {
    pub(crate) fn new(
        meters: &Arc<Meters>,
        limits: RateLimits,
        subject: Subject<'_>,
        now: Duration,
    ) -> Self {
        let buckets = buckets(meters, &limits, subject, Quota::name, now);
        Self { meters: Arc::clone(meters), limits, buckets, policy: OnceLock::new() }
    }

    pub(crate) fn limits(&self) -> &RateLimits {
        &self.limits
    }

    /// `None` where there is no limit.
    pub(crate) fn buckets(&self) -> Option<&Arc<dyn Buckets>> {
        self.buckets.as_ref()
    }

    /// Takes `units`, or looks where it is none; `None` where there is no limit.
    pub(crate) fn ask(&self, units: Option<NonZeroU32>, now: Duration) -> Option<Check> {
        let buckets = self.buckets.as_ref()?;
        Some(match units {
            Some(units) => buckets.take(units, now),
            None => buckets.peek(now),
        })
    }

    pub(crate) fn now(&self) -> Duration {
        self.meters.clock.monotonic()
    }

    /// Buckets beside those of the key, for the routes of a class.
    pub(crate) fn buckets_of(
        &self,
        limits: &RateLimits,
        subject: Subject<'_>,
        policy: impl Fn(&Quota) -> &str,
        now: Duration,
    ) -> Option<Arc<dyn Buckets>> {
        buckets(&self.meters, limits, subject, policy, now)
    }

    /// A text made of the limits, made once.
    pub(crate) fn policy(&self, make: impl FnOnce(&RateLimits) -> Bytes) -> Bytes {
        self.policy.get_or_init(|| make(&self.limits)).clone()
    }
}

fn buckets(
    meters: &Meters,
    limits: &RateLimits,
    subject: Subject<'_>,
    policy: impl Fn(&Quota) -> &str,
    now: Duration,
) -> Option<Arc<dyn Buckets>> {
    let bucket = |quota: &Quota| {
        let id = match quota.counted_per() {
            CountedPer::Key => BucketId::of_key(subject.consumer, subject.root, policy(quota)),
            CountedPer::Consumer => BucketId::of_consumer(subject.consumer, policy(quota)),
        };
        (id, quota.clone())
    };
    let quotas: Vec<_> = limits.iter().map(bucket).collect();
    (!quotas.is_empty()).then(|| meters.limiter.buckets(&quotas, now))
}
