//! The settings of connections, which [`SqliteKeyStore::connect`](super::SqliteKeyStore::connect)
//! documents.

use std::time::Duration;

use sqlx::{
    ConnectOptions, Connection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};
use tokio::time::{Instant, sleep};

use super::error::{failed, is_busy};
use crate::store::StoreError;

pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// For each connection to a file.
pub(super) fn of_a_file(options: SqliteConnectOptions) -> SqliteConnectOptions {
    options.busy_timeout(BUSY_TIMEOUT).synchronous(SqliteSynchronous::Full)
}

/// Switches the file to a write-ahead log, which persists.
///
/// SQLite reads the journal mode before it changes it, and ignores the busy timeout when upgrading
/// its lock in between. If two processes open a new file at once, one may fail.
#[expect(clippy::disallowed_methods, reason = "SQLite does not tell when the lock is free")]
pub(super) async fn write_ahead(options: &SqliteConnectOptions) -> Result<(), StoreError> {
    let options = options.clone().journal_mode(SqliteJournalMode::Wal);
    let deadline = Instant::now() + BUSY_TIMEOUT;
    loop {
        match options.connect().await {
            Ok(connection) => return connection.close().await.map_err(failed),
            Err(error) if is_busy(&error) && Instant::now() < deadline => {
                sleep(Duration::from_millis(10)).await;
            }
            Err(error) => return Err(failed(error)),
        }
    }
}
