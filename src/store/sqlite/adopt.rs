//! Migrations in the hands of another tool: their history.

use sqlx::SqlitePool;

use super::{
    doctor::{parts, parts_made},
    error::failed,
    lease::{Lease, WRITE},
    migrate::{begin_history, missing, record},
};
use crate::store::{StoreError, structure};

/// Records all migrations as applied, if the tables are as they make them.
pub(super) async fn adopt(pool: &SqlitePool) -> Result<(), StoreError> {
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
