use std::{
    error::Error,
    fmt,
    str::FromStr,
    time::{Duration, SystemTime},
};

/// How long a bucket of counted use is. Buckets begin at full hours, or at midnight, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BucketWidth {
    /// Hours, which are kept for 35 days by default.
    Hour,
    /// Days of UTC, which are kept for ever.
    Day,
}

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

impl BucketWidth {
    /// The length of a bucket.
    #[must_use]
    pub const fn duration(self) -> Duration {
        match self {
            Self::Hour => HOUR,
            Self::Day => DAY,
        }
    }

    /// The longest range of one query: 35 days by hour, as long as hours are kept by default; 3,660
    /// days by day, ten years.
    #[must_use]
    pub const fn max_range(self) -> Duration {
        match self {
            Self::Hour => DAY.saturating_mul(35),
            Self::Day => DAY.saturating_mul(3660),
        }
    }

    /// The range of a query that names none: a day by hour, 30 days by day.
    #[must_use]
    pub const fn usual_range(self) -> Duration {
        match self {
            Self::Hour => DAY,
            Self::Day => DAY.saturating_mul(30),
        }
    }

    /// `hour` or `day`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
        }
    }

    /// The beginning of the bucket that contains `at`. Times before 1970 are in the first bucket.
    #[must_use]
    pub fn start(self, at: SystemTime) -> SystemTime {
        let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let into = since.as_nanos().checked_rem(self.duration().as_nanos()).unwrap_or_default();
        let into = Duration::from_nanos(u64::try_from(into).unwrap_or_default());
        let start = since.saturating_sub(into);
        SystemTime::UNIX_EPOCH.checked_add(start).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// `at` if a bucket begins there, otherwise the beginning of the next bucket.
    #[must_use]
    pub fn end(self, at: SystemTime) -> SystemTime {
        let start = self.start(at);
        if start >= at {
            return start;
        }
        start.checked_add(self.duration()).unwrap_or(start)
    }

    /// The most buckets of one query. It begins and ends anywhere within a bucket.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub(super) const fn most(self) -> usize {
        match self {
            Self::Hour => 35 * 24 + 1,
            Self::Day => 3660 + 1,
        }
    }
}

impl fmt::Display for BucketWidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for BucketWidth {
    type Err = InvalidBucketWidth;

    fn from_str(text: &str) -> Result<Self, InvalidBucketWidth> {
        match text {
            "hour" => Ok(Self::Hour),
            "day" => Ok(Self::Day),
            _ => Err(InvalidBucketWidth),
        }
    }
}

/// The text is not a [`BucketWidth`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InvalidBucketWidth;

impl fmt::Display for InvalidBucketWidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("must be \"hour\" or \"day\"")
    }
}

impl Error for InvalidBucketWidth {}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_bucket_has_its_beginning_and_not_its_end() {
        for (time, start, end) in [(0, 0, 0), (1, 0, 3600), (3599, 0, 3600), (3600, 3600, 3600)] {
            assert_eq!(BucketWidth::Hour.start(at(time)), at(start), "{time}");
            assert_eq!(BucketWidth::Hour.end(at(time)), at(end), "{time}");
        }
        assert_eq!(BucketWidth::Day.start(at(86_399)), at(0));
        assert_eq!(BucketWidth::Day.end(at(86_401)), at(172_800));
        let part = at(3600) - Duration::from_nanos(1);
        assert_eq!((BucketWidth::Hour.start(part), BucketWidth::Hour.end(part)), (at(0), at(3600)));
    }

    #[test]
    fn times_before_1970_are_in_the_first_bucket() {
        let before = SystemTime::UNIX_EPOCH - Duration::from_secs(7);
        assert_eq!(BucketWidth::Day.start(before), at(0));
        assert_eq!(BucketWidth::Day.end(before), at(0));
    }

    #[test]
    fn a_width_is_read_back_from_its_text() {
        for width in [BucketWidth::Hour, BucketWidth::Day] {
            assert_eq!(width.to_string().parse(), Ok(width));
        }
        for text in ["", "Hour", "week", "1h"] {
            assert_eq!(text.parse::<BucketWidth>(), Err(InvalidBucketWidth), "{text}");
        }
    }
}
