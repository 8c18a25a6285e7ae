//! Rate limits as other systems have them: `1000/hour`, `1000 per hour`, or a number and a window.

use std::time::Duration;

use serde_json::Value;
use tower_api_key::rate_limit::{Quota, RateLimits};

use super::{
    super::values::{self, Limit},
    report::Problem,
    row::Row,
};

const FIELD: &str = "rate_limits";
const ADVICE: &str = "must be \"1000/hour\", \"1000 per hour\" or \"unlimited\", a list such as \
    [\"600/min\"], or a number with `rate_limit_window` (\"hour\", or seconds), \
    `rate_limit_window_ms` or --rate-limit-window";

/// The time in which a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window(Duration);

impl Window {
    /// A unit of time, or several of them: `hour`, `10 minutes`, `90s`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let advice = "write a window as second, minute, hour, day, week, or as 90s or 10 minutes";
        let text = text.trim().to_ascii_lowercase();
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (count, unit) = text.split_at(digits);
        let count = if count.is_empty() { Ok(1) } else { count.parse::<u64>() };
        let unit = match unit.trim() {
            "ms" | "millisecond" | "milliseconds" => Duration::from_millis(1),
            "s" | "sec" | "second" | "seconds" => Duration::from_secs(1),
            "m" | "min" | "minute" | "minutes" => Duration::from_secs(60),
            "h" | "hr" | "hour" | "hours" => Duration::from_secs(3_600),
            "d" | "day" | "days" => Duration::from_secs(86_400),
            "w" | "week" | "weeks" => Duration::from_secs(7 * 86_400),
            _ => return Err(advice.into()),
        };
        let window = u32::try_from(count.map_err(|_| advice)?).ok();
        let window = window.and_then(|count| unit.checked_mul(count));
        window.filter(|window| !window.is_zero()).map(Self).ok_or_else(|| advice.into())
    }

    /// `limit` requests per window.
    fn quota(self, limit: u64) -> Result<Quota, String> {
        let limit = u32::try_from(limit).map_err(|_| "a limit is at most 4294967295")?;
        let quota = Quota::per(limit, self.0).and_then(|quota| quota.named(self.name()));
        quota.map_err(|error| error.to_string())
    }

    /// The names that limits have on the command line.
    fn name(self) -> String {
        match self.0.as_millis() {
            1_000 => "second".into(),
            60_000 => "minute".into(),
            3_600_000 => "hour".into(),
            86_400_000 => "day".into(),
            millis if millis % 1000 == 0 => format!("{}s", millis / 1000),
            millis => format!("{millis}ms"),
        }
    }
}

/// The limits of a row. A number has the window of its row, or else `window`.
pub(super) fn of(row: &Row, window: Option<Window>) -> Result<Option<RateLimits>, Problem> {
    let window = match window_of(row)? {
        Some(window) => Some(window),
        None => window,
    };
    let Some(value) = row.get(FIELD) else { return Ok(None) };
    limits(value, window).map(Some).map_err(|problem| Problem::new(FIELD, problem))
}

fn window_of(row: &Row) -> Result<Option<Window>, Problem> {
    for (field, unit) in [("rate_limit_window", "s"), ("rate_limit_window_ms", "ms")] {
        let Some(value) = row.get(field) else { continue };
        return window(value, unit).map(Some).map_err(|problem| Problem::new(field, problem));
    }
    Ok(None)
}

/// A window; a number counts `unit`s.
fn window(value: &Value, unit: &str) -> Result<Window, String> {
    let text = match value {
        Value::String(text) => text.trim().to_owned(),
        value => value.to_string(),
    };
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    Window::parse(&if is_number { text + unit } else { text })
}

fn limits(value: &Value, window_of_row: Option<Window>) -> Result<RateLimits, String> {
    match value {
        Value::String(text) => one(limit(text, window_of_row)?),
        Value::Number(number) => one(counted(number.as_u64().ok_or(ADVICE)?, window_of_row)?),
        Value::Object(object) => {
            let limit = object.get("limit").and_then(Value::as_u64).ok_or(ADVICE)?;
            let window = object.get("window").ok_or(ADVICE)?;
            one(counted(limit, Some(self::window(window, "s")?))?)
        }
        Value::Array(list) if list.iter().all(Value::is_string) => {
            let texts = list.iter().filter_map(Value::as_str);
            let limits: Result<Vec<_>, _> = texts.map(|text| limit(text, window_of_row)).collect();
            values::limits(&limits?)
        }
        Value::Array(list) if list.len() > RateLimits::MAX_QUOTAS => {
            Err("a key has at most 8 quotas".into())
        }
        // As printed by `show --json`.
        Value::Array(_) => serde_json::from_value(value.clone())
            .map_err(|_| ADVICE.into())
            .and_then(values::bounded),
        _ => Err(ADVICE.into()),
    }
}

fn one(limit: Limit) -> Result<RateLimits, String> {
    values::limits(&[limit])
}

fn counted(limit: u64, window: Option<Window>) -> Result<Limit, String> {
    window.ok_or(ADVICE)?.quota(limit).map(Limit::Quota)
}

/// A limit as on the command line, in words, or as a number.
fn limit(text: &str, window: Option<Window>) -> Result<Limit, String> {
    let text = text.trim();
    if let Ok(limit) = text.parse() {
        return counted(limit, window);
    }
    if let Ok(limit) = values::limit(text) {
        return Ok(limit);
    }
    let text = text.to_ascii_lowercase();
    let digits = text.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b',').count();
    let (limit, rest) = text.split_at(digits);
    let limit = limit.replace(',', "").parse().map_err(|_| ADVICE)?;
    let mut words = rest.trim().trim_start_matches("requests").trim();
    for before in ["per ", "every ", "in ", "an ", "a ", "/"] {
        words = words.strip_prefix(before).unwrap_or(words).trim();
    }
    counted(limit, Some(Window::parse(words).map_err(|_| ADVICE)?))
}
