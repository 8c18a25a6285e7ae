//! What is counted for dashboards and alerts. Without the feature `metrics` nothing is.

#[cfg(not(feature = "metrics"))]
mod off;
#[cfg(feature = "metrics")]
mod recorded;
#[cfg(feature = "metrics")]
mod striped;

#[cfg(not(feature = "metrics"))]
pub(super) use self::off::Metrics;
#[cfg(feature = "metrics")]
pub(super) use self::recorded::{Levels, Metrics};
