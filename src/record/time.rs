//! Times as text.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;

const SECONDS_PER_DAY: i128 = 86_400;
const NANOS_PER_SECOND: i128 = 1_000_000_000;

/// RFC 3339 in UTC. A year beyond 9999, which only an edit by hand puts into a database, is written
/// with a sign and at least six digits, as in ECMAScript and ISO 8601. Writing nothing instead
/// would make the key look as if it never expired.
pub(crate) fn rfc3339(at: SystemTime) -> String {
    match Timestamp::try_from(at) {
        Ok(at) => at.to_string(),
        Err(_) => expanded(nanos_since_epoch(at)),
    }
}

/// Parses an RFC 3339 date and time. `jiff` alone accepts more formats.
pub(crate) fn read_rfc3339(text: &str) -> Option<SystemTime> {
    let looks_so = text.len() >= "2026-01-01T00:00:00Z".len()
        && text.as_bytes().get(10).is_some_and(|byte| byte.eq_ignore_ascii_case(&b't'))
        && !text.contains('[');
    let at = text.parse::<Timestamp>().ok().filter(|_| looks_so)?;
    SystemTime::try_from(at).ok()
}

fn nanos_since_epoch(at: SystemTime) -> i128 {
    let nanos = |distance: Duration| i128::try_from(distance.as_nanos()).unwrap_or(i128::MAX);
    match at.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => nanos(after),
        Err(before) => -nanos(before.duration()),
    }
}

fn expanded(nanos: i128) -> String {
    let seconds = nanos.div_euclid(NANOS_PER_SECOND);
    let (year, month, day) = date(seconds.div_euclid(SECONDS_PER_DAY));
    let second = seconds.rem_euclid(SECONDS_PER_DAY);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:+07}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Converts days since 1970-01-01 to a proleptic Gregorian date: Howard Hinnant's
/// `civil_from_days`, in which years begin in March.
fn date(days: i128) -> (i128, i128, i128) {
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i128::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> SystemTime {
        let distance = Duration::from_secs(seconds.unsigned_abs());
        if seconds < 0 {
            SystemTime::UNIX_EPOCH - distance
        } else {
            SystemTime::UNIX_EPOCH + distance
        }
    }

    #[test]
    fn every_time_of_a_store_is_written() {
        // jiff supports only the first three.
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (1_767_225_599, "2025-12-31T23:59:59Z"),
            (-1, "1969-12-31T23:59:59Z"),
            (253_402_300_800, "+010000-01-01T00:00:00Z"),
            (569_034_205_384, "+020001-12-23T01:03:04Z"),
            (9_223_372_036_854, "+294247-01-10T04:00:54Z"),
            (-8_640_000_000_000, "-271821-04-20T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(at(seconds)), text);
        }
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for seconds in (-62_135_596_800..253_402_300_800).step_by(86_400 * 97 + 1) {
            let (text, expanded) = (rfc3339(at(seconds)), expanded(nanos_since_epoch(at(seconds))));
            assert_eq!(expanded, format!("+00{text}"), "{seconds}");
        }
    }
}
