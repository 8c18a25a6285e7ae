use std::time::Duration;

/// Nanoseconds of the caller's clock. For buckets it stands still after 146 years: on top there must
/// be room for the 146 years in which one may fill, as much again that is owed, and as much that is
/// asked for.
pub(in crate::rate_limit) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX).min(u64::MAX / 4)
}
