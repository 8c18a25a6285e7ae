//! The Redis limiter, which decides in Redis alone, by the times that the calls bring.

use std::{
    num::NonZeroU32,
    sync::{Arc, LazyLock, mpsc},
    thread,
    time::Duration,
};

use tokio::runtime::{Builder, Handle};
use tower_api_key::rate_limit::{
    OutagePolicy, Quota, RateLimiter, RateLimits, RedisRateLimiter,
    port::{Buckets, Check, Subject},
};

use crate::servers::redis::Redis;

/// Runs all calls in order, including those that nothing waits for.
pub(crate) struct InOrder {
    limiter: RedisRateLimiter,
    /// One thread, which starts tasks in the order in which they were spawned. The single
    /// connection keeps that order.
    runtime: Handle,
    _redis: Redis,
}

pub(crate) fn limiter() -> Arc<InOrder> {
    static LIMITER: LazyLock<Arc<InOrder>> = LazyLock::new(|| Arc::new(InOrder::new()));
    Arc::clone(&LIMITER)
}

impl InOrder {
    fn new() -> Self {
        let redis = Redis::start();
        // A local decision would be noticed, and a busy machine must not count as an outage.
        let limiter = RedisRateLimiter::builder(&redis.url())
            .when_unavailable(OutagePolicy::Deny)
            .deadline(Duration::from_secs(1))
            .callers_time();
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let handle = runtime.handle().clone();
        thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
        let this = Self { limiter: limiter.build().unwrap(), runtime: handle, _redis: redis };
        this.connect();
        this
    }

    /// Connects first, because calls before the connection may continue in any order.
    fn connect(&self) {
        let (is_connected, connected) = mpsc::channel();
        let quota = Quota::per_second(1).unwrap();
        let subject = Subject::of_key("the first", 1);
        let buckets = self.limiter.buckets(&subject, &quota.into(), Duration::ZERO);
        let Check::Pending(peek) = buckets.peek(Duration::ZERO) else { panic!("Redis decides") };
        self.runtime.spawn(async move { is_connected.send(peek.await) });
        assert!(connected.recv().unwrap().is_admitted());
        assert!(self.limiter.is_shared());
    }
}

impl RateLimiter for InOrder {
    fn buckets(
        &self,
        subject: &Subject<'_>,
        limits: &RateLimits,
        now: Duration,
    ) -> Arc<dyn Buckets> {
        let buckets = self.limiter.buckets(subject, limits, now);
        let buckets = BucketsInOrder { buckets, runtime: self.runtime.clone() };
        // Redis learns new quotas with the next request; the suite changes them at a definite time.
        if let Check::Pending(peek) = buckets.buckets.peek(now) {
            self.runtime.spawn(peek);
        }
        Arc::new(buckets)
    }

    fn sweep(&self, now: Duration) {
        self.limiter.sweep(now);
    }
}

struct BucketsInOrder {
    buckets: Arc<dyn Buckets>,
    runtime: Handle,
}

impl BucketsInOrder {
    fn in_order(&self, check: Check) -> Check {
        match check {
            Check::Pending(decisions) => {
                let decided = self.runtime.spawn(decisions);
                Check::Pending(Box::pin(async move { decided.await.unwrap() }))
            }
            ready => ready,
        }
    }
}

impl Buckets for BucketsInOrder {
    fn take(&self, units: NonZeroU32, now: Duration) -> Check {
        self.in_order(self.buckets.take(units, now))
    }

    fn peek(&self, now: Duration) -> Check {
        self.in_order(self.buckets.peek(now))
    }

    fn charge(&self, units: NonZeroU32, now: Duration) {
        let _runtime = self.runtime.enter();
        self.buckets.charge(units, now);
    }

    fn give_back(&self, units: NonZeroU32, now: Duration) {
        let _runtime = self.runtime.enter();
        self.buckets.give_back(units, now);
    }
}
