//! What no single item can say: what its parts promise together.

#[doc = include_str!("freshness.md")]
pub mod freshness {}

#[doc = include_str!("keys.md")]
pub mod keys {}

#[doc = include_str!("limits.md")]
pub mod limits {}
