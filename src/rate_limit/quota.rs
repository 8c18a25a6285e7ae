mod invalid;
mod stored;

use std::{borrow::Cow, num::NonZeroU32, time::Duration};

use serde::{Deserialize, Serialize};

pub use self::invalid::InvalidQuota;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
/// The algorithm adds up to two full buckets to a clock of `u64` nanoseconds.
const MAX_NANOS: u128 = (u64::MAX / 4) as u128;
/// The resolution of windows; stores keep them in milliseconds.
const NANOS_PER_MILLI: u128 = 1_000_000;
const MAX_NAME_LEN: usize = 64;
/// [`Quota::at_most`] admits a tenth at once and paces the rest.
const DEFAULT_SHARE_AT_ONCE: u32 = 10;
/// The number of slots in a sliding window. More would waste less of the limit, but take longer to
/// add up.
pub(super) const SLOTS: u32 = 32;
/// Slot numbers are unambiguous for 13 years with this window, and for longer with longer ones.
const MIN_SLIDING_WINDOW: Duration = Duration::from_millis(100);
/// A slot must hold twice the limit, as up to the limit may be owed.
const MAX_SLIDING_LIMIT: u32 = u32::MAX / 2;

/// A budget of requests.
///
/// Two algorithms are available; [`most_in`](Self::most_in) gives the upper bound of each.
///
/// - **GCRA**, the default ([`per_minute`](Self::per_minute) and others,
///   [`at_most`](Self::at_most)): the bucket holds `burst` units and refills evenly, one unit every
///   [`interval`](Self::interval). Kind to clients: a denied request waits for one unit only.
/// - **Sliding window** ([`sliding`](Self::sliding)): never more than the limit in any window, all
///   of it at once if need be. Units come back together, one window after they were taken.
///
/// A quota counts one key, or [all keys of a consumer together](Self::per_consumer). See the
/// [module](crate::rate_limit) for examples.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Quota {
    name: Cow<'static, str>,
    limit: NonZeroU32,
    window: Duration,
    counted_per: CountedPer,
    pace: Pace,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Pace {
    Gcra { burst: NonZeroU32, interval: Duration, strict: bool },
    Sliding,
}

/// How a [`Quota`] is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Algorithm {
    /// The *generic cell rate algorithm*: a bucket that refills evenly.
    Gcra,
    /// A *sliding window counter*: never more than the limit in any window.
    SlidingWindow,
}

/// Whose requests a [`Quota`] counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum CountedPer {
    /// Requests of one key and of its successors in rotations.
    #[default]
    Key,
    /// Requests of all keys of one consumer together.
    Consumer,
}

impl Quota {
    /// `limit` requests a second, up to all of them at once.
    ///
    /// # Errors
    ///
    /// If `limit` is zero.
    pub fn per_second(limit: u32) -> Result<Self, InvalidQuota> {
        Self::new("second", limit, SECOND)
    }

    /// `limit` requests a minute, up to all of them at once.
    ///
    /// # Errors
    ///
    /// If `limit` is zero.
    pub fn per_minute(limit: u32) -> Result<Self, InvalidQuota> {
        Self::new("minute", limit, MINUTE)
    }

    /// `limit` requests an hour, up to all of them at once.
    ///
    /// # Errors
    ///
    /// If `limit` is zero.
    pub fn per_hour(limit: u32) -> Result<Self, InvalidQuota> {
        Self::new("hour", limit, HOUR)
    }

    /// `limit` requests per `window`, up to all of them at once.
    ///
    /// # Errors
    ///
    /// If `limit` or `window` is zero, if the window is not whole milliseconds, if units would come
    /// back faster than one a nanosecond, or if the bucket would take longer than 146 years to
    /// fill.
    pub fn per(limit: u32, window: Duration) -> Result<Self, InvalidQuota> {
        Self::new("default", limit, window)
    }

    /// Never more than `limit` requests in any `window`, wherever it begins.
    ///
    /// A tenth of them may come at once and the rest is paced; [`burst`](Self::burst) changes that
    /// share and keeps the guarantee. Use this for contracts ("1,000 a day"), and the others for
    /// protection: they are kinder to bursty clients.
    ///
    /// # Errors
    ///
    /// As for [`per`](Self::per).
    pub fn at_most(limit: u32, window: Duration) -> Result<Self, InvalidQuota> {
        let quota = Self::new("default", limit, window)?;
        quota.paced((limit / DEFAULT_SHARE_AT_ONCE).max(1), true)
    }

    /// Never more than `limit` requests in any `window`, wherever it begins, and all of them at
    /// once if need be.
    ///
    /// The window is counted in 32 slots. A unit comes back when its slot has left the window,
    /// between one `window` and 1/32 more after it was taken, so a client that always wants more
    /// gets at least 96.9 % of the limit. Use this for contracts with bursty clients ("1,000 a day,
    /// whenever you like"). The cost: a client that uses all of it in the first second gets 429 for
    /// the rest of the window, and one that uses it up at the same time every day has to wait up
    /// to 45 minutes each time. The manual [compares](crate::manual::limits) the kinds.
    ///
    /// # Errors
    ///
    /// If `limit` is zero or above 2,147,483,647, or if the window is not whole milliseconds, below
    /// 100 ms, or above 146 years.
    pub fn sliding(limit: u32, window: Duration) -> Result<Self, InvalidQuota> {
        let limit = NonZeroU32::new(limit).ok_or(InvalidQuota::Zero)?;
        let fits = limit.get() <= MAX_SLIDING_LIMIT
            && window >= MIN_SLIDING_WINDOW
            && window.as_nanos() <= MAX_NANOS
            && window.as_nanos().is_multiple_of(NANOS_PER_MILLI);
        if !fits {
            return Err(InvalidQuota::Sliding);
        }
        let (name, counted_per) = (Cow::Borrowed("default"), CountedPer::Key);
        Ok(Self { name, limit, window, counted_per, pace: Pace::Sliding })
    }

    fn new(name: &'static str, limit: u32, window: Duration) -> Result<Self, InvalidQuota> {
        let limit = NonZeroU32::new(limit).ok_or(InvalidQuota::Zero)?;
        let (name, counted_per) = (Cow::Borrowed(name), CountedPer::Key);
        // Replaced by `paced`.
        let pace = Pace::Sliding;
        Self { name, limit, window, counted_per, pace }.paced(limit.get(), false)
    }

    /// Sets the number of requests that may come at once. The default is the limit; for a [sliding
    /// window](Self::sliding) it always is.
    ///
    /// # Errors
    ///
    /// If `burst` is zero, if the bucket would take longer than 146 years to fill, if it exceeds
    /// what [`at_most`](Self::at_most) guarantees, or if it differs from the limit of a sliding
    /// window.
    pub fn burst(self, burst: u32) -> Result<Self, InvalidQuota> {
        match self.pace {
            Pace::Gcra { strict, .. } => self.paced(burst, strict),
            Pace::Sliding if burst == self.limit.get() => Ok(self),
            Pace::Sliding if burst == 0 => Err(InvalidQuota::Zero),
            Pace::Sliding => Err(InvalidQuota::Sliding),
        }
    }

    /// Counts the requests of all keys of a consumer together: the keys share one bucket, whatever
    /// the quota's name. Give all keys of a consumer the same such quota. If they differ, each key
    /// is held to its own quota, and each quota counts the requests of all keys.
    #[must_use]
    pub fn per_consumer(self) -> Self {
        Self { counted_per: CountedPer::Consumer, ..self }
    }

    /// Names the policy in `RateLimit-Policy`, in problem bodies and among the key's quotas. The
    /// default is the window: `second`, `minute`, `hour` or `default`.
    ///
    /// # Errors
    ///
    /// If the name is empty, longer than 64 characters, or contains characters other than letters,
    /// digits, `-`, `_` and `.`.
    pub fn named(self, name: impl Into<String>) -> Result<Self, InvalidQuota> {
        let name = name.into();
        if !is_name(&name) {
            return Err(InvalidQuota::Name);
        }
        Ok(Self { name: name.into(), ..self })
    }

    /// Sets the refill interval, and checks that the arithmetic on it cannot overflow.
    fn paced(self, burst: u32, strict: bool) -> Result<Self, InvalidQuota> {
        let burst = NonZeroU32::new(burst).ok_or(InvalidQuota::Zero)?;
        let window = self.window.as_nanos();
        let (limit, at_once) = (u128::from(self.limit.get()), u128::from(burst.get()));
        let interval = if !strict {
            window / limit
        } else {
            // Units that refill within a window, both ends included, add to the burst.
            match limit.checked_sub(at_once) {
                None => return Err(InvalidQuota::OutOfRange),
                Some(0) => window.saturating_add(1),
                Some(paced) => window.div_ceil(paced),
            }
        };
        let fits = interval > 0
            && window.is_multiple_of(NANOS_PER_MILLI)
            && interval.saturating_mul(at_once.max(limit)) <= MAX_NANOS;
        let interval = u64::try_from(interval).ok().filter(|_| fits);
        let interval = Duration::from_nanos(interval.ok_or(InvalidQuota::OutOfRange)?);
        Ok(Self { pace: Pace::Gcra { burst, interval, strict }, ..self })
    }

    /// The name of the policy.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The number of requests per [`window`](Self::window).
    #[must_use]
    pub fn limit(&self) -> u32 {
        self.limit.get()
    }

    /// The window that [`limit`](Self::limit) applies to.
    #[must_use]
    pub fn window(&self) -> Duration {
        self.window
    }

    /// The algorithm.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        match self.pace {
            Pace::Gcra { .. } => Algorithm::Gcra,
            Pace::Sliding => Algorithm::SlidingWindow,
        }
    }

    /// Whose requests are counted.
    #[must_use]
    pub fn counted_per(&self) -> CountedPer {
        self.counted_per
    }

    /// The number of requests that fit at once.
    #[must_use]
    pub fn burst_size(&self) -> NonZeroU32 {
        match self.pace {
            Pace::Gcra { burst, .. } => burst,
            Pace::Sliding => self.limit,
        }
    }

    /// The time after which one unit is back. For a sliding window, the time after which all are:
    /// the window plus the slot that a unit may have to wait for.
    #[must_use]
    pub fn interval(&self) -> Duration {
        match self.pace {
            Pace::Gcra { interval, .. } => interval,
            Pace::Sliding => self.slot().saturating_mul(SLOTS + 1),
        }
    }

    /// The time in which an empty bucket refills.
    #[must_use]
    pub fn refill_time(&self) -> Duration {
        match self.pace {
            Pace::Gcra { burst, interval, .. } => interval.saturating_mul(burst.get()),
            Pace::Sliding => self.interval(),
        }
    }

    /// The length of a slot of a sliding window.
    pub(super) fn slot(&self) -> Duration {
        let nanos = self.window.as_nanos().div_ceil(SLOTS.into());
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// The most requests that can pass in any `window`, both ends included.
    #[must_use]
    pub fn most_in(&self, window: Duration) -> u64 {
        let (burst, times) = match self.pace {
            Pace::Gcra { burst, interval, .. } => {
                (burst.get(), window.as_nanos() / interval.as_nanos())
            }
            Pace::Sliding => {
                let windows = window.as_nanos().div_ceil(self.window.as_nanos()).max(1);
                (0, windows.saturating_mul(self.limit.get().into()))
            }
        };
        u64::try_from(times).unwrap_or(u64::MAX).saturating_add(burst.into())
    }

    /// Whether everything that this quota admits fits `bound` as well.
    pub(super) fn is_within(&self, bound: &Self) -> bool {
        let is_counted_as_widely = match bound.counted_per {
            CountedPer::Key => true,
            // A second bucket beside the bound's would admit as much again.
            CountedPer::Consumer => {
                self.counted_per == bound.counted_per && self.name == bound.name
            }
        };
        let fits = match (self.pace, bound.pace) {
            (
                Pace::Gcra { burst, interval, .. },
                Pace::Gcra { burst: most_at_once, interval: shortest, .. },
            ) => burst <= most_at_once && interval >= shortest,
            (Pace::Sliding, Pace::Sliding) => {
                self.limit <= bound.limit && self.window >= bound.window
            }
            // A sliding window can admit its limit at once, and again one window later.
            (Pace::Sliding, Pace::Gcra { burst, interval, .. }) => {
                self.limit <= burst && interval.saturating_mul(self.limit.get()) <= self.window
            }
            // The burst is spent once, so later windows hold less.
            (Pace::Gcra { .. }, Pace::Sliding) => {
                self.most_in(bound.window) <= bound.limit.get().into()
            }
        };
        is_counted_as_widely && fits
    }
}

/// Whether `name` is a valid name of a policy or a plan.
pub(super) fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !name.is_empty() && name.len() <= MAX_NAME_LEN && name.bytes().all(allowed)
}

#[cfg(test)]
mod tests;
