/// How much of a bucket is used up: what outlives a change of quota.
#[derive(Clone, Copy)]
pub(super) struct Fill {
    used: u64,
    of: u64,
}

impl Fill {
    /// Nothing is.
    pub(super) const FULL: Self = Self { used: 0, of: 1 };

    /// So much `of` it. What is more than all of it is owed, and is no more than as much again.
    pub(super) fn new(used: u64, of: u64) -> Self {
        let of = of.max(1);
        Self { used: used.min(of.saturating_mul(2)), of }
    }

    pub(super) fn is_full(self) -> bool {
        self.used == 0
    }

    /// As much of `total`, rounded up, so that no change refills.
    pub(super) fn used_of(self, total: u64) -> u64 {
        let used = u128::from(self.used) * u128::from(total);
        u64::try_from(used.div_ceil(self.of.into())).unwrap_or(u64::MAX)
    }
}
