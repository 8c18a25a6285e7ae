//! A key's record as a row of `api_keys`.

use std::time::SystemTime;

use sqlx::{Row as _, sqlite::SqliteRow};

use super::error::failed;
use crate::{
    record::{KeyId, KeyRecord},
    store::{
        StoreError,
        row::{Row, Uuid, corrupt, time},
    },
};

/// SQLite's clock has a resolution of milliseconds.
macro_rules! now {
    () => {
        "cast(round(unixepoch('now', 'subsec') * 1000) as integer) * 1000"
    };
}

/// The columns that [`record`] reads.
macro_rules! columns {
    () => {
        concat!(
            "id, key_hash, key_prefix, key_last4, consumer_id, name, scopes, rate_limits, \
             plan, (select api_key_plans.rate_limits from api_key_plans \
             where api_key_plans.name = plan) as plan_limits, \
             metadata, is_active, created_at, created_by, not_before, expires_at, revoked_at, \
             revoked_reason, rotated_from, rotated_at, root_id, version, networks, tags, origins, \
             kind, ",
            now!(),
            " as read_at"
        )
    };
}

pub(super) use {columns, now};

pub(super) fn uuid(id: KeyId) -> Uuid {
    Uuid::from_bytes(*id.as_bytes())
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;

    let mut hex = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a `String` cannot fail.
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

pub(super) fn record(row: Option<SqliteRow>) -> Result<Option<KeyRecord>, StoreError> {
    row.map(|row| record_of(&row)).transpose()
}

pub(super) fn records(rows: &[SqliteRow]) -> Result<Vec<KeyRecord>, StoreError> {
    rows.iter().map(record_of).collect()
}

pub(super) fn record_of(row: &SqliteRow) -> Result<KeyRecord, StoreError> {
    read(row).map_err(failed)?.into_record()
}

pub(super) fn read(row: &SqliteRow) -> sqlx::Result<Row> {
    let scopes: String = row.try_get("scopes")?;
    let scopes = serde_json::from_str(&scopes);
    let rotated_from: Option<Uuid> = row.try_get("rotated_from")?;
    Ok(Row {
        id: row.try_get::<Uuid, _>("id")?.into_bytes(),
        key_hash: row.try_get("key_hash")?,
        key_prefix: row.try_get("key_prefix")?,
        key_last4: row.try_get("key_last4")?,
        consumer_id: row.try_get("consumer_id")?,
        name: row.try_get("name")?,
        scopes: scopes.map_err(|error| undecodable("scopes", error))?,
        rate_limits: row.try_get("rate_limits")?,
        plan: row.try_get("plan")?,
        plan_limits: row.try_get("plan_limits")?,
        metadata: row.try_get("metadata")?,
        networks: words(row, "networks")?,
        tags: words(row, "tags")?,
        origins: words(row, "origins")?,
        kind: row.try_get("kind")?,
        is_active: row.try_get("is_active")?,
        created_at: row.try_get("created_at")?,
        created_by: row.try_get("created_by")?,
        not_before: row.try_get("not_before")?,
        expires_at: row.try_get("expires_at")?,
        revoked_at: row.try_get("revoked_at")?,
        revoked_reason: row.try_get("revoked_reason")?,
        rotated_from: rotated_from.map(Uuid::into_bytes),
        rotated_at: row.try_get("rotated_at")?,
        root_id: row.try_get::<Uuid, _>("root_id")?.into_bytes(),
        version: row.try_get("version")?,
        read_at: row.try_get("read_at")?,
    })
}

/// A column that is null or a JSON list of texts.
fn words(row: &SqliteRow, column: &'static str) -> sqlx::Result<Option<Vec<String>>> {
    let json: Option<String> = row.try_get(column)?;
    let words = json.map(|json| serde_json::from_str(&json)).transpose();
    words.map_err(|error| undecodable(column, error))
}

fn undecodable(column: &str, error: serde_json::Error) -> sqlx::Error {
    sqlx::Error::ColumnDecode { index: format!("{column:?}"), source: error.into() }
}

pub(super) fn read_time(column: &str, micros: i64) -> Result<SystemTime, StoreError> {
    time(micros).ok_or_else(|| corrupt(&format_args!("column `{column}`")))
}
