//! For tests of services that use this crate, and of stores, limiters and feeds written for it.
//! Feature `test-util`, meant for `[dev-dependencies]`.
//!
//! | to test | use |
//! |---|---|
//! | a handler | [`Consumer::acting_as`](crate::Consumer::acting_as) |
//! | a service with its layer, and everything that a key can do | [`TestKeys`] |
//! | what a service does when its store fails | [`TestKeys::go_down`], [`FaultStore`] |
//! | a store, a rate limiter or a change feed of your own | [`contract`] |
//!
//! Time is a [`ManualClock`](crate::clock::ManualClock): it stands still until the test advances it.
//! The manual has [a page](crate::manual::testing) on it.
//!
//! The feature adds functions and changes none: a program in which another crate enabled it accepts
//! the same requests as without it.

pub mod contract;
mod fault_store;
mod key;
mod keys;

pub use self::{
    fault_store::FaultStore,
    key::{IssueKey, TestKey},
    keys::{TestKeys, TestStore},
};
