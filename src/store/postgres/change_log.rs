use std::time::Duration;

use sqlx::{PgConnection, query_as, query_scalar};

use super::{
    PgKeyStore,
    error::{UNDEFINED_TABLE, failed, hidden},
    schema::Statements,
};
use crate::store::{
    StoreError, migrate,
    port::{ChangeLog, Changes, LogPosition, Replica},
    row::{self, Polled, Uuid, corrupt},
};

/// [`Polled`], the role that rows are hidden from, and a standby's position.
type PolledBy = (
    i64,
    i64,
    Option<Uuid>,
    Option<i64>,
    Option<i64>,
    Option<String>,
    Option<i64>,
    Option<i64>,
    Option<i64>,
);

impl ChangeLog for PgKeyStore {
    /// Uses look-up connections, which management cannot take.
    async fn changes_since(&self, horizon: Option<LogPosition>) -> Result<Changes, StoreError> {
        let mut lease = self.batcher.pool().lease().await?;
        let statements = self.management.schema().statements(&mut lease).await;
        let statements = statements.map_err(migrate::failed)?;
        let changes = changes_since(&mut lease, &statements, horizon).await?;
        self.management.schema().confirm(&statements);
        lease.release();
        Ok(changes)
    }

    async fn end(&self) -> Result<u64, StoreError> {
        let mut lease = self.batcher.pool().lease().await?;
        let end: i64 = query_scalar(END).fetch_one(&mut *lease).await.map_err(failed)?;
        lease.release();
        u64::try_from(end).map_err(|_| corrupt("invalid write-ahead log position"))
    }
}

// Standbys are sent only what has been flushed.
const END: &str = "select (pg_current_wal_flush_lsn() - '0/0'::pg_lsn)::bigint";

pub(super) async fn changes_since(
    connection: &mut PgConnection,
    statements: &Statements,
    horizon: Option<LogPosition>,
) -> Result<Changes, StoreError> {
    let changes = query_as(statements.changes.clone()).bind(row::from(horizon)?);
    let rows: Vec<PolledBy> = changes.fetch_all(connection).await.map_err(unlogged)?;
    if let Some((.., Some(role), _, _, _)) = rows.first() {
        return Err(hidden("api_key_changes", role));
    }
    let replica = rows.first().and_then(|(.., applied, known, age)| {
        let known = known.and_then(|known| u64::try_from(known).ok());
        // Measured by two clocks: a commit in the future has age zero.
        let age = age.map(|micros| Duration::from_micros(u64::try_from(micros).unwrap_or(0)));
        Some(Replica::new(u64::try_from((*applied)?).ok()?, known, age))
    });
    let rows: Vec<Polled> = rows
        .into_iter()
        .map(|(from, server, id, created, changed, ..)| (from, server, id, created, changed))
        .collect();
    Ok(Changes { replica, ..row::changes(&rows)? })
}

fn unlogged(error: sqlx::Error) -> StoreError {
    match error.as_database_error().and_then(|error| error.code()) {
        Some(code) if code == UNDEFINED_TABLE => migrate::no_changes(),
        _ => failed(error),
    }
}
