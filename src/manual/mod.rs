//! The guide: each page answers one question that involves several parts of the library. Its
//! guarantees have tests.
//!
//! - [`keys`]: how do I issue, limit, rotate, import, audit and restore keys?
//! - [`moving_in`]: how do I keep the keys that my service already has?
//! - [`legacy_hashes`]: and if their hashes are of bcrypt, Argon2, scrypt or PBKDF2?
//! - [`limits`]: how do I limit requests, and which quota do I choose?
//! - [`leaks`]: what happens to a key that is found in public, and how do I notice an intruder?
//! - [`freshness`]: how long can a revoked key keep working, whatever fails?
//! - [`deployment`]: what must I configure around the layer?
//! - [`browsers`]: how does a page send its key, and what can it read?
//! - [`grpc`]: what do gRPC clients see, and how do I guard a tonic service?
//! - [`webhooks`]: how do other services learn of events?
//! - [`observability`]: what do I see of it, and what do I alert on?
//! - [`usage`]: how often are keys used, how exact is that, and how does a billing system learn of it?
//! - [`your_tables`]: how do our tables live beside yours, and what may your SQL count on?
//! - [`shadow`]: what would be rejected, before anything is?
//! - [`bounds`]: how much can the holder of a key create or send?
//! - [`attacks`]: what may an attacker try, and what does it achieve?
//! - [`scanning`]: how do I find keys in files and repositories, and what do I do then?
//! - [`testing`]: how do I test my service, or a store of my own?

#[doc = include_str!("attacks.md")]
pub mod attacks {}

#[doc = include_str!("bounds.md")]
pub mod bounds {}

#[doc = include_str!("browsers.md")]
#[cfg_attr(feature = "axum", doc = "\n```rust,no_run")]
#[cfg_attr(not(feature = "axum"), doc = "\n```text")]
#[doc = include_str!("../../examples/shared/tickets.rs")]
#[doc = "```"]
pub mod browsers {}

#[doc = include_str!("deployment.md")]
#[doc = "\n```rust,no_run"]
#[doc = include_str!("../../examples/shared/timed.rs")]
#[doc = "```"]
pub mod deployment {}

#[doc = include_str!("freshness.md")]
pub mod freshness {}

#[doc = include_str!("grpc.md")]
pub mod grpc {}

#[doc = include_str!("keys.md")]
pub mod keys {}

#[doc = include_str!("leaks.md")]
pub mod leaks {}

#[doc = include_str!("legacy_hashes.md")]
pub mod legacy_hashes {}

#[doc = include_str!("limits.md")]
#[doc = include_str!("which_quota.md")]
#[doc = include_str!("../../docs/limits.svg")]
pub mod limits {}

#[doc = include_str!("moving_in.md")]
pub mod moving_in {}

#[doc = include_str!("observability.md")]
pub mod observability {}

#[doc = include_str!("scanning.md")]
pub mod scanning {}

#[doc = include_str!("shadow.md")]
pub mod shadow {}

#[doc = include_str!("testing.md")]
pub mod testing {}

#[doc = include_str!("usage.md")]
#[doc = include_str!("usage_counts.md")]
pub mod usage {}
#[doc = include_str!("webhooks.md")]
pub mod webhooks {}

#[doc = include_str!("your_tables.md")]
pub mod your_tables {}
