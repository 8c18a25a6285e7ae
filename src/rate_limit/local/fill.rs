use std::time::Duration;

/// How much of a bucket is used up: what outlives a change of quota.
#[derive(Clone, Copy)]
pub(super) struct Fill {
    used: u128,
    of: u128,
}

impl Fill {
    /// Nothing is.
    pub(super) const FULL: Self = Self { used: 0, of: 1 };

    pub(super) fn new(used: Duration, of: Duration) -> Self {
        Self { used: used.as_nanos(), of: of.as_nanos().max(1) }
    }

    pub(super) fn of_all(used: u64, of: u64) -> Self {
        Self { used: used.into(), of: u128::from(of).max(1) }
    }

    pub(super) fn is_full(self) -> bool {
        self.used == 0
    }

    /// As much of what takes `refill` to fill.
    pub(super) fn of(self, refill: Duration) -> Duration {
        let used = (self.used.min(self.of) * refill.as_nanos()).div_ceil(self.of);
        Duration::from_nanos(u64::try_from(used).unwrap_or(u64::MAX))
    }

    /// As much of `limit` units.
    pub(super) fn of_units(self, limit: u32) -> u32 {
        let used = (self.used.min(self.of) * u128::from(limit)).div_ceil(self.of);
        u32::try_from(used).unwrap_or(limit)
    }
}
