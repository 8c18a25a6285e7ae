//! Parsers of option values: times, limits, states and the like.

use std::time::{Duration, SystemTime};

use jiff::{Timestamp, civil};
use tower_api_key::{
    clock::{Clock as _, SystemClock},
    key::KeyFormat,
    manage::Expiry,
    rate_limit::{Algorithm, InvalidQuota, Quota, RateLimits},
    record::{Metadata, Scope, TextRule},
};

const TIMES: &str = "write a duration as 30d, 12h or 2w, a date as 2026-12-31 or \
    2026-12-31T12:00Z (UTC)";

pub(crate) fn now() -> SystemTime {
    SystemClock::new().now()
}

/// The durations of [`Expiry`], as over HTTP.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    match text.trim().parse() {
        Ok(Expiry::In(duration)) => Ok(duration),
        _ => {
            Err("write a duration as a number and s, m, h, d or w, such as 30d or 12h; a day has \
            24 hours"
                .into())
        }
    }
}

pub(crate) fn instant(text: &str) -> Result<SystemTime, String> {
    let text = text.trim();
    if let Ok(at) = text.parse::<Timestamp>() {
        return SystemTime::try_from(at).map_err(|_| format!("not a valid time; {TIMES}"));
    }
    // A `Timestamp` cannot hold the last day of the year 9999.
    let in_utc = text.strip_suffix(['Z', 'z']).filter(|_| has_zone(text)).unwrap_or(text);
    if has_zone(in_utc) {
        return Err(format!("not a time; {TIMES}"));
    }
    let at = in_utc.parse::<civil::DateTime>().ok().and_then(system_time);
    at.ok_or_else(|| format!("not a valid time; {TIMES}"))
}

pub(crate) const EPOCH: civil::DateTime = civil::DateTime::constant(1970, 1, 1, 0, 0, 0, 0);

/// The instant of a date and time in UTC.
fn system_time(at: civil::DateTime) -> Option<SystemTime> {
    let distance = at.duration_since(EPOCH);
    if distance.is_negative() {
        SystemTime::UNIX_EPOCH.checked_sub(distance.unsigned_abs())
    } else {
        SystemTime::UNIX_EPOCH.checked_add(distance.unsigned_abs())
    }
}

/// Whether an offset or a zone name follows the time. The `-` of the date does not count.
fn has_zone(text: &str) -> bool {
    let time = text.split_once(['T', 't', ' ']).map_or("", |(_, time)| time);
    time.contains(['+', '-', 'Z', 'z', '['])
}

pub(crate) fn expiry(text: &str) -> Result<Expiry, String> {
    if text.trim() == "never" {
        return Ok(Expiry::Never);
    }
    moment(text, Expiry::At, Expiry::In)
        .map_err(|problem| format!("{problem}; or write \"never\" for a key without an expiry"))
}

/// The expiry of a new key, whose lifetime must not be zero.
pub(crate) fn new_expiry(text: &str) -> Result<Expiry, String> {
    match expiry(text)? {
        Expiry::In(lifetime) if lifetime.is_zero() => {
            Err("a new key must have a lifetime longer than zero, such as 30d".into())
        }
        expiry => Ok(expiry),
    }
}

/// A date, or a duration from now.
pub(crate) fn future(text: &str) -> Result<SystemTime, String> {
    moment(text, Some, |ahead| now().checked_add(ahead))?.ok_or_else(|| "too far ahead".into())
}

/// A date, or a duration ago.
pub(crate) fn past(text: &str) -> Result<SystemTime, String> {
    moment(text, Some, |ago| now().checked_sub(ago))?.ok_or_else(|| "too long ago".into())
}

fn moment<T>(
    text: &str,
    at: impl FnOnce(SystemTime) -> T,
    within: impl FnOnce(Duration) -> T,
) -> Result<T, String> {
    match (instant(text), duration(text)) {
        (Ok(instant), _) => Ok(at(instant)),
        (_, Ok(duration)) => Ok(within(duration)),
        // Dates begin with a year.
        (Err(problem), _) if text.contains('-') => Err(problem),
        _ => Err(format!("not a time; {TIMES}")),
    }
}

/// One scope. Where several can be given, a comma separates them, so no scope has one.
pub(crate) fn scope(text: &str) -> Result<Scope, String> {
    if text.contains(',') {
        return Err("give one scope, without a comma".into());
    }
    text.parse::<Scope>().map_err(|error| error.to_string())
}

/// A value of `--rate-limit`: a quota, or no limit.
#[derive(Clone, Debug)]
pub(crate) enum Limit {
    Quota(Quota),
    Unlimited,
}

const LIMITS: &str = "write a limit as 600/min, 10/s or 1000/day; options follow a colon: \
    600/min:20 for a burst of 20, 1000/day:sliding or 1000/day:strict for never more in any day, \
    1000/day:sliding,per-consumer,name=team for all keys of a consumer together, with a name; or \
    \"unlimited\"";

pub(crate) fn limit(text: &str) -> Result<Limit, String> {
    let text = text.trim();
    if text == "unlimited" {
        return Ok(Limit::Unlimited);
    }
    quota(text).map(Limit::Quota)
}

/// `COUNT/UNIT`, then after colons, commas or spaces: a burst, `sliding`, `strict`, `per-consumer`
/// and `name=NAME`.
fn quota(text: &str) -> Result<Quota, String> {
    let (count, rest) = text.split_once('/').ok_or(LIMITS)?;
    let mut words = rest.split([':', ',', ' ']).filter(|word| !word.is_empty());
    let (name, window) = match words.next() {
        Some("s" | "sec" | "second") => ("second", 1),
        Some("m" | "min" | "minute") => ("minute", 60),
        Some("h" | "hour") => ("hour", 3_600),
        Some("d" | "day") => ("day", 86_400),
        _ => return Err(LIMITS.into()),
    };
    let words: Vec<_> = words.collect();
    let new = match (words.contains(&"sliding"), words.contains(&"strict")) {
        (true, true) => return Err(format!("a limit is sliding or strict, not both; {LIMITS}")),
        (true, false) => Quota::sliding,
        (false, true) => Quota::at_most,
        (false, false) => Quota::per,
    };
    let refused = |error| format!("{error}; {LIMITS}");
    let count = count.trim().parse().map_err(|_| LIMITS)?;
    let quota = new(count, Duration::from_secs(window)).and_then(|quota| quota.named(name));
    words.into_iter().try_fold(quota.map_err(refused)?, |quota, word| match word {
        "sliding" | "strict" => Ok(quota),
        "per-consumer" => Ok(quota.per_consumer()),
        word => match (word.strip_prefix("name="), word.parse()) {
            (Some(name), _) => quota.named(name).map_err(refused),
            (None, Ok(burst)) => quota.burst(burst).map_err(refused),
            (None, Err(_)) => Err(LIMITS.into()),
        },
    })
}

/// The limits of one key, combined.
pub(crate) fn limits(limits: &[Limit]) -> Result<RateLimits, String> {
    let quotas: Vec<_> = limits
        .iter()
        .filter_map(|limit| match limit {
            Limit::Quota(quota) => Some(quota.clone()),
            Limit::Unlimited => None,
        })
        .collect();
    if quotas.len() != limits.len() && limits.len() > 1 {
        return Err("\"unlimited\" excludes other limits".into());
    }
    let twice = "two limits have the same window: give one per window, such as 10/s and 1000/day, \
        or different names, such as 60/min and 600/min:per-consumer,name=team";
    let limits = RateLimits::new(quotas).map_err(|error| match error {
        InvalidQuota::TooMany => error.to_string(),
        _ => twice.into(),
    });
    limits.and_then(bounded)
}

/// Rejects quotas that take longer than 400 days to refill: their state is kept in memory for that
/// long.
pub(crate) fn bounded(limits: RateLimits) -> Result<RateLimits, String> {
    const MOST: Duration = Duration::from_secs(400 * 86_400);
    let refills = |quota: &Quota| {
        quota.algorithm() == Algorithm::SlidingWindow || quota.refill_time() <= MOST
    };
    if limits.iter().any(|quota| quota.window() > MOST || !refills(quota)) {
        return Err(
            "a window, and the time in which a burst refills, must be at most 400 days".into()
        );
    }
    Ok(limits)
}

pub(crate) fn metadata(text: &str) -> Result<Metadata, String> {
    Metadata::from_json(text)
        .map_err(|error| format!("{error}; write it as '{{\"plan\":\"pro\"}}'"))
}

pub(crate) fn format(prefix: &str) -> Result<KeyFormat, String> {
    KeyFormat::new(prefix).map_err(|error| error.to_string())
}

/// A prefix, with or without the `_` at its end.
pub(crate) fn prefix(text: &str) -> Result<KeyFormat, String> {
    if text.ends_with('_') { format(text) } else { format(&format!("{text}_")) }
}

/// A text for the audit.
pub(crate) fn text(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("must not be empty".into());
    }
    TextRule::STORED.check(text)?;
    Ok(text.to_owned())
}
