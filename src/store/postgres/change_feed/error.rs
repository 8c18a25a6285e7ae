use std::error::Error;

use crate::store::{StoreError, StoreErrorKind};

pub(super) const UNHEARD: &str = "notifications do not arrive, as behind PgBouncer in transaction mode: \
    use a `PollingChangeFeed` there";

/// Retrying will not help.
pub(super) fn pooled(problem: &'static str) -> StoreError {
    StoreError::new(StoreErrorKind::Other).because(problem)
}

pub(super) fn unavailable(problem: impl Into<Box<dyn Error + Send + Sync>>) -> StoreError {
    StoreError::new(StoreErrorKind::Unavailable).because(problem)
}
