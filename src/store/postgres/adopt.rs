//! The history of tables that another migration tool created.

use sqlx::{PgConnection, query_as, raw_sql};

#[cfg(doc)]
use super::PgKeyStoreBuilder;
use super::{
    PgKeyStore,
    doctor::{HISTORY, expected, parts},
    error::failed,
    migrate::{begin, begin_history, record},
    schema::{Places, Schema},
};
#[cfg(doc)]
use crate::store::StoreErrorKind;
use crate::store::{
    StoreError,
    migrate::{self, Applied},
    structure,
};

impl PgKeyStore {
    /// Records the migrations as applied, in tables that another migration tool created by
    /// [`migration_sql`](PgKeyStoreBuilder::migration_sql). The tables, their constraints, indexes,
    /// triggers and functions must be exactly those of the migrations; what else there is does not
    /// matter. Repeat it after each upgrade that the tool has applied.
    ///
    /// [`migrate`](Self::migrate) then has nothing to do, and checks that this stays so.
    ///
    /// # Errors
    ///
    /// [`Migration`](StoreErrorKind::Migration) when a part is missing or different, which the
    /// error names, or when a recorded migration was changed; or as [`migrate`](Self::migrate).
    pub async fn adopt(&self) -> Result<(), StoreError> {
        let mut lease = self.management.lease().await?;
        let setting = self.management.schema().setting();
        match adopt(&mut lease, setting).await {
            Ok(()) => lease.release(),
            Err(error) => return Err(migrate::failed(error)),
        }
        Ok(())
    }
}

/// Records all migrations as applied, if the tables are as they make them.
async fn adopt(connection: &mut PgConnection, setting: Option<&Schema>) -> Result<(), StoreError> {
    let places = Places::on(connection).await?;
    let schema = match setting {
        Some(setting) => setting.clone(),
        None => places.of_tables()?,
    };
    let mut expected = expected();
    expected.retain(|part| part.relation != HISTORY);
    let found = parts(connection, schema.name()).await.map_err(failed)?;
    structure::require(&expected, &found)?;
    begin(connection).await?;
    begin_history(connection, &schema).await?;
    let applied = query_as("select version, checksum from _api_key_migrations");
    let applied: Vec<Applied> = applied.fetch_all(&mut *connection).await.map_err(failed)?;
    for migration in migrate::missing(migrate::POSTGRES, &applied)? {
        record(connection, migration).await?;
    }
    raw_sql("commit").execute(connection).await.map_err(failed)?;
    Ok(())
}
