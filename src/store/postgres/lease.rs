use std::{
    ops::{Deref, DerefMut},
    time::Duration,
};

use sqlx::{PgConnection, Postgres, pool::PoolConnection, raw_sql};
use tokio::{runtime::Handle, sync::OwnedSemaphorePermit, time::timeout};

/// A connection of the pool for one piece of work.
///
/// [`release`](Self::release) gives it back. Dropped before that, because of an error or because
/// nobody waits any more, it is closed: it may be in the middle of a query or of a transaction, or
/// behind a network that swallows everything, and whoever got it next would wait with it.
pub(super) struct Lease {
    connection: PoolConnection<Postgres>,
    /// One of the turns of management, if it is for that.
    turn: Option<OwnedSemaphorePermit>,
}

/// How long giving a connection back may take. A ping that takes longer is not worth the wait.
const PATIENCE: Duration = Duration::from_secs(1);

impl Lease {
    pub(super) fn new(mut connection: PoolConnection<Postgres>) -> Self {
        connection.close_on_drop();
        Self { connection, turn: None }
    }

    /// The same, which holds `turn` until it is given back.
    pub(super) fn during(self, turn: OwnedSemaphorePermit) -> Self {
        Self { turn: Some(turn), ..self }
    }

    /// What sqlx does when a connection is dropped, with a deadline. The pool takes a connection
    /// back once it has answered a ping; without the deadline it waits for that until TCP gives up,
    /// a quarter of an hour, and is a connection short meanwhile.
    pub(super) fn release(mut self) {
        let returned = timeout(PATIENCE, self.connection.return_to_pool());
        let turn = self.turn.take();
        tokio::spawn(async move {
            let _ = returned.await;
            drop(turn);
        });
    }

    /// Ends a transaction in which no statement is running, and gives the connection back; where
    /// that fails, or nothing runs that could do it, it is closed.
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
