//! Log macros that call `tracing` if the feature is enabled and do nothing otherwise, so that
//! callers need no `#[cfg]`.

use std::{
    error::Error,
    fmt::Display,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

#[cfg(feature = "tracing")]
use tracing::{Level, field::display, level_filters::LevelFilter};
#[cfg(feature = "tracing")]
pub(crate) use tracing::{Span, debug, field::Empty, info, info_span, warn};

#[cfg(not(feature = "tracing"))]
macro_rules! nothing {
    ($($field:tt)*) => {};
}

#[cfg(not(feature = "tracing"))]
pub(crate) use {nothing as debug, nothing as info, nothing as warn};

/// Whether a warning would be logged.
#[cfg(feature = "tracing")]
pub(crate) fn is_warn_enabled() -> bool {
    tracing::enabled!(Level::WARN)
}

/// Whether there may be spans to record fields on. Without a subscriber this is all that fields cost.
#[cfg(feature = "tracing")]
#[inline]
pub(crate) fn has_spans() -> bool {
    LevelFilter::current() != LevelFilter::OFF
}

/// Records fields of the current span, as far as the span declares them.
#[cfg(feature = "tracing")]
#[cold]
pub(crate) fn record(fields: &[(&'static str, &dyn Display)]) {
    let span = Span::current();
    for (field, value) in fields {
        span.record(*field, display(value));
    }
}

#[cfg(not(feature = "tracing"))]
pub(crate) const fn is_warn_enabled() -> bool {
    false
}

#[cfg(not(feature = "tracing"))]
pub(crate) const fn has_spans() -> bool {
    false
}

#[cfg(not(feature = "tracing"))]
pub(crate) fn record(_: &[(&'static str, &dyn Display)]) {}

/// Limits how often an error is logged: at once, then once a minute while it lasts, with the number
/// of repetitions in between. Errors with different texts are counted separately.
#[derive(Debug, Default)]
pub(crate) struct ErrorLog {
    states: Mutex<Vec<State>>,
}

#[derive(Debug)]
struct State {
    cause: u64,
    logged_at: Duration,
    since: u64,
}

const AGAIN_AFTER: Duration = Duration::from_secs(60);
/// How many causes are tracked. While none of them is a minute old, a further cause is not logged,
/// which limits the lines per minute.
const MAX_STATES: usize = 16;

impl ErrorLog {
    /// Logs `error` and what caused it as a warning, unless that was done a short while ago. `now`
    /// is the time of a monotonic clock.
    pub(crate) fn warn(&self, message: &'static str, error: &(dyn Error + 'static), now: Duration) {
        self.warn_from(message, error, None, now);
    }

    /// As [`warn`](Self::warn), with the address of a client, which does not make it another error.
    pub(crate) fn warn_from(
        &self,
        message: &'static str,
        error: &(dyn Error + 'static),
        address: Option<IpAddr>,
        now: Duration,
    ) {
        let error = chain(error);
        if let Some(repeated) = self.due(&error, now) {
            let address = address.map(|address| address.to_string());
            warn!(error, address, repeated, "{message}");
            let _ = (address, repeated);
        }
        let _ = message;
    }

    /// How many repetitions were not logged since the last line; `None` if it is too early to log.
    fn due(&self, error: &str, now: Duration) -> Option<u64> {
        let mut hasher = DefaultHasher::new();
        error.hash(&mut hasher);
        let cause = hasher.finish();
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let is_old = |state: &State| now.saturating_sub(state.logged_at) >= AGAIN_AFTER;
        if let Some(state) = states.iter_mut().find(|state| state.cause == cause) {
            if !is_old(state) {
                state.since += 1;
                return None;
            }
            state.logged_at = now;
            return Some(std::mem::take(&mut state.since));
        }
        if states.len() >= MAX_STATES {
            states.retain(|state| !is_old(state));
        }
        if states.len() >= MAX_STATES {
            return None;
        }
        states.push(State { cause, logged_at: now, since: 0 });
        Some(0)
    }
}

/// An error and its sources, in one line.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let said = error.to_string();
        // Some errors repeat their source.
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn an_error_is_logged_when_it_begins_and_then_once_a_minute() {
        let log = ErrorLog::default();
        let mut now = 9 * SECOND;
        assert_eq!(log.due("denied", now), Some(0));
        for _ in 0..59 {
            now += SECOND;
            assert_eq!(log.due("denied", now), None);
        }
        assert_eq!(log.due("gone", now), Some(0), "another error has a line of its own");
        now += SECOND;
        assert_eq!(log.due("denied", now), Some(59));
        assert_eq!(log.due("denied", now), None);
    }

    #[test]
    fn ever_new_errors_fill_neither_the_log_nor_the_memory() {
        let log = ErrorLog::default();
        let lines = |now| (0..1000).filter(|n| log.due(&n.to_string(), now).is_some()).count();
        assert_eq!(lines(SECOND), MAX_STATES);
        assert_eq!(lines(2 * SECOND), 0);
        assert_eq!(lines(61 * SECOND), MAX_STATES);
    }
}
