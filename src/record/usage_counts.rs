use std::ops::AddAssign;

/// How often a key was used, by outcome, and what that cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct UsageCounts {
    /// Admitted requests.
    pub admitted: u64,
    /// Requests beyond a rate limit (429).
    pub limited: u64,
    /// Requests without a required scope, or from elsewhere than the key allows (403).
    pub forbidden: u64,
    /// Requests with a key that was revoked, expired, inactive or not yet active (401).
    pub refused: u64,
    /// Rate limit units that were charged.
    pub units: u64,
}

impl AddAssign for UsageCounts {
    /// Stops at the largest number.
    fn add_assign(&mut self, other: Self) {
        self.admitted = self.admitted.saturating_add(other.admitted);
        self.limited = self.limited.saturating_add(other.limited);
        self.forbidden = self.forbidden.saturating_add(other.forbidden);
        self.refused = self.refused.saturating_add(other.refused);
        self.units = self.units.saturating_add(other.units);
    }
}
