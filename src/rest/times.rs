//! Instants and durations in JSON.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;

use crate::manage::Expiry;
pub(super) use crate::record::rfc3339 as write;

/// Parses an RFC 3339 date and time. `jiff` alone accepts more formats.
pub(super) fn read(text: &str) -> Option<SystemTime> {
    let looks_so = text.len() >= "2026-01-01T00:00:00Z".len()
        && text.as_bytes().get(10).is_some_and(|byte| byte.eq_ignore_ascii_case(&b't'))
        && !text.contains('[');
    let at = text.parse::<Timestamp>().ok().filter(|_| looks_so)?;
    SystemTime::try_from(at).ok()
}

/// A number and a unit: `90s`, `15m`, `12h`, `30d`, `2w`. A day is 24 hours, a week 7 days.
pub(super) fn read_duration(text: &str) -> Option<Duration> {
    let unit = match text.chars().next_back()? {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        'w' => 7 * 86_400,
        _ => return None,
    };
    let number = text.get(..text.len() - 1)?;
    let is_number = (1..=9).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit());
    let number: u64 = number.parse().ok().filter(|_| is_number)?;
    Some(Duration::from_secs(number.checked_mul(unit)?))
}

/// `never`, an instant or a duration.
pub(super) fn read_expiry(text: &str) -> Option<Expiry> {
    if text == "never" {
        return Some(Expiry::Never);
    }
    read_duration(text).map(Expiry::In).or_else(|| read(text).map(Expiry::At))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expiry_is_never_an_instant_or_a_duration() {
        assert_eq!(read_expiry("never"), Some(Expiry::Never));
        assert_eq!(read_expiry("30d"), Some(Expiry::In(Duration::from_secs(2_592_000))));
        assert_eq!(read_expiry("0s"), Some(Expiry::In(Duration::ZERO)));
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(86_400);
        for text in ["1970-01-02T00:00:00Z", "1970-01-02t01:00:00+01:00"] {
            assert_eq!(read_expiry(text), Some(Expiry::At(at)), "{text}");
        }
        for text in [
            "",
            "Never",
            "30",
            "d",
            "-1d",
            "+1d",
            "1.5h",
            "30 d",
            "1h30m",
            "1y",
            "30ä",
            "9999999999w",
            "1970-01-02",
            "1970-01-02 00:00:00Z",
            "1970-01-02T00:00:00",
            "1970-01-02T00:00:00+01:00[Europe/Paris]",
        ] {
            assert_eq!(read_expiry(text), None, "{text}");
        }
    }
}
