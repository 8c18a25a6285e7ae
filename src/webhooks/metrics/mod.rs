//! What is counted of deliveries. Without the feature `metrics` nothing is.

#[cfg(not(feature = "metrics"))]
mod off;
#[cfg(feature = "metrics")]
mod recorded;

#[cfg(not(feature = "metrics"))]
pub(super) use self::off::Metrics;
#[cfg(feature = "metrics")]
pub(super) use self::recorded::Metrics;
