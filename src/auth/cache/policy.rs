use std::{error::Error, fmt, time::Duration};

/// How long what the store said is believed, and how much of it is kept.
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
    pub(in crate::auth) stranger_queries: u32,
}

const MAX_FRESH: Duration = Duration::from_secs(300);
const MAX_ABSENT: Duration = Duration::from_secs(60);
const MAX_STALE_IF_ERROR: Duration = Duration::from_secs(3600);
const MIN_LOAD_DEADLINE: Duration = Duration::from_millis(1);
const MAX_LOAD_DEADLINE: Duration = Duration::from_secs(30);

impl CachePolicy {
    /// How long a record is used without asking the store again. Default 60 s, at most 300 s; zero
    /// asks for every request.
    ///
    /// It bounds how long a revocation goes unnoticed that nobody announced. A minute spares all
    /// but one query in thousands on a busy key; beyond five minutes, revoking is no longer an
    /// answer to a leaked key.
    ///
    /// # Errors
    ///
    /// Above 300 s.
    pub fn fresh(self, fresh: Duration) -> Result<Self, InvalidCachePolicy> {
        check("fresh", fresh, Duration::ZERO, MAX_FRESH)?;
        Ok(Self { fresh, ..self })
    }

    /// What [`fresh`](Self::fresh) is while the [change feed](crate::auth::Builder::change_feed) is not
    /// connected, where there is one and this is shorter. Default 5 s, at most 300 s.
    ///
    /// Whoever has a feed relies on revocations being noticed at once. Five seconds come near to
    /// that, at the price of one query per key in use in that time.
    ///
    /// # Errors
    ///
    /// Above 300 s.
    pub fn fresh_during_gap(self, fresh: Duration) -> Result<Self, InvalidCachePolicy> {
        check("fresh_during_gap", fresh, Duration::ZERO, MAX_FRESH)?;
        Ok(Self { fresh_during_gap: fresh, ..self })
    }

    /// How long an unknown key stays unknown without asking the store again. Default 30 s, at most
    /// 60 s.
    ///
    /// Shorter than [`fresh`](Self::fresh), since a key created elsewhere in the meantime is kept
    /// out for as long: after a minute its owner would have given up.
    ///
    /// # Errors
    ///
    /// Above 60 s.
    pub fn absent(self, absent: Duration) -> Result<Self, InvalidCachePolicy> {
        check("absent", absent, Duration::ZERO, MAX_ABSENT)?;
        Ok(Self { absent, ..self })
    }

    /// How long, after it is no longer fresh, a record is used while the store does not answer
    /// ([RFC 5861 §4](https://www.rfc-editor.org/rfc/rfc5861#section-4)). Default 10 min, at most
    /// 1 h; zero refuses at once.
    ///
    /// Ten minutes span a restart, a fail-over and most mistakes. The price: a revocation that this
    /// node was not told of goes unnoticed as long as the store is away, which is why an hour is
    /// the most. Expiry never does.
    ///
    /// A store that failed five times in a row is asked again every 250 ms, by one request; the
    /// others are answered at once from what is cached, or turned away. So an outage costs no
    /// request more than the first few the [deadline](Self::load_deadline), and its end is noticed
    /// within a quarter of a second.
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
    /// Room for all keys in use of most services, at some 750 bytes each with a name and two scopes,
    /// 950 with a quota, and metadata beside that. Up to 32,768 more may stay where keys in use are
    /// found, until another takes their place.
    #[must_use]
    pub fn capacity(self, keys: u64) -> Self {
        Self { capacity: keys, ..self }
    }

    /// How many unknown keys are remembered. Default 10,000.
    ///
    /// Enough for clients that go on with a deleted key; against a flood of ever new ones no number
    /// helps. They are kept apart from the known ones, so that such a flood cannot push those out.
    #[must_use]
    pub fn absent_capacity(self, keys: u64) -> Self {
        Self { absent_capacity: keys, ..self }
    }

    /// How many queries may be under way at once. Default 64, at least 1. A quarter of them is kept
    /// for keys that were known and are to be confirmed, and 64 times as many may wait.
    ///
    /// Some six times the usual pool: enough to keep every connection busy, too few to let a flood
    /// of unknown keys queue up for seconds.
    #[must_use]
    pub fn max_loads(self, loads: usize) -> Self {
        Self { max_loads: loads.clamp(1, tokio::sync::Semaphore::MAX_PERMITS), ..self }
    }

    /// How long a request waits for the store, of which half at most for its turn. Default 500 ms,
    /// at least 1 ms and at most 30 s. If the key is changed meanwhile, it waits as long again.
    ///
    /// A healthy look-up takes a millisecond. Clients rather hear "try again" than wait, and after
    /// 30 s they have hung up.
    ///
    /// # Errors
    ///
    /// Below 1 ms, and above 30 s.
    pub fn load_deadline(self, deadline: Duration) -> Result<Self, InvalidCachePolicy> {
        check("load_deadline", deadline, MIN_LOAD_DEADLINE, MAX_LOAD_DEADLINE)?;
        Ok(Self { load_deadline: deadline, ..self })
    }

    /// How many queries a second may be made for keys that turn out to be none. Default 100, and as
    /// many at once; at least 1. A tenth of it more is kept for keys that come a second time.
    ///
    /// Anybody can make up well-formed keys, and each costs a query. A hundred a second are some
    /// percent of what a small database does, and more than mistakes amount to. Keys that are ones
    /// cost nothing, so that a node that starts cold under load is not slowed down. Beyond it, keys
    /// that this node does not know are [`Overloaded`](crate::auth::RejectionKind::Overloaded): the
    /// manual says [who gets in nevertheless](crate::manual::limits#guessing).
    #[must_use]
    pub fn stranger_queries(self, per_second: u32) -> Self {
        Self { stranger_queries: per_second.max(1), ..self }
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
            stranger_queries: 100,
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

/// A setting beyond what is safe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidCachePolicy {
    setting: &'static str,
    least: Duration,
    most: Duration,
}

impl fmt::Display for InvalidCachePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { setting, least, most } = self;
        write!(f, "`{setting}` is at least {least:?} and at most {most:?}")
    }
}

impl Error for InvalidCachePolicy {}
