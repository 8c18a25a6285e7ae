/// Where a [`RateLimiter`](super::RateLimiter) counts requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LimiterHealth {
    /// In this process, by design.
    Local,
    /// In a store that a fleet shares, which has not answered yet. `RedisRateLimiter` asks it on the
    /// first request.
    Unknown,
    /// In a store that a fleet shares.
    Shared,
    /// The shared store does not answer. Each node counts by itself, or rejects requests.
    Down,
}

impl LimiterHealth {
    /// The state's name for logs and metrics, such as `shared`. It never changes.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Unknown => "unknown",
            Self::Shared => "shared",
            Self::Down => "down",
        }
    }
}
