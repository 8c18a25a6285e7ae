//! A plan as columns.

use super::error::corrupt;
use crate::{
    rate_limit::{InvalidQuota, Quota, RateLimits},
    store::StoreError,
};

pub(super) fn limits(json: &str) -> Result<RateLimits, &'static str> {
    let quotas = serde_json::from_str::<Vec<Quota>>(json).map_err(|_| "not a list of quotas")?;
    RateLimits::new(quotas).map_err(|error| match error {
        InvalidQuota::TooMany => "more than 8 quotas",
        _ => "two quotas of one name",
    })
}

/// A row of `api_key_plans`.
pub(in crate::store) type Plan = (String, String);

/// Parses the rows of `api_key_plans`.
pub(in crate::store) fn plans(rows: Vec<Plan>) -> Result<Vec<(String, RateLimits)>, StoreError> {
    let plan = |(name, limits): Plan| match self::limits(&limits) {
        Ok(limits) => Ok((name, limits)),
        Err(problem) => {
            Err(corrupt(&format_args!("column `rate_limits` of plan {name:?}: {problem}")))
        }
    };
    rows.into_iter().map(plan).collect()
}
