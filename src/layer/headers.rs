use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{RETRY_AFTER, VARY},
};
use jiff::{Timestamp, fmt::rfc2822::DateTimePrinter};
use smallvec::SmallVec;

use super::limits::Policy;
use crate::{
    auth::Standing,
    rate_limit::{Algorithm, Decision, Quota, RateLimits},
    record::Retirement,
};

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const DEPRECATION: HeaderName = HeaderName::from_static("deprecation");
const SUNSET: HeaderName = HeaderName::from_static("sunset");
const X_RATE_LIMIT_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const X_RATE_LIMIT_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const X_RATE_LIMIT_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// The most a structured field's integer can be (RFC 9651 §3.3.1).
const MAX_INTEGER: u64 = 999_999_999_999_999;

/// Which headers tell a client where it stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RateLimitHeaders {
    /// `RateLimit-Policy` and `RateLimit` of draft-ietf-httpapi-ratelimit-headers-10. The default:
    /// they name every quota and are on their way to become the standard.
    #[default]
    Standard,
    /// `X-RateLimit-Limit`, `-Remaining` and `-Reset` (Unix seconds), of the quota with the least
    /// left. What most clients know; seven implementations disagree on `Reset`.
    Legacy,
    /// Both.
    Both,
    /// None. `Retry-After` is still sent.
    Off,
}

impl RateLimitHeaders {
    pub(super) fn write(
        self,
        headers: &mut HeaderMap,
        standing: &Standing,
        more: &[(Policy, Decision)],
        wall: impl FnOnce() -> SystemTime,
    ) {
        if standing.limits().is_unlimited() && more.is_empty() {
            return;
        }
        if matches!(self, Self::Standard | Self::Both) {
            write_standard(headers, standing, more);
        }
        if matches!(self, Self::Legacy | Self::Both) {
            write_legacy(headers, standing, wall());
        }
    }
}

/// `RateLimit-Policy: "minute";q=600;w=60` and `RateLimit: "minute";r=599;t=1`.
///
/// With GCRA the quota is the burst, and the window the time in which it refills.
fn write_standard(headers: &mut HeaderMap, standing: &Standing, more: &[(Policy, Decision)]) {
    let mut policy = standing.consumer().meter().map(|meter| meter.policy(policy_list));
    let mut state = Text::new();
    for (quota, decision) in standing.iter() {
        state_item(&mut state, quota.name(), decision, true);
    }
    for (Policy { name, item, refills }, decision) in more {
        let own = policy.take().filter(|own| !own.is_empty());
        let joined = own.map(|own| [&*own, b", ", item].concat().into());
        policy = Some(joined.unwrap_or_else(|| item.clone()));
        state_item(&mut state, name, *decision, *refills);
    }
    if let Some(Ok(policy)) = policy.map(HeaderValue::from_maybe_shared)
        && let Ok(state) = HeaderValue::from_bytes(&state)
    {
        headers.insert(RATE_LIMIT_POLICY, policy);
        headers.insert(RATE_LIMIT, state);
    }
}

fn policy_list(limits: &RateLimits) -> Bytes {
    let items: Vec<_> = limits.iter().map(policy_item).collect();
    items.join(&b", "[..]).into()
}

/// What `RateLimit-Policy` says of a quota.
pub(super) fn policy_item(quota: &Quota) -> Bytes {
    let window = match quota.algorithm() {
        Algorithm::SlidingWindow => quota.window(),
        // In which the whole burst comes back.
        _ => quota.refill_time(),
    };
    let mut text = Text::new();
    item_name(&mut text, quota.name());
    parameter(&mut text, b";q=", quota.burst_size().get().into());
    parameter(&mut text, b";w=", ceil_secs(window).max(1));
    Bytes::copy_from_slice(&text)
}

/// Room for the one quota of most keys; more spill onto the heap.
type Text = SmallVec<[u8; 96]>;

/// Adds to a list of items (RFC 9651 §3.1) what `RateLimit` says of a quota.
fn state_item(text: &mut Text, name: &str, decision: Decision, refills: bool) {
    if !text.is_empty() {
        text.extend_from_slice(b", ");
    }
    item_name(text, name);
    parameter(text, b";r=", decision.remaining().into());
    if refills {
        parameter(text, b";t=", ceil_secs(decision.next_unit_in()));
    }
}

/// Names have no characters to escape.
fn item_name(text: &mut Text, name: &str) {
    text.push(b'"');
    text.extend_from_slice(name.as_bytes());
    text.push(b'"');
}

fn parameter(text: &mut Text, name: &[u8], value: u64) {
    text.extend_from_slice(name);
    text.extend_from_slice(itoa::Buffer::new().format(value.min(MAX_INTEGER)).as_bytes());
}

fn write_legacy(headers: &mut HeaderMap, standing: &Standing, now: SystemTime) {
    let tightest = standing.iter().min_by_key(|(_, decision)| {
        (decision.remaining(), std::cmp::Reverse(decision.next_unit_in()))
    });
    let Some((quota, decision)) = tightest else { return };
    let reset = now.checked_add(decision.next_unit_in()).unwrap_or(now);
    let reset = reset.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    headers.insert(X_RATE_LIMIT_LIMIT, HeaderValue::from(quota.burst_size().get()));
    headers.insert(X_RATE_LIMIT_REMAINING, HeaderValue::from(decision.remaining()));
    headers.insert(X_RATE_LIMIT_RESET, HeaderValue::from(ceil_secs(reset)));
}

/// `Deprecation: @1767225600` (RFC 9745) and `Sunset: Thu, 01 Jan 2026 00:00:00 GMT` (RFC 8594) of
/// a key, where the answer has none of its own.
pub(super) fn write_retirement(headers: &mut HeaderMap, retirement: Retirement) {
    if let Ok(since) = Timestamp::try_from(retirement.since)
        && let Ok(value) = HeaderValue::try_from(format!("@{}", since.as_second()))
    {
        headers.entry(DEPRECATION).or_insert(value);
    }
    if let Some(Ok(ends_at)) = retirement.ends_at.map(Timestamp::try_from)
        && let Ok(value) = DateTimePrinter::new().timestamp_to_rfc9110_string(&ends_at)
        && let Ok(value) = HeaderValue::try_from(value)
    {
        headers.entry(SUNSET).or_insert(value);
    }
}

/// `Retry-After`: whole seconds, never 0, which clients take for "at once".
pub(super) fn retry_after(wait: Duration) -> (HeaderName, HeaderValue) {
    (RETRY_AFTER, HeaderValue::from(ceil_secs(wait).clamp(1, MAX_INTEGER)))
}

#[expect(clippy::disallowed_methods, reason = "rounds up, here for all")]
fn ceil_secs(duration: Duration) -> u64 {
    duration.as_secs().saturating_add(u64::from(duration.subsec_nanos() > 0))
}

/// Adds `name` to `Vary`, unless it is there or everything is.
pub(super) fn vary_by(headers: &mut HeaderMap, name: &HeaderName) {
    let listed = headers.get_all(VARY).iter().any(|value| {
        value.as_bytes().split(|&byte| byte == b',').any(|listed| {
            let listed = listed.trim_ascii();
            listed == b"*" || listed.eq_ignore_ascii_case(name.as_str().as_bytes())
        })
    });
    if !listed {
        let value = match *name {
            http::header::AUTHORIZATION => HeaderValue::from_static("Authorization"),
            _ => HeaderValue::from(name.clone()),
        };
        headers.append(VARY, value);
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
    fn vary_is_added_once() {
        let vary = |present: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in present {
                headers.append(VARY, HeaderValue::from_static(value));
            }
            vary_by(&mut headers, &http::header::AUTHORIZATION);
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
