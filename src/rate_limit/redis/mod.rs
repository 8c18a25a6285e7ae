//! Buckets in Redis or Valkey, shared by a fleet.

mod builder;
mod cell;
mod connection;
mod lease;
mod lease_config;
mod name;
mod outage_policy;
mod script;
mod shared;
mod without_redis;

use std::{
    fmt,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use self::{
    builder::Settings,
    connection::Connection,
    lease::Lease,
    script::Counted,
    shared::{Shared, SharedBuckets},
};
pub use self::{
    builder::{InvalidRedisRateLimiter, RedisRateLimiterBuilder},
    lease_config::Leases,
    outage_policy::OutagePolicy,
};
use super::{
    LimiterHealth, RateLimiter, RateLimits,
    local::LocalRateLimiter,
    port::{Buckets, Subject},
};
use crate::trace;

/// Keeps buckets in Redis or Valkey, shared by a fleet: a key gets its quota once, however many
/// nodes there are. Feature `redis`.
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
/// 1. Each request is one call of one script, whatever the number of its quotas. It takes from all
///    of them or from none, with the nanosecond precision of [`LocalRateLimiter`], by the clock of
///    Redis. The clocks of nodes do not matter.
/// 2. A key has one cell in Redis, and its consumer has another if a quota is counted per consumer.
///    A cell counts all units for each distinct quota that was applied to it lately. So nodes may
///    apply different quotas at the same time, as during a rollout, and quotas may change in any
///    way: any interval admits no more than the most generous of them.
/// 3. A request waits for Redis until its [deadline](RedisRateLimiterBuilder::deadline), which
///    includes connecting. When a request fails, a task probes Redis with a small, constant call.
///    After two consecutive failed probes the circuit breaker opens and no request waits; every 200
///    ms a task probes whether Redis is back, which is noticed within a second. A single key whose
///    calls fail affects no other key.
/// 4. When Redis does not decide, [this node does](OutagePolicy::Local), or [the request is
///    denied](OutagePolicy::Deny).
/// 5. A node continues from the last known state of the shared bucket, and reports to Redis what it
///    admitted meanwhile. The nodes restore what Redis has lost: flushing it or restarting it empty
///    refills no bucket that a node has seen.
/// 6. With [`Leases`], a node takes units in advance, and decides most requests at once.
/// 7. Nothing is spawned or connected before the first request.
///
/// # Upper bounds
///
/// | | admitted in a window *w*, by the whole fleet |
/// |---|---|
/// | Redis decides | [`Quota::most_in`](super::Quota::most_in)`(w)` |
/// | with leases | `most_in(w + lifetime)` |
/// | Redis is down | *n* × `most_in(w)` for *n* nodes; with [`nodes(n)`](RedisRateLimiterBuilder::nodes) `most_in(w)`, plus less than *n* for rounding |
/// | Redis goes down or comes back | plus the requests in progress |
///
/// A client that always wants more gets the full quota: units are lost only if a node ends while it
/// holds a lease, or if an answer is late.
///
/// # Requirements
///
/// - Redis 5 or later, or any Valkey: one server, or a primary behind a name or a proxy that
///   follows it. URLs are `redis://[user][:password@]host[:port][/database]`, or with `valkey://`;
///   `rediss://` or `valkeys://` over TLS with a feature `tls-…`, which trusts the certificates
///   of the operating system; `unix:///path[?db=1&user=me&pass=secret]` for a socket.
/// - All keys of a consumer share a hash tag, so they are on one node of a cluster. This limiter
///   does not discover which: put a proxy in front. A redirection (`MOVED`) counts as a failure.
/// - `maxmemory-policy noeviction`: other policies may evict buckets, which are then restored from
///   the next node that knows them, or full if it does not. Running out of memory counts as a
///   failure, and the nodes then decide locally.
/// - A cell takes 200 to 500 bytes for a key with one or two quotas, and expires at the latest ten
///   minutes after it is full: until then it remembers what was used under other quotas. No
///   persistence is needed. A failover may lose the last writes, and the units they took may then
///   be taken again.
/// - The limiter runs only its script: `EVALSHA`, `SCRIPT LOAD`, and within the script `TIME`, and
///   `GET` and `SET` of keys that begin with the prefix. An ACL can be as narrow.
///
/// # Failures
///
/// | Redis | cost |
/// |---|---|
/// | refuses, resets or closes connections | none: these are noticed at once |
/// | hangs, is slow, loses packets | the first few requests wait for their deadline |
/// | is loading, a replica, out of memory, not responsible (`LOADING`, `READONLY`, `OOM`, `MOVED`, `CLUSTERDOWN`) | the first few requests wait for a round trip |
/// | has lost the script | one request makes two more round trips |
/// | has lost the buckets | admits as many more as there were requests in progress |
/// | has another kind of value in a cell's key, or a cell of a later version of this library | each request of that key makes a round trip; the value is left as it is |
///
/// For a key with more than eight quotas Redis is not asked: the [outage policy](OutagePolicy)
/// decides.
///
/// A line is logged when Redis stops deciding, and when it decides again.
pub struct RedisRateLimiter {
    link: Arc<Connection>,
    /// This node's copies of the buckets.
    own: LocalRateLimiter,
    settings: Settings,
}

impl RedisRateLimiter {
    /// A limiter with its buckets in the Redis at this URL.
    #[must_use]
    pub fn builder(url: &str) -> RedisRateLimiterBuilder {
        RedisRateLimiterBuilder::new(url)
    }

    /// Whether Redis decides: it has answered, and has not failed two consecutive probes since.
    /// Otherwise this node decides locally. For metrics and dashboards.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.link.is_known_up() == Some(true)
    }
}

impl RedisRateLimiterBuilder {
    /// Builds the limiter. It connects on the first request, and spawns nothing before that.
    ///
    /// # Errors
    ///
    /// If the URL is invalid, or a setting is out of its range.
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
                "too many quotas for Redis; outage policy applies"
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

    /// Sweeps this node's copies. In Redis, cells expire by themselves.
    fn sweep(&self, now: Duration) {
        self.own.sweep(now);
    }

    fn health(&self) -> LimiterHealth {
        match self.link.is_known_up() {
            None => LimiterHealth::Unknown,
            Some(true) => LimiterHealth::Shared,
            Some(false) => LimiterHealth::Down,
        }
    }
}

impl fmt::Debug for RedisRateLimiter {
    /// Omits the URL, which may contain a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisRateLimiter")
            .field("is_shared", &self.is_shared())
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
