//! Key stores: the traits, and implementations for memory, PostgreSQL and SQLite.
//!
//! [`KeyStore`] is all that serving requests needs. [`ManageKeys`] adds issuing, listing and
//! revoking; [`ManagePlans`] keeps limits shared by many keys. [`MemoryKeyStore`] is for tests and
//! static keys; [`PgKeyStore`] and [`SqliteKeyStore`] are persistent. All pass the same contract
//! tests.
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
//! 1. [`find`](KeyStore::find) returns the record **in every state**. The caller distinguishes
//!    revoked and expired keys from unknown ones and can count their use.
//! 2. A missing key is `Ok(None)`. A store that cannot answer returns an error, never `None`:
//!    `None` is cached and answered with 401, an error with 503.
//! 3. [`read_at`](KeyRecord::read_at) comes from the store's own clock, if it has one.
//!
//! A [`ChangeFeed`] reports changes made to the store by other processes:
//!
//! | keys are in | feed | delay |
//! |---|---|---|
//! | PostgreSQL | `PgChangeFeed` | milliseconds |
//! | PostgreSQL, a standby | [`PollingChangeFeed`] | its interval, 1 s |
//! | PostgreSQL, behind PgBouncer in transaction mode | the same | the same |
//! | a SQLite file shared by several processes | the same | the same |
//! | any store used by a single process | none: [`Invalidate`] is enough | |
//!
//! Both read what triggers on `api_keys` record, so they report every change to a key, whether
//! another node, a script or a person at the database prompt made it. They do not report a key's
//! use or changes to columns that no request depends on, such as `revoked_reason`. A changed plan
//! in `api_key_plans` is reported as a change of everything.

#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod doctor;
mod error;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod listing;
mod memory;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod migrate;
mod page;
mod poll;
mod port;
#[cfg(feature = "postgres")]
mod postgres;
mod query;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod row;
#[cfg(feature = "sqlite")]
mod sqlite;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod trial;

#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub use self::doctor::{Finding, Severity};
#[cfg(feature = "postgres")]
pub use self::postgres::{PgChangeFeed, PgKeyStore, PgKeyStoreBuilder, PgTransaction};
#[cfg(feature = "sqlite")]
pub use self::sqlite::{SqliteKeyStore, SqliteTransaction};
pub use self::{
    error::{StoreError, StoreErrorKind},
    memory::{MemoryKeyStore, MemoryTransaction},
    page::InvalidRow,
    poll::PollingChangeFeed,
    port::{
        Change, ChangeFeed, ChangeLog, ChangedKey, Changes, IdempotencyRecord, Invalidate,
        KeyCountQuery, KeyCounts, KeyFilter, KeyStore, KeyTransaction, LogPosition, ManageKeys,
        ManagePlans, Replica, Staleness, Usage,
    },
    query::{EventPage, EventQuery, KeyPage, KeyQuery, ListedKey},
};
