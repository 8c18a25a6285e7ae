use std::future::Future;

use super::{StoreError, StoreErrorKind};
use crate::{
    rate_limit::RateLimits,
    record::{PLAN_NAMES, is_plan_name},
};

/// Keeps plans: limits with a name, which keys refer to.
///
/// What is defined here is read with each key that [names](crate::record::KeyRecord::plan) it, and a
/// change counts for all of them. Whatever is not defined here may be elsewhere.
/// [`KeyIssuer`](crate::manage::KeyIssuer) is built on it, and tells caches.
pub trait ManagePlans: Send + Sync + 'static {
    /// Gives a plan these limits, whether it was there before or not.
    ///
    /// # Errors
    ///
    /// [`Other`](StoreErrorKind::Other) for a name other than 1 to 64 letters, digits, `-`, `_` or
    /// `.`, or when the store cannot.
    fn set_plan(
        &self,
        name: &str,
        limits: &RateLimits,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Removes a plan, and says whether it was there. Keys go on naming it.
    ///
    /// # Errors
    ///
    /// When the store cannot.
    fn remove_plan(&self, name: &str) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// All plans, ordered by name as by its bytes.
    ///
    /// # Errors
    ///
    /// When the store cannot answer.
    fn plans(&self) -> impl Future<Output = Result<Vec<(String, RateLimits)>, StoreError>> + Send;
}

/// A name that stores agree on.
pub(super) fn check_name(name: &str) -> Result<(), StoreError> {
    if is_plan_name(name) {
        return Ok(());
    }
    Err(StoreError::new(StoreErrorKind::Other).because(PLAN_NAMES))
}
