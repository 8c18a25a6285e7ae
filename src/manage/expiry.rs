use std::{error::Error, fmt, str::FromStr, time::Duration};

use super::Expiry;
use crate::record::read_rfc3339;

/// `never`, an RFC 3339 date and time, or a duration: a number and a unit, as in `90s`, `15m`,
/// `12h`, `30d` or `2w`. A day is 24 hours, a week 7 days.
///
/// ```
/// use std::time::Duration;
/// use tower_api_key::manage::Expiry;
///
/// assert_eq!("never".parse(), Ok(Expiry::Never));
/// assert_eq!("12h".parse(), Ok(Expiry::In(Duration::from_secs(43_200))));
/// assert!("2036-12-31T12:00:00Z".parse::<Expiry>().is_ok());
/// ```
impl FromStr for Expiry {
    type Err = InvalidExpiry;

    fn from_str(text: &str) -> Result<Self, InvalidExpiry> {
        if text == "never" {
            return Ok(Self::Never);
        }
        let duration = read_duration(text).map(Self::In);
        duration.or_else(|| read_rfc3339(text).map(Self::At)).ok_or(InvalidExpiry)
    }
}

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

/// The text is not an [`Expiry`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InvalidExpiry;

impl fmt::Display for InvalidExpiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "must be \"never\", an RFC 3339 date and time, or a duration: a number and s, m, h, d \
             or w, such as \"30d\"",
        )
    }
}

impl Error for InvalidExpiry {}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn an_expiry_is_never_an_instant_or_a_duration() {
        assert_eq!("never".parse(), Ok(Expiry::Never));
        assert_eq!("30d".parse(), Ok(Expiry::In(Duration::from_secs(2_592_000))));
        assert_eq!("0s".parse(), Ok(Expiry::In(Duration::ZERO)));
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(86_400);
        for text in ["1970-01-02T00:00:00Z", "1970-01-02t01:00:00+01:00"] {
            assert_eq!(text.parse(), Ok(Expiry::At(at)), "{text}");
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
            assert_eq!(text.parse::<Expiry>(), Err(InvalidExpiry), "{text}");
        }
    }
}
