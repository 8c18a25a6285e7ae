//! The rules of the ports, for authors of stores, rate limiters and change feeds.
//!
//! Each suite checks an implementation against the rules that its port documents. The crate's own
//! implementations pass the same suites. A rule that is broken says what was expected, why, and what
//! was found instead.
//!
//! | suite | checks | one test per rule |
//! |---|---|---|
//! | [`key_store()`] | [`KeyStore`](crate::store::KeyStore) alone | [`key_store_contract!`](crate::key_store_contract) |
//! | [`manage_keys()`] | that, and [`ManageKeys`](crate::store::ManageKeys) with its transactions and plans | [`manage_keys_contract!`](crate::manage_keys_contract) |
//! | [`usage_ledger()`] | what a store that counts uses adds and reads | [`usage_ledger_contract!`](crate::usage_ledger_contract) |
//! | [`rate_limiter()`] | [`RateLimiter`](crate::rate_limit::RateLimiter) with its buckets | [`rate_limiter_contract!`](crate::rate_limiter_contract) |
//! | [`change_feed()`] | [`ChangeFeed`](crate::store::port::ChangeFeed) | [`change_feed_contract!`](crate::change_feed_contract) |
//!
//! The functions run all rules and return those that are broken. The macros make a `#[tokio::test]`
//! of each rule, so that a failure has the rule's name; the crate that uses them needs tokio with
//! `macros` and `rt`.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! use tower_api_key::{store::MemoryKeyStore, test_util::contract};
//!
//! // A new, empty store for each rule, and what has to live as long: here, nothing.
//! let checked = contract::manage_keys(async || (MemoryKeyStore::new(), ())).await;
//! assert!(checked.is_ok(), "{checked:?}");
//! # }
//! ```

pub mod change_feed;
pub mod key_store;
pub mod manage_keys;
pub mod rate_limiter;
mod sample;
mod suite;
pub mod usage_ledger;
mod violation;

pub use self::{
    change_feed::change_feed,
    key_store::{SeedKeys, key_store},
    manage_keys::manage_keys,
    rate_limiter::rate_limiter,
    usage_ledger::usage_ledger,
    violation::{Violation, Violations},
};
