use std::{
    ops::{Deref, DerefMut},
    time::Duration,
};

use sqlx::{PgConnection, Postgres, pool::PoolConnection, raw_sql};
use tokio::{runtime::Handle, sync::OwnedSemaphorePermit, time::timeout};

/// A pooled connection for one piece of work.
///
/// [`release`](Self::release) returns it to the pool. If it is dropped before, because of an error
/// or a cancelled caller, it is closed: it may be in the middle of a query or a transaction, or on
/// a network that drops packets, and would block its next user.
pub(super) struct Lease {
    connection: PoolConnection<Postgres>,
    /// The permit of a management operation, if it is one.
    turn: Option<OwnedSemaphorePermit>,
}

/// How long returning a connection may take. A slower ping is not worth the wait.
const PATIENCE: Duration = Duration::from_secs(1);

impl Lease {
    pub(super) fn new(mut connection: PoolConnection<Postgres>) -> Self {
        connection.close_on_drop();
        Self { connection, turn: None }
    }

    /// Holds the permit `turn` until the connection is returned.
    pub(super) fn during(self, turn: OwnedSemaphorePermit) -> Self {
        Self { turn: Some(turn), ..self }
    }

    /// Returns the connection to the pool like sqlx does on drop, but with a deadline. The pool
    /// waits for a ping; without the deadline it waits until TCP gives up, a quarter of an hour,
    /// and is one connection short meanwhile.
    pub(super) fn release(mut self) {
        let returned = timeout(PATIENCE, self.connection.return_to_pool());
        let turn = self.turn.take();
        tokio::spawn(async move {
            let _ = returned.await;
            drop(turn);
        });
    }

    /// Rolls back a transaction in which no statement is running, and returns the connection;
    /// closes it if that fails or no runtime is available.
    pub(super) fn roll_back(mut self) {
        let Ok(runtime) = Handle::try_current() else { return };
        runtime.spawn(timeout(PATIENCE, async move {
            if raw_sql("rollback").execute(&mut *self).await.is_ok() {
                self.connection.return_to_pool().await;
            }
        }));
    }
}

impl Deref for Lease {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}
