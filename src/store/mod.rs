//! Where keys are kept: the ports, and their implementations.
//!
//! [`KeyStore`] is all that serving requests needs; [`ManageKeys`] is what issuing, listing and
//! revoking need on top, and [`ManagePlans`] keeps limits that many keys share. [`MemoryKeyStore`] is for tests and static keys, [`PgKeyStore`] and
//! [`SqliteKeyStore`] are persistent. All pass one contract suite.
//!
//! A store of your own is plain `async fn`s:
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
//! Rules an implementation keeps:
//!
//! 1. [`find`](KeyStore::find) returns the record **in every state**. Revoked and expired keys are
//!    told from unknown ones by the caller, which can then count their use.
//! 2. Absence is `Ok(None)`. A store that cannot answer returns an error, never `None`: absence is
//!    remembered and answered with 401, an error with 503.
//! 3. [`read_at`](KeyRecord::read_at) is the store's own clock, where it has one.
//!
//! What others change in the store, a [`ChangeFeed`] tells:
//!
//! | keys are in | feed | told after |
//! |---|---|---|
//! | PostgreSQL | `PgChangeFeed` | milliseconds |
//! | PostgreSQL, a standby | [`PollingChangeFeed`] | its interval, 1 s |
//! | PostgreSQL, behind PgBouncer in transaction mode | the same | the same |
//! | a SQLite file that several processes share | the same | the same |
//! | anything that one process alone uses | none: [`Invalidate`] is enough | |
//!
//! Both read what triggers on `api_keys` write down, so that whatever changes a key is told:
//! another node, a script, a person at the database's prompt. A column that no request depends on,
//! as `revoked_reason`, is not told, nor is a key's use. A change of a plan, in `api_key_plans`, is
//! told as one of everything.

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
        Claim, EventPage, EventQuery, KeyCountQuery, KeyCounts, KeyPage, KeyQuery, KeyTransaction,
        ListedKey, ManageKeys, Selection,
    },
    memory::{MemoryKeyStore, MemoryTransaction},
    page::InvalidRow,
    plans::ManagePlans,
    poll::{ChangeLog, ChangedKey, Changes, Horizon, PollingChangeFeed, Replica},
};
use crate::{
    key::KeyHash,
    record::{KeyId, KeyRecord},
};

/// Finds keys, and remembers when they were used.
pub trait KeyStore: Send + Sync + 'static {
    /// The record of the key with this hash, in whatever state it is.
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

    /// Stores when keys were last used, never moving a time backwards and ignoring unknown keys.
    ///
    /// `batch` is sorted by key and names each key once. The default keeps nothing.
    ///
    /// # Errors
    ///
    /// When the store cannot; the batch is then offered again.
    fn record_usage(&self, batch: &[Usage]) -> impl Future<Output = Result<(), StoreError>> + Send {
        let _ = batch;
        async { Ok(()) }
    }
}

/// Whoever remembers what a store said, and must be told when it no longer holds.
pub trait Invalidate: Send + Sync {
    /// Forgets everything about the key with this hash, that it is unknown included.
    fn invalidate(&self, hash: &KeyHash);

    /// Forgets everything about a key that was revoked, as this record of it says. Revocations are for
    /// good: an [`Authenticator`](crate::Authenticator) refuses the key even where the store that it asks
    /// is a replica that has not applied the revocation yet. Default: [`invalidate`](Self::invalidate).
    fn revoked(&self, record: &KeyRecord) {
        self.invalidate(&record.key_hash);
    }

    /// Forgets everything about every key: a plan was changed, and with it the limits of keys that
    /// nobody has counted.
    fn invalidate_all(&self);
}

/// A key was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// Which.
    pub key_id: KeyId,
    /// When, by the wall clock of the node it was used on.
    pub last_used_at: SystemTime,
}

impl Usage {
    /// `key_id` was used at `last_used_at`.
    #[must_use]
    pub const fn new(key_id: KeyId, last_used_at: SystemTime) -> Self {
        Self { key_id, last_used_at }
    }
}

/// A store did not do what it was asked.
///
/// Neither `Display` nor `Debug` shows values of the record; the driver's own error is the
/// [`source`](Error::source), which clones share.
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

    /// Adds what caused it.
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
            StoreErrorKind::Unavailable => "the key store is not available",
            StoreErrorKind::Overloaded => "the key store has too much to do at once",
            StoreErrorKind::Conflict => "the key exists already, or was changed by somebody else",
            StoreErrorKind::Corrupt => "the key store holds a record that makes no sense",
            StoreErrorKind::Refused => "the key store refuses the change by a rule of its own",
            StoreErrorKind::Migration => "the key store's tables could not be brought up to date",
            StoreErrorKind::Other => "the key store failed",
        })
    }
}

impl fmt::Debug for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("StoreError");
        debug.field("kind", &self.kind);
        if let Some(source) = &self.source {
            // A driver's `Debug` may print the row's values.
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

/// What went wrong in a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// No connection, no answer in time, shutting down. Trying again may help.
    Unavailable,
    /// The store can be reached, and all that this process may ask of it at once is under way.
    /// Trying again will help. It is not an outage: nothing stale is served because of it.
    Overloaded,
    /// A key of this id or hash exists, or the record was changed by somebody else.
    Conflict,
    /// A row that this version cannot understand. The key is not let in, not even by an earlier
    /// record.
    Corrupt,
    /// A rule of the database refuses this row: a constraint or a trigger, often one that the
    /// application added, such as a foreign key. Other rows are not concerned.
    Refused,
    /// The tables could not be brought up to date.
    Migration,
    /// Anything else.
    Other,
}
