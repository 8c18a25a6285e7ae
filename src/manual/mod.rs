//! The guide: guarantees that involve several parts of the library, each with its tests.

#[doc = include_str!("bounds.md")]
pub mod bounds {}

#[doc = include_str!("deployment.md")]
#[doc = "\n```rust,no_run"]
#[doc = include_str!("../../examples/shared/timed.rs")]
#[doc = "```"]
pub mod deployment {}

#[doc = include_str!("freshness.md")]
pub mod freshness {}

#[doc = include_str!("keys.md")]
pub mod keys {}

#[doc = include_str!("limits.md")]
#[doc = include_str!("which_quota.md")]
#[doc = include_str!("../../docs/limits.svg")]
pub mod limits {}
