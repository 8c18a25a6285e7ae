use std::ops::{Deref, DerefMut};

use sqlx::{Sqlite, SqliteConnection, SqlitePool, pool::PoolConnection, raw_sql};
use tokio::{runtime::Handle, sync::OwnedMutexGuard};

use super::error::failed;
use crate::store::{StoreError, StoreErrorKind};

/// A transaction begun as a reader cannot become a writer after another writer committed.
pub(super) const WRITE: &str = "begin immediate";
pub(super) const READ: &str = "begin";

/// A pooled connection in a transaction.
///
/// It returns to the pool only once it is known to be outside of a transaction. If it is dropped
/// before, it is closed, so that the next user does not continue in an unknown transaction.
///
/// Not sqlx's own transaction: SQLite ends a transaction by itself when the disk is full. sqlx
/// counts transactions, and then refuses all later ones on that connection.
pub(super) struct Lease(PoolConnection<Sqlite>);

impl Lease {
    /// Begins a transaction with the statement `begin`.
    pub(super) async fn begin(pool: &SqlitePool, begin: &'static str) -> Result<Self, StoreError> {
        // Rolls back a transaction that another user of the pool left open, or closes the
        // connection if that fails.
        for _ in 0..pool.options().get_max_connections() {
            let mut connection = pool.acquire().await.map_err(failed)?;
            connection.close_on_drop();
            let mut lease = Self(connection);
            match raw_sql(begin).execute(&mut *lease).await {
                Ok(_) => return Ok(lease),
                Err(error) if is_left_open(&error) => {
                    if lease.is_rolled_back().await {
                        raw_sql(begin).execute(&mut *lease).await.map_err(failed)?;
                        return Ok(lease);
                    }
                }
                Err(error) => return Err(failed(error)),
            }
        }
        let problem = "every connection of the pool was left in a transaction: end the \
            transactions that your own code begins";
        Err(StoreError::new(StoreErrorKind::Other).because(problem))
    }

    pub(super) async fn commit(self) -> Result<(), StoreError> {
        self.end("commit").await
    }

    async fn end(mut self, statement: &'static str) -> Result<(), StoreError> {
        let ended = raw_sql(statement).execute(&mut *self).await.map(drop).map_err(failed);
        if ended.is_ok() || self.is_rolled_back().await {
            self.0.return_to_pool().await;
        }
        ended
    }

    /// SQLite ends a transaction by itself when the disk is full; the rollback then finds none.
    async fn is_rolled_back(&mut self) -> bool {
        match raw_sql("rollback").execute(&mut **self).await {
            Ok(_) => true,
            Err(error) => error
                .as_database_error()
                .is_some_and(|error| error.message().contains("no transaction is active")),
        }
    }

    /// Returns the result of a statement and the connection. If the statement failed, rolls back
    /// and returns the connection to the pool.
    pub(super) fn after<T>(self, outcome: sqlx::Result<T>) -> Result<(T, Self), StoreError> {
        match outcome {
            Ok(done) => Ok((done, self)),
            Err(error) => {
                self.roll_back(None);
                Err(failed(error))
            }
        }
    }

    /// Rolls back a transaction in which no statement is running, and returns the connection;
    /// closes it if that fails or no runtime is available. `turn` is held until then.
    pub(super) fn roll_back(mut self, turn: Option<OwnedMutexGuard<()>>) {
        let Ok(runtime) = Handle::try_current() else { return };
        runtime.spawn(async move {
            if self.is_rolled_back().await {
                self.0.return_to_pool().await;
            }
            drop(turn);
        });
    }
}

fn is_left_open(error: &sqlx::Error) -> bool {
    let database = error.as_database_error();
    database.is_some_and(|error| error.message().contains("within a transaction"))
}

impl Deref for Lease {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        &self.0
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        &mut self.0
    }
}
