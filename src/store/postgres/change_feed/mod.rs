//! The change feed: notifications of the triggers, on a connection of its own.

mod error;
mod guard;
mod hello;
mod listening;
mod message;
mod signature;
mod snapshot;
#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc, time::Duration};

use sqlx::PgPool;
use tokio::time::timeout;

use self::{
    error::unavailable,
    listening::{DEADLINE, Listening},
};
use super::{
    error::failed,
    schema::{SchemaCell, Timeouts},
};
use crate::store::{
    StoreError,
    port::{Change, ChangeFeed},
};

const HEARTBEAT: Duration = Duration::from_secs(15);
const MIN_HEARTBEAT: Duration = Duration::from_millis(10);
const MAX_HEARTBEAT: Duration = Duration::from_secs(300);

/// Change feed over PostgreSQL notifications: triggers on `api_keys` announce every change, from
/// any client, as soon as it is committed.
///
/// It opens its own connection to the database of `pool` and takes none from the pool: a pool of
/// one connection can still serve look-ups. Closing the pool ends the feed. Use one feed per
/// process: each commit of a change wakes every listener.
///
/// If notifications do not arrive, connecting fails instead of leaving the feed silent. Use a
/// [`PollingChangeFeed`](crate::store::PollingChangeFeed) in these cases:
///
/// 1. behind PgBouncer in transaction mode, where clients share server connections. A pool that
///    bypasses PgBouncer, just for the feed, works as well;
/// 2. on a standby, which does not support LISTEN.
///
/// Announcing triggers have limitations: a transaction that changes keys cannot be prepared for
/// two-phase commit, and changes applied by logical replication are not announced.
///
/// The feed needs the right to read `api_key_feed`, the table with the name of the channel and the
/// secret that signs announcements. Roles without it can neither receive nor forge announcements:
/// their notifications do not arrive here, or are [ignored](Change::Unrecognized) at the cost of a
/// SHA-256.
///
/// Look-ups must use the server that the feed listens to. A replica may not have applied a change
/// yet when it is announced: poll the replica instead.
///
/// # Cancellation
///
/// Both futures, and the feed itself, may be dropped at any time, even outside of the runtime.
pub struct PgChangeFeed {
    pool: PgPool,
    schema: Arc<SchemaCell>,
    heartbeat: Duration,
    listening: Option<Listening>,
}

impl PgChangeFeed {
    /// Changes in the database behind `pool`. Connects with the pool's current options, so a
    /// password replaced with `set_connect_options` is picked up.
    ///
    /// The tables are found on the `search_path`.
    /// [`PgKeyStore::change_feed`](super::PgKeyStore::change_feed) listens to the schema of a
    /// store.
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        Self::of(pool, Arc::new(SchemaCell::new(None, Timeouts::default())))
    }

    pub(super) fn of(pool: PgPool, schema: Arc<SchemaCell>) -> Self {
        Self { pool, schema, heartbeat: HEARTBEAT, listening: None }
    }

    /// How often to check the connection and that the triggers are still in place. A connection
    /// that died silently is detected within two intervals, a missing trigger within one.
    ///
    /// Default: 15 s, so detection takes at most half a minute. The cost is one catalog query per
    /// interval and node, plus a notification if there were changes. Clamped to at least 10 ms, to
    /// limit the load on the database, and at most 5 min, after which many networks drop idle
    /// connections.
    #[must_use]
    pub fn heartbeat(self, interval: Duration) -> Self {
        Self { heartbeat: interval.clamp(MIN_HEARTBEAT, MAX_HEARTBEAT), ..self }
    }
}

impl ChangeFeed for PgChangeFeed {
    async fn connect(&mut self) -> Result<(), StoreError> {
        self.listening = None;
        let options = self.pool.connect_options();
        let beginning = timeout(DEADLINE, Listening::begin(&options, &self.schema, self.heartbeat));
        let begun = self.pool.close_event().do_until(beginning).await.map_err(failed)?;
        let late = || unavailable("connecting took too long");
        self.listening = Some(begun.map_err(|_| late())??);
        Ok(())
    }

    async fn next(&mut self) -> Result<Change, StoreError> {
        // Put back only on success: after an error, sqlx's listener reconnects silently, and if
        // that is interrupted, it never reports another notification.
        let listening = self.listening.take();
        let mut listening = listening.ok_or_else(|| unavailable("call `connect` first"))?;
        let next = self.pool.close_event().do_until(listening.next(self.heartbeat)).await;
        let change = next.map_err(failed)??;
        self.listening = Some(listening);
        Ok(change)
    }
}

impl fmt::Debug for PgChangeFeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The pool's options may hold a password.
        f.debug_struct("PgChangeFeed")
            .field("heartbeat", &self.heartbeat)
            .field("connected", &self.listening.is_some())
            .finish_non_exhaustive()
    }
}
