//! A key's record as a row of `api_keys`.

use std::time::SystemTime;

use sqlx::{Row as _, postgres::PgRow};

use super::{error::failed, timestamp::Timestamp};
use crate::{
    record::{KeyId, KeyRecord},
    store::{
        StoreError,
        row::{Row, Uuid, corrupt, time},
    },
};

/// The columns that [`record`] reads. `read_at` is the current clock rather than the transaction's
/// start, which may precede a wait for a lock. Plans are subselects because a join might read all
/// of them for one key.
///
/// `$schema`, with a trailing dot, qualifies the plans where no search path is set.
macro_rules! columns {
    () => {
        columns!("")
    };
    ($schema:literal) => {
        concat!(
            "id, key_hash, key_prefix, key_last4, consumer_id, name, scopes, \
             rate_limits::text as rate_limits, plan, \
             (select api_key_plans.rate_limits::text from ",
            $schema,
            "api_key_plans \
             where api_key_plans.name = plan) as plan_limits, \
             metadata::text as metadata, is_active, created_at, \
             created_by, not_before, expires_at, revoked_at, revoked_reason, rotated_from, \
             rotated_at, root_id, version, networks::text[] as networks, tags, origins, kind, \
             clock_timestamp() as read_at"
        )
    };
}

pub(super) use columns;

pub(super) fn uuid(id: KeyId) -> Uuid {
    Uuid::from_bytes(*id.as_bytes())
}

pub(super) fn record(row: Option<PgRow>) -> Result<Option<KeyRecord>, StoreError> {
    row.map(|row| record_of(&row)).transpose()
}

pub(super) fn records(rows: &[PgRow]) -> Result<Vec<KeyRecord>, StoreError> {
    rows.iter().map(record_of).collect()
}

pub(super) fn record_of(row: &PgRow) -> Result<KeyRecord, StoreError> {
    read(row).map_err(failed)?.into_record()
}

pub(super) fn read(row: &PgRow) -> sqlx::Result<Row> {
    let at = |column| row.try_get(column).map(|Timestamp(at)| at);
    let maybe_at = |column| row.try_get(column).map(|at: Option<Timestamp>| at.map(|at| at.0));
    let rotated_from: Option<Uuid> = row.try_get("rotated_from")?;
    Ok(Row {
        id: row.try_get::<Uuid, _>("id")?.into_bytes(),
        key_hash: row.try_get("key_hash")?,
        key_prefix: row.try_get("key_prefix")?,
        key_last4: row.try_get("key_last4")?,
        consumer_id: row.try_get("consumer_id")?,
        name: row.try_get("name")?,
        scopes: row.try_get("scopes")?,
        rate_limits: row.try_get("rate_limits")?,
        plan: row.try_get("plan")?,
        plan_limits: row.try_get("plan_limits")?,
        metadata: row.try_get("metadata")?,
        networks: row.try_get("networks")?,
        tags: row.try_get("tags")?,
        origins: row.try_get("origins")?,
        kind: row.try_get("kind")?,
        is_active: row.try_get("is_active")?,
        created_at: at("created_at")?,
        created_by: row.try_get("created_by")?,
        not_before: maybe_at("not_before")?,
        expires_at: maybe_at("expires_at")?,
        revoked_at: maybe_at("revoked_at")?,
        revoked_reason: row.try_get("revoked_reason")?,
        rotated_from: rotated_from.map(Uuid::into_bytes),
        rotated_at: maybe_at("rotated_at")?,
        root_id: row.try_get::<Uuid, _>("root_id")?.into_bytes(),
        version: row.try_get("version")?,
        read_at: at("read_at")?,
    })
}

pub(super) fn read_time(column: &str, at: Timestamp) -> Result<SystemTime, StoreError> {
    time(at.0).ok_or_else(|| corrupt(&format_args!("column `{column}`")))
}
