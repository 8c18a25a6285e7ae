use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{AUTHORIZATION, Entry, ORIGIN, RETRY_AFTER, VARY},
};
use jiff::{Timestamp, fmt::rfc2822::DateTimePrinter};

use super::rate_limit_report::Policy;
use crate::{
    auth::RateLimitStatus,
    rate_limit::{Algorithm, Decision, Quota, RateLimits},
    record::{ExpiresAt, Retirement},
};

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const DEPRECATION: HeaderName = HeaderName::from_static("deprecation");
const SUNSET: HeaderName = HeaderName::from_static("sunset");
const X_API_KEY_EXPIRES: HeaderName = HeaderName::from_static("x-api-key-expires");
const X_RATE_LIMIT_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const X_RATE_LIMIT_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const X_RATE_LIMIT_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// The largest integer in a structured field (RFC 9651 §3.3.1).
const MAX_INTEGER: u64 = 999_999_999_999_999;

/// Which headers report a key's remaining quota.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RateLimitHeaders {
    /// `RateLimit-Policy` and `RateLimit` of draft-ietf-httpapi-ratelimit-headers-10. The default:
    /// they name every quota and are becoming the standard.
    #[default]
    Standard,
    /// `X-RateLimit-Limit`, `-Remaining` and `-Reset` (Unix seconds), for the quota with the least
    /// left. Most clients know these, but seven implementations disagree on `Reset`.
    Legacy,
    /// Both.
    Both,
    /// None. `Retry-After` is still sent.
    Off,
}

impl RateLimitHeaders {
    pub(in crate::layer) fn write(
        self,
        headers: &mut HeaderMap,
        rate_limit_status: &RateLimitStatus,
        more: &[(Arc<Policy>, Decision)],
        wall: impl FnOnce() -> SystemTime,
    ) {
        if rate_limit_status.limits().is_unlimited() && more.is_empty() {
            return;
        }
        if matches!(self, Self::Standard | Self::Both) {
            write_standard(headers, rate_limit_status, more);
        }
        if matches!(self, Self::Legacy | Self::Both) {
            write_legacy(headers, rate_limit_status, wall());
        }
    }
}

/// `RateLimit-Policy: "minute";q=600;w=60` and `RateLimit: "minute";r=599;t=1`.
///
/// With GCRA, `q` is the burst and `w` the time in which it refills.
fn write_standard(
    headers: &mut HeaderMap,
    rate_limit_status: &RateLimitStatus,
    more: &[(Arc<Policy>, Decision)],
) {
    let own = rate_limit_status.limits().rendered(Rendered::of);
    let own_states = own.map_or(&[][..], |own| &own.states).iter();
    let own_states =
        own_states.zip(rate_limit_status.decisions()).map(|(begin, now)| (begin, *now, true));
    let more_states = more.iter().map(|(policy, now)| (&policy.state, *now, policy.refills));
    let state = state_value(own_states.chain(more_states));
    let policy = match (own.and_then(|own| own.policy.as_ref()), more) {
        (Some(own), []) => Some(own.clone()),
        (own, more) => {
            let items = own.map(HeaderValue::as_bytes).into_iter();
            let items: Vec<_> = items.chain(more.iter().map(|(policy, _)| &*policy.item)).collect();
            HeaderValue::try_from(items.join(AND)).ok()
        }
    };
    if let (Some(policy), Ok(state)) = (policy, HeaderValue::from_maybe_shared(Bytes::from(state)))
    {
        headers.insert(RATE_LIMIT_POLICY, policy);
        headers.insert(RATE_LIMIT, state);
    }
}

/// The parts of the headers that are the same in every response for given limits.
struct Rendered {
    policy: Option<HeaderValue>,
    /// The beginning of each quota's item in `RateLimit`.
    states: Box<[Bytes]>,
}

impl Rendered {
    fn of(limits: &RateLimits) -> Self {
        let items: Vec<_> = limits.iter().map(policy_item).collect();
        let policy = HeaderValue::try_from(items.join(AND)).ok();
        let states = limits.iter().map(|quota| state_begin(quota.name())).collect();
        Self { policy: policy.filter(|policy| !policy.is_empty()), states }
    }
}

/// A quota's item in `RateLimit-Policy`.
pub(in crate::layer) fn policy_item(quota: &Quota) -> Bytes {
    let window = match quota.algorithm() {
        Algorithm::SlidingWindow => quota.window(),
        // The time in which the whole burst refills.
        _ => quota.refill_time(),
    };
    let (name, most, window) = (quota.name(), quota.burst_size(), ceil_secs(window).max(1));
    format!("\"{name}\";q={most};w={}", window.min(MAX_INTEGER)).into()
}

/// A policy's item in `RateLimit`, up to the number. Names have no characters to escape.
pub(in crate::layer) fn state_begin(name: &str) -> Bytes {
    format!("\"{name}\";r=").into()
}

/// The `RateLimit` list (RFC 9651 §3.1). An item is the beginning of a quota's text, its state, and
/// whether it refills. The exact capacity lets the buffer become the header without a copy.
fn state_value<'a>(items: impl Iterator<Item = (&'a Bytes, Decision, bool)> + Clone) -> Vec<u8> {
    let wait = |decision: Decision| ceil_secs(decision.next_unit_in()).min(MAX_INTEGER);
    let digits = |number: u64| number.checked_ilog10().unwrap_or_default() as usize + 1;
    let room = |(begin, decision, refills): (&Bytes, Decision, bool)| {
        let refill = if refills { REFILL.len() + digits(wait(decision)) } else { 0 };
        AND.len() + begin.len() + digits(decision.remaining().into()) + refill
    };
    let room = items.clone().map(room).sum::<usize>().saturating_sub(AND.len());
    let mut text = Vec::with_capacity(room);
    let mut itoa = itoa::Buffer::new();
    for (begin, decision, refills) in items {
        if !text.is_empty() {
            text.extend_from_slice(AND);
        }
        text.extend_from_slice(begin);
        text.extend_from_slice(itoa.format(decision.remaining()).as_bytes());
        if refills {
            text.extend_from_slice(REFILL);
            text.extend_from_slice(itoa.format(wait(decision)).as_bytes());
        }
    }
    text
}

const AND: &[u8] = b", ";
const REFILL: &[u8] = b";t=";

fn write_legacy(headers: &mut HeaderMap, rate_limit_status: &RateLimitStatus, now: SystemTime) {
    let tightest = rate_limit_status.iter().min_by_key(|(_, decision)| {
        (decision.remaining(), std::cmp::Reverse(decision.next_unit_in()))
    });
    let Some((quota, decision)) = tightest else { return };
    let reset = now.checked_add(decision.next_unit_in()).unwrap_or(now);
    let reset = reset.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    headers.insert(X_RATE_LIMIT_LIMIT, HeaderValue::from(quota.burst_size().get()));
    headers.insert(X_RATE_LIMIT_REMAINING, HeaderValue::from(decision.remaining()));
    headers.insert(X_RATE_LIMIT_RESET, HeaderValue::from(ceil_secs(reset)));
}

/// Adds a key's `Deprecation: @1767225600` (RFC 9745) and
/// `Sunset: Thu, 01 Jan 2026 00:00:00 GMT` (RFC 8594), unless the response has its own.
pub(in crate::layer) fn write_retirement(headers: &mut HeaderMap, retirement: Retirement) {
    if let Ok(since) = Timestamp::try_from(retirement.since)
        && let Ok(value) = HeaderValue::try_from(format!("@{}", since.as_second()))
    {
        headers.entry(DEPRECATION).or_insert(value);
    }
    if let Some(value) = retirement.ends_at.and_then(http_date)
        && let Ok(value) = HeaderValue::try_from(value)
    {
        headers.entry(SUNSET).or_insert(value);
    }
}

/// Adds `X-Api-Key-Expires: Thu, 01 Jan 2026 00:00:00 GMT`, unless the response has its own.
pub(in crate::layer) fn write_expiry(headers: &mut HeaderMap, expiry: &ExpiresAt) {
    let date = expiry.text(|at| http_date(at).unwrap_or_default());
    if !date.is_empty()
        && let Ok(value) = HeaderValue::try_from(date)
    {
        headers.entry(X_API_KEY_EXPIRES).or_insert(value);
    }
}

/// The HTTP date (RFC 9110 §5.6.7) of `at`.
fn http_date(at: SystemTime) -> Option<String> {
    let at = Timestamp::try_from(at).ok()?;
    DateTimePrinter::new().timestamp_to_rfc9110_string(&at).ok()
}

/// `Retry-After` in whole seconds, never 0, which clients take for "at once".
pub(crate) fn retry_after(wait: Duration) -> (HeaderName, HeaderValue) {
    (RETRY_AFTER, HeaderValue::from(ceil_secs(wait).clamp(1, MAX_INTEGER)))
}

#[expect(clippy::disallowed_methods, reason = "rounds up, here for all")]
pub(super) fn ceil_secs(duration: Duration) -> u64 {
    duration.as_secs().saturating_add(u64::from(duration.subsec_nanos() > 0))
}

/// Adds `name` to `Vary`, unless `Vary` has it already or is `*`.
pub(in crate::layer) fn vary_by(headers: &mut HeaderMap, name: &HeaderName) {
    let value = || match *name {
        AUTHORIZATION => HeaderValue::from_static("Authorization"),
        ORIGIN => HeaderValue::from_static("Origin"),
        _ => HeaderValue::from(name.clone()),
    };
    let lists = |value: &HeaderValue| {
        value.as_bytes().split(|&byte| byte == b',').any(|listed| {
            let listed = listed.trim_ascii();
            listed == b"*" || listed.eq_ignore_ascii_case(name.as_str().as_bytes())
        })
    };
    match headers.entry(VARY) {
        Entry::Vacant(vary) => {
            vary.insert(value());
        }
        Entry::Occupied(vary) if vary.iter().any(lists) => {}
        Entry::Occupied(mut vary) => vary.append(value()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_rounded_up_and_waits_never_0() {
        let retry = |millis| retry_after(Duration::from_millis(millis)).1;
        assert_eq!(retry(0), "1");
        assert_eq!(retry(1), "1");
        assert_eq!(retry(1000), "1");
        assert_eq!(retry(1001), "2");
        assert_eq!(retry_after(Duration::MAX).1, "999999999999999");
    }

    #[test]
    fn the_state_fits_its_buffer_exactly() {
        let second = Duration::from_secs(1);
        let begin = state_begin("a");
        let items = |states: &[(u32, u32, bool)]| {
            let states = states.iter().map(|(left, wait, refills)| {
                (&begin, Decision::admit(*left, second * *wait), *refills)
            });
            state_value(states.collect::<Vec<_>>().into_iter())
        };
        for (states, expected) in [
            (vec![(0, 0, false)], r#""a";r=0"#),
            (vec![(9, 1, true)], r#""a";r=9;t=1"#),
            (vec![(10, 99, true), (1000, 100, true)], r#""a";r=10;t=99, "a";r=1000;t=100"#),
            (
                vec![(7, 5, false), (7, 60, true), (0, 3600, true)],
                r#""a";r=7, "a";r=7;t=60, "a";r=0;t=3600"#,
            ),
        ] {
            let text = items(&states);
            assert_eq!(text, expected.as_bytes());
            assert_eq!(text.capacity(), text.len(), "{expected}");
        }
    }

    #[test]
    fn vary_is_added_once() {
        let vary = |present: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in present {
                headers.append(VARY, HeaderValue::from_static(value));
            }
            vary_by(&mut headers, &AUTHORIZATION);
            headers
                .get_all(VARY)
                .iter()
                .filter_map(|v| v.to_str().ok())
                .collect::<Vec<_>>()
                .join("|")
        };
        assert_eq!(vary(&[]), "Authorization");
        assert_eq!(vary(&["origin"]), "origin|Authorization");
        assert_eq!(vary(&["Origin, AUTHORIZATION"]), "Origin, AUTHORIZATION");
        assert_eq!(vary(&["accept", "*"]), "accept|*");
    }
}
