use super::ManageError;
use crate::{
    rate_limit::RateLimits,
    record::{KeyRecord, Scopes, TextRule},
};

/// Refuses text that would garble a log, a terminal or a table in which it is shown.
pub(super) fn check(field: &'static str, text: &str) -> Result<(), ManageError> {
    TextRule::STORED.check(text).map_err(|problem| ManageError::invalid(field, problem))
}

pub(super) fn check_some(field: &'static str, text: Option<&str>) -> Result<(), ManageError> {
    text.map_or(Ok(()), |text| check(field, text))
}

/// Refuses more scopes than the cache keeps for a key.
pub(super) fn check_scopes(scopes: &Scopes) -> Result<(), ManageError> {
    if scopes.is_within_bounds() {
        return Ok(());
    }
    Err(ManageError::invalid("scopes", "a key has at most 128 scopes"))
}

/// Refuses more quotas than the layer counts a request against.
pub(super) fn check_quotas(limits: Option<&RateLimits>) -> Result<(), ManageError> {
    if limits.is_none_or(RateLimits::is_within_bounds) {
        return Ok(());
    }
    Err(ManageError::invalid("rate_limits", "a key or a plan has at most 8 quotas"))
}

/// Refuses a key with more quotas than that including its plan, if the store defines the plan: the
/// layer would reject the key.
pub(super) fn check_quotas_with_plan(record: &KeyRecord) -> Result<(), ManageError> {
    let (Some(own), Some(plan)) = (&record.rate_limits, &record.plan_limits) else {
        return Ok(());
    };
    if own.and(plan).is_within_bounds() {
        return Ok(());
    }
    let detail = "a key has at most 8 quotas, including those of its plan: give it fewer, or \
        quotas that replace those of the plan by name";
    Err(ManageError::invalid("rate_limits", detail))
}
