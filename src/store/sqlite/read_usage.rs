//! Reads the usage ledger. Queries name their index, as those of [`list`](super::list).

use std::time::SystemTime;

use sqlx::{QueryBuilder, Row as _, Sqlite, SqliteConnection, sqlite::SqliteRow};

use super::{
    error::failed,
    record::{read_time, uuid},
};
use crate::store::{
    BucketWidth, StoreError, UsageBucket, UsageCursor, UsageQuery,
    port::{HourlyUse, UseCounts},
    row::{Uuid, bounded, key_id, micros_up},
};

type Sql = QueryBuilder<Sqlite>;

pub(super) async fn buckets(
    connection: &mut SqliteConnection,
    query: &UsageQuery,
) -> Result<Vec<UsageBucket>, StoreError> {
    let (table, begin) = match query.width {
        BucketWidth::Hour => ("api_key_usage_hourly", "hour"),
        BucketWidth::Day => ("api_key_usage_daily", "day"),
    };
    let mut sql = Sql::new("select ");
    sql.push(begin).push(
        " as begin, sum(admitted) as admitted, sum(limited) as limited, \
         sum(forbidden) as forbidden, sum(refused) as refused, sum(units) as units from ",
    );
    sql.push(table);
    match (query.key_id, &query.consumer_id) {
        // The primary key.
        (Some(_), _) => {}
        (None, Some(_)) => {
            sql.push(" indexed by ").push(table).push("_of_consumer");
        }
        (None, None) => {
            sql.push(" indexed by ").push(table).push("_by_").push(begin);
        }
    }
    sql.push(" where ").push(begin).push(" >= ").push_bind(micros_up(query.from)?);
    sql.push(" and ").push(begin).push(" < ").push_bind(micros_up(query.to)?);
    if let Some(id) = query.key_id {
        sql.push(" and key_id = ").push_bind(uuid(id));
    }
    if let Some(consumer_id) = &query.consumer_id {
        // Without the operator `+`, SQLite may skip the primary key for it.
        sql.push(if query.key_id.is_some() {
            " and +consumer_id = "
        } else {
            " and consumer_id = "
        });
        sql.push_bind(consumer_id.clone());
    }
    sql.push(" group by ").push(begin).push(" order by ").push(begin);
    sql.push(" limit ").push_bind(bounded(query.width.most()));
    let rows = sql.build().fetch_all(connection).await.map_err(failed)?;
    rows.iter().map(|row| Ok(UsageBucket::new(time(row, "begin")?, counts(row)?))).collect()
}

pub(super) async fn hours(
    connection: &mut SqliteConnection,
    after: UsageCursor,
    end: SystemTime,
    limit: usize,
) -> Result<Vec<HourlyUse>, StoreError> {
    let mut sql = Sql::new(
        "select key_id, consumer_id, hour, admitted, limited, forbidden, refused, units \
         from api_key_usage_hourly indexed by api_key_usage_hourly_by_hour where (hour, key_id) > (",
    );
    // No key has the lowest id.
    sql.push_bind(micros_up(after.hour)?).push(", ");
    sql.push_bind(after.key_id.map_or(Uuid::from_bytes([0; 16]), uuid));
    sql.push(") and hour < ").push_bind(micros_up(end)?);
    sql.push(" order by hour, key_id limit ").push_bind(bounded(limit));
    let rows = sql.build().fetch_all(connection).await.map_err(failed)?;
    rows.iter().map(hour).collect()
}

fn hour(row: &SqliteRow) -> Result<HourlyUse, StoreError> {
    let id = key_id(row.try_get("key_id").map_err(failed)?);
    let consumer_id = row.try_get("consumer_id").map_err(failed)?;
    Ok(HourlyUse::new(id, consumer_id, time(row, "hour")?, counts(row)?))
}

fn time(row: &SqliteRow, column: &str) -> Result<SystemTime, StoreError> {
    read_time(column, row.try_get(column).map_err(failed)?)
}

fn counts(row: &SqliteRow) -> Result<UseCounts, StoreError> {
    let count = |column| row.try_get(column).map_err(failed);
    Ok(UseCounts::new(
        count("admitted")?,
        count("limited")?,
        count("forbidden")?,
        count("refused")?,
        count("units")?,
    ))
}
