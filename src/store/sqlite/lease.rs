use std::ops::{Deref, DerefMut};

use sqlx::{Sqlite, SqliteConnection, SqlitePool, pool::PoolConnection, raw_sql};
use tokio::{runtime::Handle, sync::OwnedMutexGuard};

use super::error::failed;
use crate::store::{StoreError, StoreErrorKind};

/// A connection of the pool in a transaction.
///
/// It goes back into the pool only once it is known to be in none. Dropped before that it is closed:
/// whoever got the connection next would be in a transaction of which nothing is known.
///
/// Not sqlx's own transaction: SQLite ends one by itself when the disk is full, and sqlx, which
/// counts them, then refuses every later one on that connection.
pub(super) struct Lease(PoolConnection<Sqlite>);

impl Lease {
    /// Begins a transaction with this statement.
    pub(super) async fn begin(pool: &SqlitePool, begin: &'static str) -> Result<Self, StoreError> {
        // One that another user of the pool has left in a transaction is rolled back, or closed where
        // that fails.
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
        let problem = "every connection of the pool was left in a transaction: end each that your \
            own code begins";
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

    /// SQLite ends a transaction by itself when the disk is full: then there is none to roll back.
    async fn is_rolled_back(&mut self) -> bool {
        match raw_sql("rollback").execute(&mut **self).await {
            Ok(_) => true,
            Err(error) => error
                .as_database_error()
                .is_some_and(|error| error.message().contains("no transaction is active")),
        }
    }

    /// What a statement brought, and the connection; where it failed, the transaction is rolled
    /// back and the connection given back.
    pub(super) fn after<T>(self, outcome: sqlx::Result<T>) -> Result<(T, Self), StoreError> {
        match outcome {
            Ok(done) => Ok((done, self)),
            Err(error) => {
                self.roll_back(None);
                Err(failed(error))
            }
        }
    }

    /// Ends a transaction in which no statement is running, and gives the connection back; where
    /// that fails, or nothing runs that could do it, it is closed. `turn` is held until then.
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
