use std::time::Duration;

/// Nanoseconds of the caller's clock. For buckets, time stops after 146 years: the `u64` must also
/// hold the 146 years in which a bucket may fill, as much again for debt, and as much for the
/// request.
pub(in crate::rate_limit) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX).min(u64::MAX / 4)
}
