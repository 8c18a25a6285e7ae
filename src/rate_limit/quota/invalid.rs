use std::{error::Error, fmt};

/// Why a quota is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidQuota {
    /// A limit or burst of zero would admit nothing; deactivate the key instead.
    Zero,
    /// The refill is too fast or too slow, or the burst exceeds the guarantee.
    OutOfRange,
    /// A sliding window with an invalid length or limit, or with a burst other than its limit.
    Sliding,
    /// A name that is empty, too long or taken, or that contains characters not allowed in a
    /// header.
    Name,
    /// More quotas than a key or a plan [may have](crate::rate_limit::RateLimits::MAX_QUOTAS).
    TooMany,
}

impl fmt::Display for InvalidQuota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Zero => "limit and burst must not be zero; to stop a key, deactivate it",
            Self::OutOfRange => {
                "a quota's window must be whole milliseconds, its refill between one unit per nanosecond and a full bucket in 146 years, and the burst of a strict quota at most its limit"
            }
            Self::Sliding => {
                "a sliding window's limit must be at most 2147483647, its length whole milliseconds from 100 ms to 146 years, and its burst equal to its limit"
            }
            Self::Name => {
                "a quota's name must be 1 to 64 letters, digits, `-`, `_` or `.`, and unique among the quotas of a key"
            }
            Self::TooMany => "a key or a plan has at most 8 quotas",
        })
    }
}

impl Error for InvalidQuota {}
