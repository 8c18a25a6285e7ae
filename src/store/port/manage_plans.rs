use std::future::Future;

#[cfg(doc)]
use crate::store::StoreErrorKind;
use crate::{rate_limit::RateLimits, store::StoreError};

/// Stores plans: named limits that keys refer to.
///
/// A plan's limits are read together with each key that [names](crate::record::KeyRecord::plan) it,
/// so a change applies to all of them. Plans not defined here may be defined elsewhere.
/// [`KeyIssuer`](crate::manage::KeyIssuer) builds on this trait and invalidates caches.
pub trait ManagePlans: Send + Sync + 'static {
    /// Creates a plan with these limits, or replaces its limits.
    ///
    /// # Errors
    ///
    /// [`Other`](StoreErrorKind::Other) if the name is not 1 to 64 letters, digits, `-`, `_` or
    /// `.`, or when the store cannot.
    fn set_plan(
        &self,
        name: &str,
        limits: &RateLimits,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Removes a plan, and returns whether it existed. Keys keep naming it.
    ///
    /// # Errors
    ///
    /// When the store cannot.
    fn remove_plan(&self, name: &str) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// All plans, in byte order of their names.
    ///
    /// # Errors
    ///
    /// When the store cannot answer.
    fn plans(&self) -> impl Future<Output = Result<Vec<(String, RateLimits)>, StoreError>> + Send;
}
