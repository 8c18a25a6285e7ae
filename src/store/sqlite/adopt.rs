//! The history of tables that another migration tool created.

use sqlx::SqlitePool;

use super::{
    SqliteKeyStore,
    doctor::{parts, parts_made},
    error::failed,
    lease::{Lease, WRITE},
    migrate::{begin_history, missing, record},
};
#[cfg(doc)]
use crate::store::StoreErrorKind;
use crate::store::{StoreError, migrate::failed as migration_failed, structure};

impl SqliteKeyStore {
    /// Records the migrations as applied, in tables that another migration tool created by
    /// [`migration_sql`](Self::migration_sql). The tables, their indexes and triggers must be
    /// exactly those of the migrations; what else there is does not matter. Repeat it after each
    /// upgrade that the tool has applied.
    ///
    /// # Errors
    ///
    /// [`Migration`](StoreErrorKind::Migration) when a part is missing or different, which the
    /// error names, or when a recorded migration was changed; or when the file cannot be written.
    pub async fn adopt(&self) -> Result<(), StoreError> {
        adopt(self.pool()).await.map_err(migration_failed)
    }
}

/// Records all migrations as applied, if the tables are as they make them.
async fn adopt(pool: &SqlitePool) -> Result<(), StoreError> {
    let expected = parts_made().await.map_err(failed)?;
    let mut lease = Lease::begin(pool, WRITE).await?;
    let found = parts(&mut lease).await;
    let (found, lease) = lease.after(found)?;
    structure::require(&expected, &found)?;
    let mut lease = begin_history(lease).await?;
    for migration in missing(&mut lease).await? {
        lease = record(lease, migration).await?;
    }
    lease.commit().await
}
