//! The `tracing` facade where the feature is on, nothing where it is off, so that no logic carries
//! a `#[cfg]`.

#[cfg(feature = "tracing")]
pub(crate) use tracing::{debug, info, warn};

#[cfg(not(feature = "tracing"))]
macro_rules! nothing {
    ($($field:tt)*) => {};
}

#[cfg(not(feature = "tracing"))]
pub(crate) use {nothing as debug, nothing as info, nothing as warn};
