use std::{borrow::Cow, error::Error, fmt, num::NonZeroU32, time::Duration};

use serde::{Deserialize, Serialize};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
/// The algorithm adds up to two full buckets to a clock of nanoseconds in a `u64`.
const MAX_NANOS: u128 = (u64::MAX / 4) as u128;
/// The resolution of windows, which stores keep in milliseconds.
const NANOS_PER_MILLI: u128 = 1_000_000;
const MAX_NAME_LEN: usize = 64;
/// [`Quota::at_most`] lets a tenth through at once and paces the rest.
const DEFAULT_SHARE_AT_ONCE: u32 = 10;

/// A budget of requests that refills evenly.
///
/// `burst` units fit into the bucket, one more comes back every [`interval`](Self::interval). So in
/// any window at most `burst + window / interval` requests pass: [`most_in`](Self::most_in) says
/// how many. See the [module](crate::rate_limit) for examples.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct Quota {
    name: Cow<'static, str>,
    limit: NonZeroU32,
    window: Duration,
    burst: NonZeroU32,
    interval: Duration,
    strict: bool,
}

impl Quota {
    /// `limit` requests a second, any of them at once.
    ///
    /// # Errors
    ///
    /// When `limit` is zero.
    pub fn per_second(limit: u32) -> Result<Self, InvalidQuota> {
        Self::new("second", limit, SECOND)
    }

    /// `limit` requests a minute, any of them at once.
    ///
    /// # Errors
    ///
    /// When `limit` is zero.
    pub fn per_minute(limit: u32) -> Result<Self, InvalidQuota> {
        Self::new("minute", limit, MINUTE)
    }

    /// `limit` requests an hour, any of them at once.
    ///
    /// # Errors
    ///
    /// When `limit` is zero.
    pub fn per_hour(limit: u32) -> Result<Self, InvalidQuota> {
        Self::new("hour", limit, HOUR)
    }

    /// `limit` requests in each `window`, any of them at once.
    ///
    /// # Errors
    ///
    /// When `limit` or `window` is zero, when the window is not whole milliseconds, when units
    /// would come back faster than one a nanosecond, or when the bucket would take longer than 146
    /// years to fill.
    pub fn per(limit: u32, window: Duration) -> Result<Self, InvalidQuota> {
        Self::new("default", limit, window)
    }

    /// Never more than `limit` requests in any `window`, wherever it begins.
    ///
    /// A tenth of them may come at once and the rest is paced; [`burst`](Self::burst) changes the
    /// share and keeps the promise. Take it for contracts ("1,000 a day"), and the others for
    /// protection: they are kinder to clients that come in bursts.
    ///
    /// # Errors
    ///
    /// As [`per`](Self::per).
    pub fn at_most(limit: u32, window: Duration) -> Result<Self, InvalidQuota> {
        let quota = Self::new("default", limit, window)?;
        Self { strict: true, ..quota }.burst((limit / DEFAULT_SHARE_AT_ONCE).max(1))
    }

    fn new(name: &'static str, limit: u32, window: Duration) -> Result<Self, InvalidQuota> {
        let limit = NonZeroU32::new(limit).ok_or(InvalidQuota::Zero)?;
        let (name, strict, interval) = (Cow::Borrowed(name), false, Duration::ZERO);
        Self { name, limit, window, burst: limit, interval, strict }.paced()
    }

    /// Lets `burst` requests through at once. The default is the limit.
    ///
    /// # Errors
    ///
    /// When `burst` is zero, when the bucket would take longer than 146 years to fill, or when it
    /// is more than [`at_most`](Self::at_most) promised.
    pub fn burst(self, burst: u32) -> Result<Self, InvalidQuota> {
        let burst = NonZeroU32::new(burst).ok_or(InvalidQuota::Zero)?;
        if self.strict && burst > self.limit {
            return Err(InvalidQuota::OutOfRange);
        }
        Self { burst, ..self }.paced()
    }

    /// Names the policy in `RateLimit-Policy`, in problem bodies and among the quotas of its key.
    /// The default is the window: `second`, `minute`, `hour` or `default`.
    ///
    /// # Errors
    ///
    /// When the name is empty, longer than 64 characters, or has other characters than letters,
    /// digits, `-`, `_` and `.`.
    pub fn named(self, name: impl Into<String>) -> Result<Self, InvalidQuota> {
        let name = name.into();
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if name.is_empty() || name.len() > MAX_NAME_LEN || !name.bytes().all(allowed) {
            return Err(InvalidQuota::Name);
        }
        Ok(Self { name: name.into(), ..self })
    }

    /// Sets the interval at which units come back, and checks that the arithmetic on it holds.
    fn paced(self) -> Result<Self, InvalidQuota> {
        let window = self.window.as_nanos();
        let (limit, burst) = (u128::from(self.limit.get()), u128::from(self.burst.get()));
        let interval = if self.strict {
            // What comes back within a window, whose ends both count, adds to the burst.
            match limit - burst {
                0 => window.saturating_add(1),
                paced => window.div_ceil(paced),
            }
        } else {
            window / limit
        };
        let fits = interval > 0
            && window.is_multiple_of(NANOS_PER_MILLI)
            && interval.saturating_mul(burst.max(limit)) <= MAX_NANOS;
        let interval = u64::try_from(interval).ok().filter(|_| fits);
        let interval = Duration::from_nanos(interval.ok_or(InvalidQuota::OutOfRange)?);
        Ok(Self { interval, ..self })
    }

    /// The name of the policy.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Requests in each [`window`](Self::window).
    #[must_use]
    pub fn limit(&self) -> u32 {
        self.limit.get()
    }

    /// What [`limit`](Self::limit) counts over.
    #[must_use]
    pub fn window(&self) -> Duration {
        self.window
    }

    /// Requests that fit at once.
    #[must_use]
    pub fn burst_size(&self) -> NonZeroU32 {
        self.burst
    }

    /// Time after which one unit is back.
    #[must_use]
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// The most requests that can pass in any `window`.
    #[must_use]
    pub fn most_in(&self, window: Duration) -> u64 {
        let refilled = window.as_nanos() / self.interval.as_nanos();
        u64::try_from(refilled).unwrap_or(u64::MAX).saturating_add(self.burst.get().into())
    }
}

/// A quota as the stores keep it: what was asked for, not what follows from it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    name: String,
    limit: u32,
    window_ms: u64,
    burst: u32,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    strict: bool,
}

impl From<Quota> for Stored {
    fn from(quota: Quota) -> Self {
        Self {
            limit: quota.limit.get(),
            window_ms: u64::try_from(quota.window.as_millis()).unwrap_or(u64::MAX),
            burst: quota.burst.get(),
            strict: quota.strict,
            name: quota.name.into_owned(),
        }
    }
}

impl TryFrom<Stored> for Quota {
    type Error = InvalidQuota;

    fn try_from(stored: Stored) -> Result<Self, InvalidQuota> {
        let quota = Self::per(stored.limit, Duration::from_millis(stored.window_ms))?;
        Self { strict: stored.strict, ..quota }.burst(stored.burst)?.named(stored.name)
    }
}

/// The quotas of one key, shortest window first, each with a name of its own.
///
/// A request must fit all of them. The short ones are asked first, so that a burst which they turn
/// away does not use up the day.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Quota>", into = "Vec<Quota>")]
pub struct RateLimits(Box<[Quota]>);

impl RateLimits {
    /// No limit at all.
    #[must_use]
    pub fn unlimited() -> Self {
        Self::default()
    }

    /// All of `quotas`.
    ///
    /// # Errors
    ///
    /// When two have the same name.
    pub fn new(quotas: impl IntoIterator<Item = Quota>) -> Result<Self, InvalidQuota> {
        let mut quotas: Box<[Quota]> = quotas.into_iter().collect();
        quotas.sort_by_key(|quota| (quota.window, quota.limit));
        let mut names: Vec<_> = quotas.iter().map(Quota::name).collect();
        names.sort_unstable();
        if names.windows(2).any(|pair| matches!(pair, [a, b] if a == b)) {
            return Err(InvalidQuota::Name);
        }
        Ok(Self(quotas))
    }

    /// The quotas, shortest window first.
    #[must_use]
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Quota> {
        self.0.iter()
    }

    /// Whether whatever passes these passes `bound` too: for each quota there is one here with no
    /// larger a burst and no shorter an interval.
    #[must_use]
    pub fn is_within(&self, bound: &Self) -> bool {
        let fits = |quota: &Quota, bound: &Quota| {
            quota.burst <= bound.burst && quota.interval >= bound.interval
        };
        bound.iter().all(|bound| self.iter().any(|quota| fits(quota, bound)))
    }

    /// Whether there is no limit.
    #[must_use]
    pub fn is_unlimited(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<Quota> for RateLimits {
    fn from(quota: Quota) -> Self {
        Self([quota].into())
    }
}

impl TryFrom<Vec<Quota>> for RateLimits {
    type Error = InvalidQuota;

    fn try_from(quotas: Vec<Quota>) -> Result<Self, InvalidQuota> {
        Self::new(quotas)
    }
}

impl From<RateLimits> for Vec<Quota> {
    fn from(limits: RateLimits) -> Self {
        limits.0.into()
    }
}

/// Why a quota was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidQuota {
    /// A limit or burst of zero lets nobody in; deactivate the key instead.
    Zero,
    /// Too fast, too slow, or more at once than promised.
    OutOfRange,
    /// A name that is empty, too long, taken, or has characters a header may not carry.
    Name,
}

impl fmt::Display for InvalidQuota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Zero => "a quota of zero lets nobody in: deactivate the key instead",
            Self::OutOfRange => {
                "a quota has a window of whole milliseconds, refills between once a nanosecond and once in 146 years, and lets no more through at once than it promises"
            }
            Self::Name => {
                "a quota's name is 1 to 64 letters, digits, `-`, `_` or `.`, and its own among the quotas of a key"
            }
        })
    }
}

impl Error for InvalidQuota {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn zero_and_overflow_are_errors() {
        assert_eq!(Quota::per_second(0), Err(InvalidQuota::Zero));
        assert_eq!(Quota::per_minute(60).unwrap().burst(0), Err(InvalidQuota::Zero));
        assert_eq!(Quota::per(1, Duration::ZERO), Err(InvalidQuota::OutOfRange));
        assert_eq!(Quota::per(1, Duration::MAX), Err(InvalidQuota::OutOfRange));
        assert_eq!(Quota::per(1001, Duration::from_micros(1)), Err(InvalidQuota::OutOfRange));
        let slow = Quota::per(1, Duration::from_secs(86_400)).unwrap();
        assert_eq!(slow.burst(u32::MAX), Err(InvalidQuota::OutOfRange));
        assert!(Quota::per_second(1_000_000_000).is_ok());
        assert_eq!(Quota::per_second(u32::MAX), Err(InvalidQuota::OutOfRange));
        assert_eq!(Quota::at_most(5, MINUTE).unwrap().burst(6), Err(InvalidQuota::OutOfRange));
    }

    #[test]
    fn names_fit_a_header_and_are_unique_in_a_key() {
        let quota = Quota::per_minute(60).unwrap();
        for name in ["", "a b", "a\"b", "a\r\nb", "ä", &"a".repeat(65)] {
            assert_eq!(quota.clone().named(name), Err(InvalidQuota::Name), "{name:?}");
        }
        assert_eq!(RateLimits::new([quota.clone(), quota]), Err(InvalidQuota::Name));
    }

    #[test]
    fn stacked_quotas_come_shortest_window_first() {
        let limits =
            RateLimits::new([Quota::per_hour(9).unwrap(), Quota::per_second(1).unwrap()]).unwrap();
        let names: Vec<_> = limits.iter().map(Quota::name).collect();
        assert_eq!(names, ["second", "hour"]);
    }

    #[test]
    fn limits_are_within_others_that_admit_whatever_they_do() {
        let minute = |limit, burst| Quota::per_minute(limit).unwrap().burst(burst).unwrap();
        let limits = |quotas: &[Quota]| RateLimits::new(quotas.iter().cloned()).unwrap();
        let bound = limits(&[minute(60, 10)]);
        for within in [minute(60, 10), minute(59, 10), minute(60, 9), minute(1, 1)] {
            assert!(limits(std::slice::from_ref(&within)).is_within(&bound), "{within:?}");
            assert!(limits(&[within, Quota::per_hour(9).unwrap()]).is_within(&bound));
        }
        for beyond in
            [minute(61, 10), minute(60, 11), Quota::per_second(1).unwrap().burst(11).unwrap()]
        {
            assert!(!limits(std::slice::from_ref(&beyond)).is_within(&bound), "{beyond:?}");
        }
        assert!(!RateLimits::unlimited().is_within(&bound));
        assert!(bound.is_within(&RateLimits::unlimited()));
        assert!(!bound.is_within(&limits(&[minute(60, 10), Quota::per_hour(9).unwrap()])));
    }

    #[test]
    fn a_stored_quota_that_makes_no_sense_is_refused() {
        for json in [
            r#"{"name":"minute","limit":0,"window_ms":60000,"burst":1}"#,
            r#"{"name":"minute","limit":1,"window_ms":0,"burst":1}"#,
            r#"{"name":"minute","limit":1,"window_ms":86400000,"burst":4294967295}"#,
            r#"{"name":"a\nb","limit":1,"window_ms":60000,"burst":1}"#,
            r#"{"name":"minute","limit":-1,"window_ms":60000,"burst":1}"#,
            r#"{"name":"minute","limit":1,"window_ms":60000,"burst":1,"unknown":1}"#,
        ] {
            assert!(serde_json::from_str::<Quota>(json).is_err(), "{json}");
        }
    }

    proptest! {
        #[test]
        fn quotas_survive_storage(
            limit in 1..=u32::MAX,
            window_ms in 1..=3_000_000_000_u64,
            burst in 1..=u32::MAX,
            strict: bool,
        ) {
            let window = Duration::from_millis(window_ms);
            let quota = if strict { Quota::at_most(limit, window) } else { Quota::per(limit, window) };
            let Ok(quota) = quota.and_then(|quota| quota.burst(burst)) else { return Ok(()) };
            let json = serde_json::to_string(&quota).unwrap();
            prop_assert_eq!(serde_json::from_str::<Quota>(&json).unwrap(), quota);
        }

        // Any bucket of these fills within 146 years.
        #[test]
        fn at_most_means_it(limit in 1..100_000_u32, secs in 1..40_000_u64, burst in 1..100_000_u32) {
            let window = Duration::from_secs(secs);
            let quota = Quota::at_most(limit, window).unwrap();
            prop_assert!(quota.most_in(window) <= limit.into());
            // The interval is rounded up to whole nanoseconds, which may cost the last one.
            prop_assert!((quota.most_in(window) + 1) * 10 >= u64::from(limit) * 9);
            if burst <= limit {
                let quota = quota.burst(burst).unwrap();
                prop_assert!(quota.most_in(window) <= limit.into());
            }
        }
    }
}
