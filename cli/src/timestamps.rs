//! Times as other systems print them: databases, JSON, and numbers since 1970.

use std::time::{Duration, SystemTime};

use serde_json::Value;
use tower_api_key::manage::Expiry;

use super::values;

/// A time in the past, or a duration ago.
pub(crate) fn past(value: &Value) -> Result<SystemTime, String> {
    match text(value)? {
        Text::At(at) => Ok(at),
        Text::Other(text) => values::past(text),
    }
}

/// A time in the future, or a duration from now.
pub(crate) fn future(value: &Value) -> Result<SystemTime, String> {
    match text(value)? {
        Text::At(at) => Ok(at),
        Text::Other(text) => values::future(text),
    }
}

/// When a key ends. `infinity`, as PostgreSQL prints it, is never.
pub(crate) fn expiry(value: &Value) -> Result<Expiry, String> {
    match text(value)? {
        Text::At(at) => Ok(Expiry::At(at)),
        Text::Other("infinity") => Ok(Expiry::Never),
        Text::Other(text) => values::new_expiry(text),
    }
}

enum Text<'v> {
    At(SystemTime),
    /// Not a time of a database. It may be a date or a duration.
    Other(&'v str),
}

fn text(value: &Value) -> Result<Text<'_>, String> {
    match value {
        Value::Number(number) => {
            let at = number.as_f64().and_then(since_1970);
            at.map(Text::At).ok_or_else(|| OUT_OF_RANGE.into())
        }
        Value::String(text) => Ok(printed(text.trim()).map_or(Text::Other(text), Text::At)),
        _ => Err("must be a time as a string, such as \"2026-12-31\", or a number".into()),
    }
}

const OUT_OF_RANGE: &str = "a number counts seconds, milliseconds or microseconds since 1970";

/// `2026-01-02 03:04:05.678+00`, `2026-01-02 03:04:05 UTC`, `1767323045`.
fn printed(text: &str) -> Option<SystemTime> {
    if let Ok(at) = values::instant(text) {
        return Some(at);
    }
    if let Some(at) = text.parse().ok().and_then(since_1970) {
        return Some(at);
    }
    let text = text.strip_suffix(" UTC").map_or_else(|| text.to_owned(), |text| format!("{text}Z"));
    values::instant(&text).ok()
}

/// Seconds from 1973 to 5138, or as many milliseconds or microseconds. Smaller numbers are mistakes.
fn since_1970(number: f64) -> Option<SystemTime> {
    let seconds = match number {
        1e8..1e11 => number,
        1e11..1e14 => number / 1e3,
        1e14..1e17 => number / 1e6,
        _ => return None,
    };
    // A float holds the microseconds of this century.
    let since = Duration::try_from_secs_f64(seconds).ok()?;
    let micros = u64::try_from(since.as_nanos().div_ceil(500) / 2).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_micros(micros))
}
