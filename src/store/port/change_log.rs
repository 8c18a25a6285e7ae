use std::{future::Future, time::Duration};

use crate::{
    record::KeyId,
    store::{StoreError, StoreErrorKind},
};

/// A change log that can be polled, for stores that cannot send notifications.
///
/// `PgKeyStore` and `SqliteKeyStore` implement it;
/// [`PollingChangeFeed`](crate::store::PollingChangeFeed) polls it.
pub trait ChangeLog: Send + Sync + 'static {
    /// Returns the keys changed since `horizon`, and the horizon for the next call.
    ///
    /// Every change committed after a horizon was read is returned by later calls with that
    /// horizon, as long as it is the last change of its key. Changes committed earlier may be
    /// returned as well; a call without a horizon returns only such changes.
    ///
    /// The future may be dropped at any time.
    ///
    /// # Errors
    ///
    /// When the log cannot be read.
    fn changes_since(
        &self,
        horizon: Option<LogPosition>,
    ) -> impl Future<Output = Result<Changes, StoreError>> + Send;

    /// The log's current write position, if it is not a replica. Everything committed before is
    /// below it.
    ///
    /// The future may be dropped at any time.
    ///
    /// # Errors
    ///
    /// When the log has no positions, which is the default; when it cannot be read; or when it is a
    /// replica.
    fn end(&self) -> impl Future<Output = Result<u64, StoreError>> + Send {
        let problem = "this change log has no positions";
        async move { Err(StoreError::new(StoreErrorKind::Other).because(problem)) }
    }
}

/// The result of polling a [`ChangeLog`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Changes {
    /// The horizon for the next poll.
    pub horizon: LogPosition,
    /// The last change of each changed key.
    pub keys: Vec<ChangedKey>,
    /// A replica's progress; `None` if the log was read directly.
    pub replica: Option<Replica>,
}

/// A replica's progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Replica {
    /// The position up to which it has applied the log.
    pub applied: u64,
    /// The log's end as far as the replica knows; `None` while it is disconnected from its source.
    pub known: Option<u64>,
    /// Time since the last applied change was committed, measured by two clocks that may differ;
    /// `None` if unknown.
    pub age: Option<Duration>,
}

impl Replica {
    /// A replica that has applied the log up to `applied`, out of `known`.
    #[must_use]
    pub const fn new(applied: u64, known: Option<u64>, age: Option<Duration>) -> Self {
        Self { applied, known, age }
    }
}

impl Changes {
    /// No changes up to `horizon`.
    #[must_use]
    pub const fn new(horizon: LogPosition) -> Self {
        Self { horizon, keys: Vec::new(), replica: None }
    }
}

/// A read position in a [`ChangeLog`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogPosition {
    /// All transactions with lower numbers had ended. Never decreases.
    pub from: u64,
    /// Identifies a run of a server: differs between servers, and changes with a restart or crash,
    /// because transaction numbers of one run mean nothing to another. 0 if there is no server.
    pub server: i64,
}

impl LogPosition {
    /// All transactions of `server` below `from` have ended.
    #[must_use]
    pub const fn new(from: u64, server: i64) -> Self {
        Self { from, server }
    }
}

/// The last change of a key. No two changes of a key are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct ChangedKey {
    /// The changed key. The all-zero id means every key.
    pub key_id: KeyId,
    /// The transaction that inserted the key or gave it a new hash; 0 if unknown.
    pub created_in: u64,
    /// The transaction that last changed or deleted the key.
    pub changed_in: u64,
}

impl ChangedKey {
    /// `key_id` was last changed in `changed_in`.
    #[must_use]
    pub const fn new(key_id: KeyId, created_in: u64, changed_in: u64) -> Self {
        Self { key_id, created_in, changed_in }
    }
}
