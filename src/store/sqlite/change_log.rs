use sqlx::{SqliteConnection, query_as};

use super::{SqliteKeyStore, error::failed};
use crate::store::{
    StoreError, migrate,
    port::{ChangeLog, Changes, LogPosition, Replica},
    row::{self, Polled},
};

pub(super) async fn changes_since(
    connection: &mut SqliteConnection,
    horizon: Option<LogPosition>,
) -> Result<Changes, StoreError> {
    let changes = query_as(CHANGES).bind(row::from(horizon)?);
    let rows: Vec<Polled> = changes.fetch_all(connection).await.map_err(unlogged)?;
    row::changes(&rows)
}

// One statement, so that the horizon matches the snapshot in which the rows were read. A file has
// no server, so the server is always 0.
const CHANGES: &str = "
select horizon.changed_in, 0, key_id, created_in, api_key_changes.changed_in
from (select coalesce(max(changed_in), 0) + 1 as changed_in from api_key_changes) as horizon
left join api_key_changes on api_key_changes.changed_in >= ?1";

impl ChangeLog for SqliteKeyStore {
    async fn changes_since(&self, horizon: Option<LogPosition>) -> Result<Changes, StoreError> {
        let mut connection = self.lookups.pool()?.acquire().await.map_err(failed)?;
        let changes = changes_since(&mut connection, horizon).await?;
        // A file that was replaced is no longer written: treat it as a replica without a source.
        let replica = self.file.is_replaced().then(|| Replica::new(0, None, None));
        Ok(Changes { replica, ..changes })
    }
}

fn unlogged(error: sqlx::Error) -> StoreError {
    match &error {
        sqlx::Error::Database(said) if said.message().starts_with("no such table") => {
            migrate::no_changes()
        }
        _ => failed(error),
    }
}
