//! The ports of a store, for authors of one.
//!
//! | trait | is for |
//! |---|---|
//! | [`KeyStore`](super::KeyStore) | looking keys up: all that serving requests needs |
//! | [`ChangeFeed`], or a [`ChangeLog`] that is polled | learning of changes by other processes |
//! | [`ManageKeys`](super::ManageKeys) with its [`KeyTransaction`], and [`ManagePlans`] | issuing, changing and revoking keys |
//! | [`LegacyHashes`] | keeping slow hashes of imported keys until the keys are used |
//! | `WebhookStore`, feature `webhooks` | keeping webhook endpoints, and reading the audit for them |
//! | [`Backend`] | tables and a feed, for [`ApiKeys`](crate::ApiKeys) to set up |
//! | [`Invalidate`] | a cache of a store's answers; an [`Authenticator`](crate::Authenticator) is one |
//!
//! Services need none of this: they choose a store, and manage keys with a
//! [`KeyIssuer`](crate::manage::KeyIssuer).
//!
//! A custom store needs only plain `async fn`s:
//!
//! ```
//! use tower_api_key::{
//!     key::KeyHash,
//!     record::KeyRecord,
//!     store::{KeyStore, StoreError},
//! };
//!
//! struct OneKey(KeyRecord);
//!
//! impl KeyStore for OneKey {
//!     async fn find(&self, hash: &KeyHash) -> Result<Option<KeyRecord>, StoreError> {
//!         Ok((self.0.key_hash == *hash).then(|| self.0.clone()))
//!     }
//! }
//! ```
//!
//! An implementation must follow these rules:
//!
//! 1. [`find`](super::KeyStore::find) returns the record **in every state**. The caller
//!    distinguishes revoked and expired keys from unknown ones and can count their use.
//! 2. A missing key is `Ok(None)`. A store that cannot answer returns an error, never `None`:
//!    `None` is cached and answered with 401, an error with 503.
//! 3. [`read_at`](crate::record::KeyRecord::read_at) comes from the store's own clock, if it has one.
//!
//! These rules and those of each method are [a suite of
//! tests](crate::manual::testing#a-store-a-limiter-or-a-feed-of-your-own), which runs in the crate that
//! implements a port.

mod backend;
mod change_feed;
mod change_log;
mod invalidate;
pub(super) mod key_store;
mod key_transaction;
mod legacy_hashes;
mod legacy_key;
pub(super) mod manage_keys;
mod manage_plans;
mod usage_batch;
#[cfg(feature = "webhooks")]
mod webhook_store;

#[cfg(feature = "webhooks")]
pub(crate) use self::webhook_store::PREPARED;
#[cfg(feature = "webhooks")]
pub use self::webhook_store::{AuditFrontier, AuditLine, Notice, WebhookStore};
#[cfg(all(feature = "webhooks", any(feature = "postgres", feature = "sqlite")))]
pub(super) use self::webhook_store::{LAST_USES, LATE_USES, UNUSED};
pub use self::{
    backend::Backend,
    change_feed::{Change, ChangeFeed, Staleness},
    change_log::{ChangeLog, ChangedKey, Changes, LogPosition, Replica},
    invalidate::Invalidate,
    key_transaction::{IdempotencyRecord, KeyCountQuery, KeyCounts, KeyFilter, KeyTransaction},
    legacy_hashes::{LegacyHashes, MAX_KEYS_PER_HINT},
    legacy_key::LegacyKey,
    manage_plans::ManagePlans,
    usage_batch::{CountedUses, HourlyUse, Usage, UsageBatch, UseCounts},
};
