//! Queries of the usage ledger.

use std::{error::Error, fmt, str::FromStr, time::SystemTime};

use super::{BucketWidth, port::UseCounts};
use crate::record::{KeyId, read_rfc3339, rfc3339};

/// Which use of keys to read, in which buckets of time. Without a key and a consumer: the use of
/// all keys together.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[must_use]
pub struct UsageQuery {
    /// Use of this key.
    pub key_id: Option<KeyId>,
    /// Use of this consumer's keys, counted for the consumer that each key had at the time.
    pub consumer_id: Option<String>,
    /// Hours or days.
    pub width: BucketWidth,
    /// Buckets that begin at this time or later.
    pub from: SystemTime,
    /// Buckets that begin before this time.
    pub to: SystemTime,
}

impl UsageQuery {
    /// Use up to `to`: of 24 hours by hour, of 30 days by day.
    pub fn until(to: SystemTime, width: BucketWidth) -> Self {
        let from = to.checked_sub(width.usual_range()).unwrap_or(SystemTime::UNIX_EPOCH);
        Self { key_id: None, consumer_id: None, width, from, to }
    }

    /// Sets [`key_id`](Self::key_id).
    pub fn key_id(self, id: KeyId) -> Self {
        Self { key_id: Some(id), ..self }
    }

    /// Sets [`consumer_id`](Self::consumer_id).
    pub fn consumer_id(self, id: impl Into<String>) -> Self {
        Self { consumer_id: Some(id.into()), ..self }
    }

    /// Sets [`from`](Self::from).
    pub fn from(self, from: SystemTime) -> Self {
        Self { from, ..self }
    }
}

/// What was counted in an hour or a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UsageBucket {
    /// Its beginning.
    pub from: SystemTime,
    /// What was counted.
    pub counts: UseCounts,
}

impl UsageBucket {
    /// `counts` of the bucket that begins at `from`.
    #[must_use]
    pub const fn new(from: SystemTime, counts: UseCounts) -> Self {
        Self { from, counts }
    }
}

/// A position in the hours of all keys, which are in the order of hour and key id.
///
/// As text, it is the hour, and the key's id if there is one: `2026-01-31T12:00:00Z` or
/// `2026-01-31T12:00:00Z/0190d4c0-0000-7000-8000-000000000000`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct UsageCursor {
    /// Hours before this one are behind the position.
    pub hour: SystemTime,
    /// Of that hour, this key and those with lower ids are behind the position. `None`: no key is.
    pub key_id: Option<KeyId>,
}

impl UsageCursor {
    /// The position before all keys of the hours that begin at `hour` or later.
    #[must_use]
    pub const fn at(hour: SystemTime) -> Self {
        Self { hour, key_id: None }
    }

    /// The position after one key's use in an hour.
    #[must_use]
    pub const fn after(hour: SystemTime, key_id: KeyId) -> Self {
        Self { hour, key_id: Some(key_id) }
    }
}

impl fmt::Display for UsageCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&rfc3339(self.hour))?;
        match self.key_id {
            Some(id) => write!(f, "/{id}"),
            None => Ok(()),
        }
    }
}

impl FromStr for UsageCursor {
    type Err = InvalidUsageCursor;

    fn from_str(text: &str) -> Result<Self, InvalidUsageCursor> {
        let (hour, key_id) = match text.split_once('/') {
            Some((hour, id)) => (hour, Some(id.parse().map_err(|_| InvalidUsageCursor)?)),
            None => (text, None),
        };
        let hour = read_rfc3339(hour).ok_or(InvalidUsageCursor)?;
        Ok(Self { hour, key_id })
    }
}

/// The text is not a [`UsageCursor`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InvalidUsageCursor;

impl fmt::Display for InvalidUsageCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "must be an RFC 3339 date and time, or one followed by `/` and the id of a key, as in \
             `next` of an earlier page",
        )
    }
}

impl Error for InvalidUsageCursor {}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_cursor_is_read_back_from_its_text() {
        let hour = SystemTime::UNIX_EPOCH + 24 * HOUR;
        let id = KeyId::from_bytes([7; 16]);
        for (cursor, text) in [
            (UsageCursor::at(hour), "1970-01-02T00:00:00Z"),
            (
                UsageCursor::after(hour, id),
                "1970-01-02T00:00:00Z/07070707-0707-0707-0707-070707070707",
            ),
        ] {
            assert_eq!(cursor.to_string(), text);
            assert_eq!(text.parse(), Ok(cursor));
        }
        for text in ["", "1970-01-02", "1970-01-02T00:00:00Z/", "1970-01-02T00:00:00Z/7", "/"] {
            assert_eq!(text.parse::<UsageCursor>(), Err(InvalidUsageCursor), "{text}");
        }
    }

    #[test]
    fn cursors_are_in_the_order_of_hours_and_keys() {
        let (hour, id) = (SystemTime::UNIX_EPOCH, KeyId::from_bytes([7; 16]));
        assert!(UsageCursor::at(hour) < UsageCursor::after(hour, id));
        assert!(UsageCursor::after(hour, id) < UsageCursor::at(hour + HOUR));
    }

    #[test]
    fn a_query_reads_a_day_of_hours_or_thirty_days() {
        let to = SystemTime::UNIX_EPOCH + 10_000 * HOUR;
        assert_eq!(UsageQuery::until(to, BucketWidth::Hour).from, to - 24 * HOUR);
        assert_eq!(UsageQuery::until(to, BucketWidth::Day).from, to - 30 * 24 * HOUR);
        let early = SystemTime::UNIX_EPOCH + HOUR;
        assert!(UsageQuery::until(early, BucketWidth::Day).from < early);
    }
}
