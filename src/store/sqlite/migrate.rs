use sqlx::{SqliteConnection, SqlitePool, query, query_as, query_scalar, raw_sql};

use super::{
    error::failed,
    lease::{Lease, READ, WRITE},
    record::now,
};
use crate::store::{
    StoreError,
    migrate::{self, Applied, Migration},
};

pub(super) async fn bring_up_to_date(pool: &SqlitePool) -> Result<(), StoreError> {
    let mut lease = Lease::begin(pool, READ).await?;
    let is_up_to_date = missing(&mut lease).await?.is_empty();
    lease.commit().await?;
    if is_up_to_date {
        return Ok(());
    }
    let mut lease = begin_history(Lease::begin(pool, WRITE).await?).await?;
    for migration in missing(&mut lease).await? {
        let applied = raw_sql(migration.sql).execute(&mut *lease).await;
        let (_, same) = lease.after(applied).map_err(|error| migration.blame(error))?;
        lease = record(same, migration).await?;
    }
    lease.commit().await
}

/// Creates the history if it is missing.
pub(super) async fn begin_history(mut lease: Lease) -> Result<Lease, StoreError> {
    let created = raw_sql(CREATE_HISTORY).execute(&mut *lease).await;
    Ok(lease.after(created)?.1)
}

/// Records a migration as applied.
pub(super) async fn record(mut lease: Lease, migration: &Migration) -> Result<Lease, StoreError> {
    let record = query(RECORD_MIGRATION)
        .bind(migration.version)
        .bind(migration.description)
        .bind(migration.checksum());
    let recorded = record.execute(&mut *lease).await;
    Ok(lease.after(recorded)?.1)
}

pub(super) async fn missing(
    connection: &mut SqliteConnection,
) -> Result<Vec<&'static Migration>, StoreError> {
    let begun = query_scalar(HAS_HISTORY).fetch_one(&mut *connection);
    let mut history: Vec<Applied> = Vec::new();
    if begun.await.map_err(failed)? {
        let applied = query_as("select version, checksum from _api_key_migrations");
        history = applied.fetch_all(connection).await.map_err(failed)?;
    }
    migrate::missing(migrate::SQLITE, &history)
}

pub(super) const HAS_HISTORY: &str = "select exists (
    select 1 from sqlite_schema where type = 'table' and name = '_api_key_migrations'
)";

const CREATE_HISTORY: &str = concat!(
    "create table if not exists _api_key_migrations (
        version integer primary key,
        description text not null,
        checksum integer not null,
        applied_at integer not null default (",
    now!(),
    ")
    ) strict"
);

const RECORD_MIGRATION: &str =
    "insert into _api_key_migrations (version, description, checksum) values (?1, ?2, ?3)";
