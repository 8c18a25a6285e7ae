use sqlx::{PgExecutor, Row as _, raw_sql};

use super::{
    error::{UNHEARD, pooled, unavailable},
    snapshot::Snapshot,
};
use crate::store::{
    StoreError,
    postgres::{error::failed, schema::Statements},
};

/// Our own announcement; when it arrives, earlier ones have arrived as well.
pub(super) struct Hello {
    pub(super) message: String,
    /// The transactions that had ended before it.
    pub(super) ended: Snapshot,
}

impl Hello {
    pub(super) async fn say<'c>(
        connection: impl PgExecutor<'c>,
        statements: &Statements,
    ) -> Result<Self, StoreError> {
        let row = raw_sql(statements.hello.clone()).fetch_one(connection).await.map_err(astray)?;
        let ended: String = row.try_get("ended").map_err(failed)?;
        let ended = Snapshot::parse(&ended).ok_or_else(|| unavailable("invalid snapshot"))?;
        Ok(Self { message: row.try_get("message").map_err(failed)?, ended })
    }
}

/// sqlx reports a protocol error for a notification that another client of the connection listens
/// for.
fn astray(error: sqlx::Error) -> StoreError {
    match error {
        sqlx::Error::Protocol(_) => pooled(UNHEARD),
        error => failed(error),
    }
}
