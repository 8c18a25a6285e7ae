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
use super::{Buckets, Quota, RateLimiter, RateLimits, Subject, local::LocalRateLimiter};

/// Buckets in Redis or Valkey, which a fleet shares: however many nodes there are, a key gets its quota
/// once. Feature `redis`.
///
/// ```no_run
/// use std::time::Duration;
/// use tower_api_key::{
///     Authenticator,
///     key::KeyFormat,
///     rate_limit::{Leases, Quota, RedisRateLimiter},
///     store::MemoryKeyStore,
/// };
///
/// // A round trip for each request, 25 ms at most.
/// let limiter = RedisRateLimiter::builder("redis://redis.internal").build()?;
/// let (auth, worker) = Authenticator::builder(MemoryKeyStore::new(), KeyFormat::new("sk_live_")?)
///     .default_rate_limits(Quota::per_minute(600)?)
///     .rate_limiter(limiter)
///     .build();
/// # drop((auth, worker));
///
/// // Next to no round trips, and a fleet that keeps its limits even without Redis.
/// let limiter = RedisRateLimiter::builder("redis://:password@redis.internal:6380/2")
///     .prefix("shop")
///     .deadline(Duration::from_millis(10))
///     .leases(Leases::default())
///     .nodes(4)
///     .build()?;
/// # drop(limiter);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Rules
///
/// 1. A request is one call of one script, whatever the number of its quotas: it takes from all of
///    them or from none, to the nanosecond as [`LocalRateLimiter`] does, by the clock of Redis. What the
///    clock of a node says does not matter.
/// 2. A request waits for Redis until its [deadline](RedisRateLimiterBuilder::deadline), connecting
///    included. After five failures in a row no request waits: every 200 ms a task of its own looks
///    whether Redis is back, which is noticed within a second.
/// 3. Where Redis does not decide, [this node does](Unavailable::Local), or [the request is turned
///    away](Unavailable::Deny).
/// 4. A node goes on where the shared bucket stood when it last heard of it, and tells Redis what it let
///    through meanwhile. What Redis has lost, the nodes know: flushing it or restarting it empty
///    refills no bucket that a node has seen.
/// 5. With [`Leases`] a node takes units in advance, and most requests are decided at once.
/// 6. Nothing is spawned or connected before the first request.
///
/// # How much passes
///
/// | | in a window *w*, by the whole fleet |
/// |---|---|
/// | Redis decides | [`Quota::most_in`]`(w)` |
/// | with leases | `most_in(w + lifetime)` |
/// | Redis is away | *n* × `most_in(w)` for *n* nodes; with [`nodes(n)`](RedisRateLimiterBuilder::nodes) `most_in(w)`, and less than *n* more for rounding |
/// | Redis goes away or comes back | as much more as requests were under way |
///
/// A client that always wants more gets all of it: units are lost only with a node that ends, or an
/// answer that is late, while it holds a lease.
///
/// # Which Redis
///
/// - Redis from 5 on, or any Valkey: one server, or a primary behind a name or a proxy that follows
///   it. URLs are `redis://[user][:password@]host[:port][/database]`, or with `valkey://`;
///   `rediss://` or `valkeys://` over TLS with feature `redis-tls`, which trusts what the operating
///   system does; `unix:///path[?db=1&user=me&pass=secret]` for a socket.
/// - All keys of a consumer have one hash tag, so that they are on one node of a cluster. Which node that
///   is this limiter does not find out: put a proxy in front. To be sent elsewhere (`MOVED`) is a failure.
/// - `maxmemory-policy noeviction`: another one may throw buckets out, which then are as the next node
///   knows them, or full if it does not. A full memory is a failure, and the nodes go on by themselves.
/// - A bucket takes some 200 bytes, and is gone a second after it is full at the latest. Nothing needs
///   to be persisted. A failover may lose the last writes: what was taken then may be taken again.
/// - The script is the only thing that is run: `EVALSHA`, `SCRIPT LOAD`, and inside of it `TIME`, `GET`
///   and `SET` of keys that begin with the prefix. An ACL can be as narrow.
///
/// # When something goes wrong
///
/// | Redis | what it costs |
/// |---|---|
/// | refuses, resets, ends connections | nothing: these are noticed at once |
/// | hangs, is slow, swallows packets | the first few requests their deadline |
/// | is loading, a replica, out of memory, not responsible (`LOADING`, `READONLY`, `OOM`, `MOVED`, `CLUSTERDOWN`) | the first few requests a round trip |
/// | has forgotten the script | one request two more round trips |
/// | has forgotten the buckets | as much as requests were under way |
/// | has something else under the name of a bucket | each request of that key a round trip |
///
/// Each time the node goes on by itself, or no longer does, it logs a line.
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

    /// Whether Redis decides: it has answered, and did not fail five times in a row since. Until then
    /// this node is on its own. For metrics and dashboards.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.link.has_answered()
    }
}

impl RedisRateLimiterBuilder {
    /// Connects when the first request comes, and neither spawns nor waits before that.
    ///
    /// # Errors
    ///
    /// When the URL makes no sense, or a setting is out of its range.
    pub fn build(self) -> Result<RedisRateLimiter, InvalidRedisRateLimiter> {
        let (link, settings) = self.parts()?;
        Ok(RedisRateLimiter { link: Arc::new(link), own: LocalRateLimiter::new(), settings })
    }
}

impl RateLimiter for RedisRateLimiter {
    fn buckets(
        &self,
        subject: &Subject<'_>,
        limits: &RateLimits,
        now: Duration,
    ) -> Arc<dyn Buckets> {
        let named =
            |quota: &Quota| Named::new(name::key(&self.settings.prefix, subject, quota), quota);
        let leases = self.settings.leases.as_ref();
        Arc::new(SharedBuckets::new(Shared {
            link: Arc::clone(&self.link),
            buckets: limits.iter().map(named).collect(),
            own: self.own.set(subject, limits, now),
            unavailable: self.settings.unavailable,
            nodes: self.settings.nodes,
            lease: leases.map(|leases| Lease::of(limits.iter(), leases)),
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
