use std::time::Duration;

use axum::{extract::FromRequestParts, response::Response};
use http::request::Parts;
use serde::Serialize;
use serde_json::Value;

use super::{body::Object, error::ApiError, handlers::read::json, params::NoParams};
use crate::{
    auth::{RateLimitStatus, Rejection, RejectionKind},
    rate_limit::{Algorithm, CountedPer, Decision, Quota, RateLimits},
};

/// The longest window that a client can set: 400 days, somewhat more than a year. The usage of a
/// quota is kept for its window, so with longer ones a key could fill the memory of a node by
/// changing its quotas. The command line has the same limit; code can set longer windows.
pub(super) const MAX_WINDOW: Duration = Duration::from_secs(400 * 86_400);

/// The limits in the body of a request.
pub(super) fn read(quotas: Vec<Object>) -> Result<RateLimits, ApiError> {
    if quotas.len() > RateLimits::MAX_QUOTAS {
        return Err(ApiError::invalid("/rate_limits", "A key has at most 8 quotas."));
    }
    let quota = |(at, Object(quota))| {
        let quota = serde_json::from_value::<Quota>(Value::Object(quota))
            .map_err(|error| ApiError::invalid(format!("/rate_limits/{at}"), reason(&error)))?;
        if !is_remembered_briefly(&quota) {
            let detail = "A window, and the time to refill a burst, must be at most 400 days: \
                34560000000 ms.";
            return Err(ApiError::invalid(format!("/rate_limits/{at}/window_ms"), detail));
        }
        Ok(quota)
    };
    let quotas = quotas.into_iter().enumerate().map(quota).collect::<Result<Vec<_>, _>>()?;
    RateLimits::new(quotas).map_err(|error| ApiError::invalid("/rate_limits", error.to_string()))
}

/// Whether the usage of the quota is forgotten after [`MAX_WINDOW`]. A burst may take longer than
/// the window to refill.
fn is_remembered_briefly(quota: &Quota) -> bool {
    let refills =
        quota.algorithm() == Algorithm::SlidingWindow || quota.refill_time() <= MAX_WINDOW;
    quota.window() <= MAX_WINDOW && refills
}

/// The reason, without echoing what was sent.
fn reason(error: &serde_json::Error) -> String {
    let message = error.to_string();
    match message.split_once(", expected ") {
        Some((sent, expected)) if sent.starts_with("unknown field") => {
            format!("Unknown member: expected {expected}.")
        }
        Some((_, expected)) => format!("A member must be {expected}."),
        None => message,
    }
}

/// The remaining quota of a key.
#[derive(Serialize)]
pub(super) struct Allowance<'s> {
    quotas: Vec<Left<'s>>,
}

#[derive(Serialize)]
struct Left<'s> {
    name: &'s str,
    limit: u32,
    window_ms: u64,
    burst: u32,
    sliding: bool,
    counted_per: CountedPer,
    remaining: u32,
    next_unit_in_ms: u64,
}

impl<'s> Left<'s> {
    fn new((quota, decision): (&'s Quota, Decision)) -> Self {
        Self {
            name: quota.name(),
            limit: quota.limit(),
            window_ms: millis(quota.window().as_nanos()),
            burst: quota.burst_size().get(),
            sliding: quota.algorithm() == Algorithm::SlidingWindow,
            counted_per: quota.counted_per(),
            remaining: decision.remaining(),
            next_unit_in_ms: millis(decision.next_unit_in().as_nanos()),
        }
    }
}

/// Rounded up, so that a client that waits this long has waited long enough.
fn millis(nanos: u128) -> u64 {
    u64::try_from(nanos.div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// The caller's rate-limit status. Present only behind a layer that does not charge.
pub(super) struct Uncharged(RateLimitStatus);

impl<S: Sync> FromRequestParts<S> for Uncharged {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let rate_limit_status = parts.extensions.get::<RateLimitStatus>().cloned();
        rate_limit_status
            .map(Self)
            .ok_or(ApiError::Rejected(Rejection::new(RejectionKind::LayerMissing)))
    }
}

pub(super) async fn get_rate_limit(
    Uncharged(rate_limit_status): Uncharged,
    _: NoParams,
) -> Response {
    json(&Allowance { quotas: rate_limit_status.iter().map(Left::new).collect() })
}
