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

mod change;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod doctor;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod listing;
mod manage;
mod memory;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod migrate;
mod page;
mod plans;
mod poll;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod row;
#[cfg(feature = "sqlite")]
mod sqlite;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod trial;

use std::{error::Error, fmt, future::Future, sync::Arc, time::SystemTime};

#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub use self::doctor::{Finding, Severity};
#[cfg(feature = "postgres")]
pub use self::postgres::{PgChangeFeed, PgKeyStore, PgKeyStoreBuilder, PgTransaction};
#[cfg(feature = "sqlite")]
pub use self::sqlite::{SqliteKeyStore, SqliteTransaction};
pub use self::{
    change::{Change, ChangeFeed, Staleness},
    manage::{
        EventPage, EventQuery, IdempotencyRecord, KeyCountQuery, KeyCounts, KeyFilter, KeyPage,
        KeyQuery, KeyTransaction, ListedKey, ManageKeys,
    },
    memory::{MemoryKeyStore, MemoryTransaction},
    page::InvalidRow,
    plans::ManagePlans,
    poll::{ChangeLog, ChangedKey, Changes, LogPosition, PollingChangeFeed, Replica},
};
use crate::{
    key::KeyHash,
    record::{KeyId, KeyRecord},
};

/// Looks up keys, and records when they were last used.
pub trait KeyStore: Send + Sync + 'static {
    /// The record of the key with this hash, in any state.
    ///
    /// The future may be dropped at any time.
    ///
    /// # Errors
    ///
    /// When the store cannot answer.
    fn find(
        &self,
        hash: &KeyHash,
    ) -> impl Future<Output = Result<Option<KeyRecord>, StoreError>> + Send;

    /// Stores when keys were last used. Never moves a time backwards; ignores unknown keys.
    ///
    /// `batch` is sorted by key and contains each key once. The default discards it.
    ///
    /// # Errors
    ///
    /// When the store cannot; the caller retries the batch.
    fn record_usage(&self, batch: &[Usage]) -> impl Future<Output = Result<(), StoreError>> + Send {
        let _ = batch;
        async { Ok(()) }
    }
}

/// A cache of a store's answers that must be invalidated when keys change.
pub trait Invalidate: Send + Sync {
    /// Drops everything cached for the key with this hash, including that it is unknown.
    fn invalidate(&self, hash: &KeyHash);

    /// Drops everything cached for a key that this record shows as revoked. Revocations are
    /// permanent: an [`Authenticator`](crate::Authenticator) refuses the key even if its store is a
    /// replica that has not applied the revocation yet. Default: [`invalidate`](Self::invalidate).
    fn revoked(&self, record: &KeyRecord) {
        self.invalidate(&record.key_hash);
    }

    /// Drops everything cached for every key. Called when a plan was changed, since it affects the
    /// limits of an unknown set of keys.
    fn invalidate_all(&self);
}

/// When a key was last used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// The key.
    pub key_id: KeyId,
    /// The time of use, by the wall clock of the node that served the request.
    pub last_used_at: SystemTime,
}

impl Usage {
    /// `key_id` was used at `last_used_at`.
    #[must_use]
    pub const fn new(key_id: KeyId, last_used_at: SystemTime) -> Self {
        Self { key_id, last_used_at }
    }
}

/// A store operation failed.
///
/// Neither `Display` nor `Debug` shows values of the record. The driver's own error is the
/// [`source`](Error::source), shared by clones.
#[derive(Clone)]
pub struct StoreError {
    kind: StoreErrorKind,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

impl StoreError {
    /// An error of this kind.
    #[must_use]
    pub const fn new(kind: StoreErrorKind) -> Self {
        Self { kind, source: None }
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { source: Some(source.into().into()), ..self }
    }

    /// What went wrong.
    #[must_use]
    pub const fn kind(&self) -> StoreErrorKind {
        self.kind
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            StoreErrorKind::Unavailable => "key store unavailable",
            StoreErrorKind::Overloaded => "key store overloaded: too many concurrent operations",
            StoreErrorKind::Conflict => "the key already exists, or was changed concurrently",
            StoreErrorKind::Corrupt => "the key store returned an invalid record",
            StoreErrorKind::Refused => "a key store constraint or trigger refused the change",
            StoreErrorKind::Migration => "the tables of the key store could not be migrated",
            StoreErrorKind::Other => "the key store failed",
        })
    }
}

impl fmt::Debug for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("StoreError");
        debug.field("kind", &self.kind);
        if let Some(source) = &self.source {
            // A driver's `Debug` may print values of the row.
            debug.field("source", &format_args!("{source}"));
        }
        debug.finish()
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// The kind of a [`StoreError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// No connection, no answer in time, or shutting down. Retrying may help.
    Unavailable,
    /// The store is reachable, but this process already uses all the capacity it may. Retrying will
    /// help. It is not an outage: stale records are not served because of it.
    Overloaded,
    /// A key with this id or hash exists, or the record was changed concurrently.
    Conflict,
    /// This version cannot parse a row. The key is refused, even if an earlier record of it is
    /// cached.
    Corrupt,
    /// A constraint or trigger of the database refused this row, often one added by the
    /// application, such as a foreign key. Other rows are not affected.
    Refused,
    /// Migrating the tables failed.
    Migration,
    /// Anything else.
    Other,
}
