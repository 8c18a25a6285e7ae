use std::{error::Error, fmt, time::Duration};

/// How long records are cached, how many, and how much the cache may ask of the store.
///
/// ```
/// use std::time::Duration;
/// use tower_api_key::auth::CachePolicy;
///
/// let policy = CachePolicy::default().fresh(Duration::from_secs(30))?.capacity(10_000);
/// assert!(policy.fresh(Duration::from_secs(3600)).is_err());
/// # Ok::<(), tower_api_key::auth::InvalidCachePolicy>(())
/// ```
#[derive(Clone, Debug)]
pub struct CachePolicy {
    pub(in crate::auth) fresh: Duration,
    pub(in crate::auth) fresh_during_gap: Duration,
    pub(in crate::auth) absent: Duration,
    pub(in crate::auth) stale_if_error: Duration,
    pub(in crate::auth) capacity: u64,
    pub(in crate::auth) absent_capacity: u64,
    pub(in crate::auth) max_loads: usize,
    pub(in crate::auth) load_deadline: Duration,
    pub(in crate::auth) unknown_key_queries_per_second: u32,
}

const MAX_FRESH: Duration = Duration::from_secs(300);
const MAX_ABSENT: Duration = Duration::from_secs(60);
const MAX_STALE_IF_ERROR: Duration = Duration::from_secs(3600);
const MIN_LOAD_DEADLINE: Duration = Duration::from_millis(1);
const MAX_LOAD_DEADLINE: Duration = Duration::from_secs(30);

impl CachePolicy {
    /// How long a record is used without asking the store again. Default 60 s, at most 300 s; zero
    /// asks on every request.
    ///
    /// This bounds how long a revocation can go unnoticed without a change feed. At 60 s a busy key
    /// makes one query in thousands of requests; beyond 300 s, revoking would be too slow a
    /// response to a leaked key.
    ///
    /// # Errors
    ///
    /// Above 300 s.
    pub fn fresh(self, fresh: Duration) -> Result<Self, InvalidCachePolicy> {
        check("fresh", fresh, Duration::ZERO, MAX_FRESH)?;
        Ok(Self { fresh, ..self })
    }

    /// Replaces [`fresh`](Self::fresh), if shorter, while a configured [change
    /// feed](crate::auth::Builder::change_feed) is not connected. Default 5 s, at most 300 s.
    ///
    /// With a feed, services rely on revocations taking effect at once. Five seconds come close, at
    /// the cost of one query per key in use in that time.
    ///
    /// # Errors
    ///
    /// Above 300 s.
    pub fn fresh_during_gap(self, fresh: Duration) -> Result<Self, InvalidCachePolicy> {
        check("fresh_during_gap", fresh, Duration::ZERO, MAX_FRESH)?;
        Ok(Self { fresh_during_gap: fresh, ..self })
    }

    /// How long an unknown key is cached as absent without asking the store again. Default 30 s, at
    /// most 60 s.
    ///
    /// Shorter than [`fresh`](Self::fresh), because a key created elsewhere in the meantime is
    /// rejected for as long: after a minute its owner would have given up.
    ///
    /// # Errors
    ///
    /// Above 60 s.
    pub fn absent(self, absent: Duration) -> Result<Self, InvalidCachePolicy> {
        check("absent", absent, Duration::ZERO, MAX_ABSENT)?;
        Ok(Self { absent, ..self })
    }

    /// How long a record is still used after it ceased to be fresh, while the store does not answer
    /// ([RFC 5861 §4](https://www.rfc-editor.org/rfc/rfc5861#section-4)). Default 10 min, at most 1
    /// h; zero rejects at once.
    ///
    /// Ten minutes cover a restart, a failover and most operator mistakes. The cost: a revocation
    /// that was not reported to this node goes unnoticed while the store is down, hence the maximum
    /// of 1 h. Expiry is always enforced.
    ///
    /// After five consecutive failures, the store is probed every 250 ms by one request; other
    /// requests are answered from the cache or rejected at once. So only the first few requests of
    /// an outage wait for the [deadline](Self::load_deadline), and its end is noticed within 250
    /// ms.
    ///
    /// # Errors
    ///
    /// Above 1 h.
    pub fn stale_if_error(self, stale: Duration) -> Result<Self, InvalidCachePolicy> {
        check("stale_if_error", stale, Duration::ZERO, MAX_STALE_IF_ERROR)?;
        Ok(Self { stale_if_error: stale, ..self })
    }

    /// How many keys are cached. Default 100,000.
    ///
    /// Enough for all keys in use of most services. A key takes some 750 bytes with a name and two
    /// scopes, 950 with a quota, plus its metadata. Up to 32,768 evicted keys may remain in the hot
    /// table until others replace them.
    #[must_use]
    pub fn capacity(self, keys: u64) -> Self {
        Self { capacity: keys, ..self }
    }

    /// How many absences are cached. Default 10,000.
    ///
    /// Enough for clients that keep using a deleted key; no size helps against a flood of ever new
    /// keys. Absences are cached apart from records, so such a flood cannot evict those.
    #[must_use]
    pub fn absent_capacity(self, keys: u64) -> Self {
        Self { absent_capacity: keys, ..self }
    }

    /// How many queries may run at once. Default 64, at least 1. A quarter of them is reserved for
    /// known keys that must be confirmed. Up to 64 times as many look-ups may queue.
    ///
    /// About six times the size of a usual connection pool: enough to keep every connection busy,
    /// and too few for a flood of unknown keys to queue for seconds.
    #[must_use]
    pub fn max_loads(self, loads: usize) -> Self {
        Self { max_loads: loads.clamp(1, tokio::sync::Semaphore::MAX_PERMITS), ..self }
    }

    /// How long a request waits for the store; at most half of it for permission to query. Default
    /// 500 ms, at least 1 ms, at most 30 s. If the key changes during the look-up, the request
    /// waits for a second one as long again.
    ///
    /// A healthy look-up takes a millisecond. Clients prefer an early "try again" to a long wait,
    /// and after 30 s they have disconnected.
    ///
    /// # Errors
    ///
    /// Below 1 ms, and above 30 s.
    pub fn load_deadline(self, deadline: Duration) -> Result<Self, InvalidCachePolicy> {
        check("load_deadline", deadline, MIN_LOAD_DEADLINE, MAX_LOAD_DEADLINE)?;
        Ok(Self { load_deadline: deadline, ..self })
    }

    /// How many queries per second may find no key or get no answer. Default 100, which is also the
    /// burst; at least 1. A reserve of another tenth is kept for keys that are retried.
    ///
    /// Anyone can make up well-formed keys, and each costs a query. A hundred per second are a few
    /// percent of what a small database can do, and more than honest mistakes amount to. Queries
    /// that find a key are free, so a node that starts cold under load is not slowed down. Beyond
    /// the limit, keys that this node does not know are rejected as
    /// [`Overloaded`](crate::auth::RejectionKind::Overloaded); the manual lists [the
    /// exceptions](crate::manual::attacks#guessing-keys).
    #[must_use]
    pub fn unknown_key_queries_per_second(self, per_second: u32) -> Self {
        Self { unknown_key_queries_per_second: per_second.max(1), ..self }
    }
}

impl Default for CachePolicy {
    fn default() -> Self {
        Self {
            fresh: Duration::from_secs(60),
            fresh_during_gap: Duration::from_secs(5),
            absent: Duration::from_secs(30),
            stale_if_error: Duration::from_secs(600),
            capacity: 100_000,
            absent_capacity: 10_000,
            max_loads: 64,
            load_deadline: Duration::from_millis(500),
            unknown_key_queries_per_second: 100,
        }
    }
}

fn check(
    setting: &'static str,
    value: Duration,
    least: Duration,
    most: Duration,
) -> Result<(), InvalidCachePolicy> {
    if (least..=most).contains(&value) {
        Ok(())
    } else {
        Err(InvalidCachePolicy { setting, least, most })
    }
}

/// A cache setting outside its permitted range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidCachePolicy {
    setting: &'static str,
    least: Duration,
    most: Duration,
}

impl fmt::Display for InvalidCachePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { setting, least, most } = self;
        write!(f, "`{setting}` must be at least {least:?} and at most {most:?}")
    }
}

impl Error for InvalidCachePolicy {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_setting_is_kept() {
        let seconds = Duration::from_secs;
        let policy = CachePolicy::default()
            .fresh(seconds(1))
            .and_then(|policy| policy.fresh_during_gap(seconds(2)))
            .and_then(|policy| policy.absent(seconds(3)))
            .and_then(|policy| policy.stale_if_error(seconds(4)))
            .and_then(|policy| policy.load_deadline(seconds(5)))
            .unwrap()
            .capacity(6);
        let CachePolicy { fresh, fresh_during_gap, absent, stale_if_error, .. } = policy;
        assert_eq!(
            [fresh, fresh_during_gap, absent, stale_if_error, policy.load_deadline],
            [1, 2, 3, 4, 5].map(seconds)
        );
        assert_eq!(policy.capacity, 6);
    }
}
