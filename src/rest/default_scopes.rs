//! The scopes that the routers require, unless they are given others.

/// To read keys and their audit.
pub(crate) const READ: &str = "api-keys:read";

/// To issue and change keys; over `account`, to change other keys of the consumer.
pub(crate) const WRITE: &str = "api-keys:write";

/// To report leaked keys of all consumers.
#[cfg(feature = "leaks")]
pub(crate) const REPORT_LEAKS: &str = "api-keys:report-leaks";

/// To do either for the keys of all consumers.
pub(crate) const ALL_CONSUMERS: &str = "api-keys:all-consumers";
