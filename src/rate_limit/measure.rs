use std::{cmp::Ordering, num::NonZeroU32};

use super::{Algorithm, Quota, local::nanos::nanos};

/// The algorithm of a quota and its numbers. Quotas that differ only in name or in
/// [`CountedPer`](super::CountedPer) have the same measure, and share their state in a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Measure {
    /// `interval` is in nanoseconds.
    Gcra { burst: NonZeroU32, interval: u64 },
    /// `window` is in nanoseconds.
    Window { limit: u32, window: u64 },
}

/// A refill rate: `units` every `nanos`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    units: u64,
    nanos: u64,
}

impl Measure {
    pub(super) fn of(quota: &Quota) -> Self {
        match quota.algorithm() {
            Algorithm::Gcra => {
                Self::Gcra { burst: quota.burst_size(), interval: nanos(quota.interval()).max(1) }
            }
            Algorithm::SlidingWindow => {
                Self::Window { limit: quota.limit(), window: nanos(quota.window()).max(1) }
            }
        }
    }

    /// The units that fit at once.
    pub(super) fn size(self) -> i128 {
        match self {
            Self::Gcra { burst, .. } => burst.get().into(),
            Self::Window { limit, .. } => limit.into(),
        }
    }

    pub(super) fn rate(self) -> Rate {
        match self {
            Self::Gcra { interval, .. } => Rate { units: 1, nanos: interval },
            Self::Window { limit, window } => Rate { units: limit.into(), nanos: window },
        }
    }

    /// The length of a sliding window; zero for GCRA.
    pub(super) fn window(self) -> u64 {
        match self {
            Self::Gcra { .. } => 0,
            Self::Window { window, .. } => window,
        }
    }
}

impl Rate {
    /// The units that refill in `nanos`, rounded up.
    pub(super) fn units_in(self, nanos: u64) -> u64 {
        let units = u128::from(self.units) * u128::from(nanos);
        u64::try_from(units.div_ceil(self.nanos.into())).unwrap_or(u64::MAX)
    }

    /// The nanoseconds in which this rate refills `units` more than the slower rate `other`,
    /// rounded up.
    pub(super) fn outpaces(self, other: Self, units: i128) -> u64 {
        let Some(units) = u128::try_from(units).ok().filter(|units| *units > 0) else { return 0 };
        let (ours, theirs) = (self.scaled(other), other.scaled(self));
        let Some(gain) = ours.checked_sub(theirs).filter(|gain| *gain > 0) else { return u64::MAX };
        let per_unit = (u128::from(self.nanos) * u128::from(other.nanos)).div_ceil(gain);
        u64::try_from(per_unit.saturating_mul(units)).unwrap_or(u64::MAX)
    }

    /// The units, on the common denominator of both rates.
    fn scaled(self, other: Self) -> u128 {
        u128::from(self.units) * u128::from(other.nanos)
    }
}

impl PartialEq for Rate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Rate {}

impl PartialOrd for Rate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Rate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.scaled(*other).cmp(&other.scaled(*self))
    }
}
