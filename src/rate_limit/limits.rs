use std::{
    any::Any,
    fmt,
    hash::{Hash, Hasher},
    sync::{Arc, LazyLock, OnceLock},
};

use serde::{Deserialize, Serialize};

use super::{InvalidQuota, Quota};

/// The quotas of one key, shortest window first, with unique names, at most
/// [`MAX_QUOTAS`](Self::MAX_QUOTAS).
///
/// A request must fit all of them, and takes from all or from none: a burst that the minute's quota
/// denies does not use up the day's.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "Vec<Quota>", into = "Vec<Quota>")]
pub struct RateLimits(Arc<Limits>);

struct Limits {
    quotas: Box<[Quota]>,
    /// See [`RateLimits::rendered`].
    rendered: OnceLock<Box<dyn Any + Send + Sync>>,
}

/// Static, so that it can be borrowed.
static UNLIMITED: LazyLock<RateLimits> = LazyLock::new(|| RateLimits::of(Vec::new()));

impl RateLimits {
    /// The maximum number of quotas of a key, of a plan, and of a key together with its plan: 8.
    ///
    /// Each quota costs every request of the key one more bucket to take from, possibly in Redis,
    /// and about 100 bytes in each of two response headers. Eight with the longest names fit into 2
    /// KiB of headers, which every proxy forwards.
    pub const MAX_QUOTAS: usize = 8;

    /// No limit.
    #[must_use]
    pub fn unlimited() -> Self {
        UNLIMITED.clone()
    }

    fn of(quotas: Vec<Quota>) -> Self {
        Self(Arc::new(Limits { quotas: quotas.into(), rendered: OnceLock::new() }))
    }

    pub(crate) fn unlimited_ref() -> &'static Self {
        &UNLIMITED
    }

    /// Combines `quotas`.
    ///
    /// # Errors
    ///
    /// If two have the same name, or there are more than [`MAX_QUOTAS`](Self::MAX_QUOTAS).
    pub fn new(quotas: impl IntoIterator<Item = Quota>) -> Result<Self, InvalidQuota> {
        // One more than allowed is enough to detect that there are too many.
        let mut quotas: Vec<Quota> = quotas.into_iter().take(Self::MAX_QUOTAS + 1).collect();
        if quotas.len() > Self::MAX_QUOTAS {
            return Err(InvalidQuota::TooMany);
        }
        sort(&mut quotas);
        let mut names: Vec<_> = quotas.iter().map(Quota::name).collect();
        names.sort_unstable();
        if names.windows(2).any(|pair| matches!(pair, [a, b] if a == b)) {
            return Err(InvalidQuota::Name);
        }
        Ok(Self::of(quotas))
    }

    /// The quotas, shortest window first.
    #[must_use]
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Quota> {
        self.0.quotas.iter()
    }

    /// Whether everything that these admit fits `bound` as well: for each quota of `bound`, one of
    /// these admits no more and is counted as widely.
    #[must_use]
    pub fn is_within(&self, bound: &Self) -> bool {
        bound.iter().all(|bound| self.iter().any(|quota| quota.is_within(bound)))
    }

    /// These quotas plus those of `others`; on a name clash, these win.
    ///
    /// The result may have more than [`MAX_QUOTAS`](Self::MAX_QUOTAS). A key whose own quotas plus
    /// those of its plan are too many is rejected on creation, and on look-up.
    #[must_use]
    pub fn and(&self, others: &Self) -> Self {
        let is_new = |quota: &&Quota| self.iter().all(|own| own.name() != quota.name());
        let quotas = self.iter().chain(others.iter().filter(is_new)).cloned();
        let mut quotas: Vec<Quota> = quotas.collect();
        sort(&mut quotas);
        Self::of(quotas)
    }

    /// Whether a key may have these: at most [`MAX_QUOTAS`](Self::MAX_QUOTAS).
    pub(crate) fn is_within_bounds(&self) -> bool {
        self.0.quotas.len() <= Self::MAX_QUOTAS
    }

    /// Whether there is no limit.
    #[must_use]
    pub fn is_unlimited(&self) -> bool {
        self.0.quotas.is_empty()
    }

    /// A rendering of these limits for clients, computed once for all keys that share them. All
    /// callers must use the same `T`.
    pub(crate) fn rendered<T: Send + Sync + 'static>(
        &self,
        render: impl FnOnce(&Self) -> T,
    ) -> Option<&T> {
        self.0.rendered.get_or_init(|| Box::new(render(self))).downcast_ref()
    }
}

fn sort(quotas: &mut [Quota]) {
    quotas.sort_by_key(|quota| (quota.window(), quota.limit()));
}

impl Default for RateLimits {
    fn default() -> Self {
        Self::unlimited()
    }
}

impl PartialEq for RateLimits {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.quotas == other.0.quotas
    }
}

impl Eq for RateLimits {}

impl Hash for RateLimits {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.quotas.hash(state);
    }
}

impl fmt::Debug for RateLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RateLimits").field(&self.0.quotas).finish()
    }
}

impl From<Quota> for RateLimits {
    fn from(quota: Quota) -> Self {
        Self::of(vec![quota])
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
        limits.0.quotas.to_vec()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn names_are_unique() {
        let quota = Quota::per_minute(60).unwrap();
        assert_eq!(RateLimits::new([quota.clone(), quota]), Err(InvalidQuota::Name));
    }

    #[test]
    fn eight_quotas_are_the_most_wherever_they_come_from() {
        let quotas = |count: usize| {
            (0..count).map(|at| Quota::per_minute(1).unwrap().named(format!("q{at}")).unwrap())
        };
        let eight = RateLimits::new(quotas(8)).unwrap();
        let json = serde_json::to_string(&eight).unwrap();
        assert_eq!(serde_json::from_str::<RateLimits>(&json).unwrap(), eight);
        assert_eq!(RateLimits::new(quotas(9)), Err(InvalidQuota::TooMany));
        assert_eq!(RateLimits::new(quotas(1_000_000)), Err(InvalidQuota::TooMany));
        let json = serde_json::to_string(&quotas(9).collect::<Vec<_>>()).unwrap();
        assert!(serde_json::from_str::<RateLimits>(&json).is_err());
        let other = Quota::per_hour(1).unwrap().into();
        assert!(eight.is_within_bounds() && !eight.and(&other).is_within_bounds());
        assert!(eight.and(&eight).is_within_bounds());
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
    fn quotas_of_other_kinds_are_within_others_that_admit_whatever_they_do() {
        let seconds = Duration::from_secs;
        let gcra = |limit, burst| Quota::per(limit, seconds(60)).unwrap().burst(burst).unwrap();
        let sliding = |limit, length| Quota::sliding(limit, seconds(length)).unwrap();
        let is_within = |one: &Quota, bound: &Quota| {
            RateLimits::from(one.clone()).is_within(&RateLimits::from(bound.clone()))
        };
        for (bound, within, beyond) in [
            (
                sliding(60, 60),
                vec![sliding(60, 60), sliding(59, 60), sliding(60, 61), gcra(30, 30), gcra(59, 1)],
                vec![sliding(61, 60), sliding(60, 59), gcra(60, 1), gcra(30, 31)],
            ),
            (
                gcra(60, 10),
                vec![sliding(10, 10), sliding(9, 9), sliding(10, 11)],
                vec![sliding(11, 11), sliding(10, 9), sliding(11, 60)],
            ),
        ] {
            for within in &within {
                assert!(is_within(within, &bound), "{within:?} and {bound:?}");
                for window in (1..=600).map(seconds) {
                    assert!(within.most_in(window) <= bound.most_in(window), "{within:?}");
                }
            }
            for beyond in &beyond {
                assert!(!is_within(beyond, &bound), "{beyond:?} and {bound:?}");
            }
        }
    }

    #[test]
    fn a_quota_of_a_whole_consumer_bounds_only_the_one_that_is_counted_in_the_same_bucket() {
        let minute = || Quota::per_minute(60).unwrap();
        let is_within = |one: Quota| one.is_within(&minute().per_consumer());
        assert!(is_within(minute().per_consumer()));
        assert!(!is_within(minute()));
        assert!(!is_within(minute().per_consumer().named("other").unwrap()));
        assert!(!is_within(minute().named("other").unwrap()));
        assert!(minute().per_consumer().is_within(&minute().named("other").unwrap()));
    }
}
