//! Buckets in Redis or Valkey, which a fleet shares.

mod breaker;
mod builder;
mod cell;
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
    script::Counted,
    shared::{Shared, SharedBuckets},
};
pub use self::{
    builder::{InvalidRedisRateLimiter, RedisRateLimiterBuilder},
    leases::Leases,
    shared::Unavailable,
};
use super::{Buckets, RateLimiter, RateLimits, Subject, local::LocalRateLimiter};
use crate::trace;

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
/// 2. A key has one cell in Redis, and its consumer another one if a quota is counted per consumer. A
///    cell counts all units for each distinct quota that was applied to it lately. So nodes may apply
///    different quotas at the same time, as during a rollout, and quotas may change in any way: over
///    any interval no more passes than the most generous of them allows.
/// 3. A request waits for Redis until its [deadline](RedisRateLimiterBuilder::deadline), connecting
///    included. When a request fails, a task of its own probes Redis with a small call that is always
///    the same. After two failed probes in a row no request waits; every 200 ms a task probes whether
///    Redis is back, which is noticed within a second. A single key whose calls fail affects no other.
/// 4. Where Redis does not decide, [this node does](Unavailable::Local), or [the request is turned
///    away](Unavailable::Deny).
/// 5. A node goes on where the shared bucket stood when it last heard of it, and tells Redis what it let
///    through meanwhile. What Redis has lost, the nodes know: flushing it or restarting it empty
///    refills no bucket that a node has seen.
/// 6. With [`Leases`] a node takes units in advance, and most requests are decided at once.
/// 7. Nothing is spawned or connected before the first request.
///
/// # How much passes
///
/// | | in a window *w*, by the whole fleet |
/// |---|---|
/// | Redis decides | [`Quota::most_in`](super::Quota::most_in)`(w)` |
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
/// - A cell takes 200 to 500 bytes for a key with one or two quotas, and is gone ten minutes after it is
///   full at the latest: until then it remembers what was used under other quotas. Nothing needs to be
///   persisted. A failover may lose the last writes: what was taken then may be taken again.
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
/// | has something else under the name of a cell, or a cell of a later version of this library | each request of that key a round trip; the value is left as it is |
///
/// A key with more than eight quotas is decided by each node by itself, and Redis is not asked.
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

    /// Whether Redis decides: it has answered, and has not failed two probes in a row since. Until then
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
        let counted = Counted::new(&self.settings.prefix, subject, limits);
        if !counted.is_small() {
            trace::warn!(
                consumer = subject.consumer(),
                quotas = limits.iter().len(),
                most = script::MOST_QUOTAS,
                "too many quotas for Redis: this node decides"
            );
        }
        let leases = self.settings.leases.as_ref();
        Arc::new(SharedBuckets::new(Shared {
            link: Arc::clone(&self.link),
            counted: Arc::new(counted),
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
