//! Reads the usage ledger. Its statements are built per query and not cached, as those of
//! [`list`](super::list).

use std::time::SystemTime;

use sqlx::{PgConnection, Postgres, QueryBuilder, Row as _, postgres::PgRow};

use super::{
    error::failed,
    record::{read_time, uuid},
    timestamp::Timestamp,
};
use crate::store::{
    BucketWidth, StoreError, UsageBucket, UsageCursor, UsageQuery,
    port::{HourlyUse, UseCounts},
    row::{Uuid, bounded, key_id, micros_up},
};

type Sql = QueryBuilder<Postgres>;

pub(super) async fn buckets(
    connection: &mut PgConnection,
    query: &UsageQuery,
) -> Result<Vec<UsageBucket>, StoreError> {
    let (table, begin) = match query.width {
        BucketWidth::Hour => ("api_key_usage_hourly", "hour"),
        BucketWidth::Day => ("api_key_usage_daily", "day"),
    };
    let mut sql = Sql::new("select ");
    sql.push(begin).push(
        " as begin, sum(admitted)::bigint as admitted, sum(limited)::bigint as limited, \
         sum(forbidden)::bigint as forbidden, sum(refused)::bigint as refused, \
         sum(units)::bigint as units from ",
    );
    sql.push(table).push(" where ").push(begin).push(" >= ");
    sql.push_bind(Timestamp(micros_up(query.from)?));
    sql.push(" and ").push(begin).push(" < ").push_bind(Timestamp(micros_up(query.to)?));
    if let Some(id) = query.key_id {
        sql.push(" and key_id = ").push_bind(uuid(id));
    }
    if let Some(consumer_id) = &query.consumer_id {
        sql.push(" and consumer_id = ").push_bind(consumer_id.clone());
    }
    sql.push(" group by ").push(begin).push(" order by ").push(begin);
    sql.push(" limit ").push_bind(bounded(query.width.most()));
    let rows = sql.build().persistent(false).fetch_all(connection).await.map_err(failed)?;
    rows.iter().map(|row| Ok(UsageBucket::new(time(row, "begin")?, counts(row)?))).collect()
}

pub(super) async fn hours(
    connection: &mut PgConnection,
    after: UsageCursor,
    end: SystemTime,
    limit: usize,
) -> Result<Vec<HourlyUse>, StoreError> {
    let mut sql = Sql::new(
        "select key_id, consumer_id, hour, admitted, limited, forbidden, refused, units \
         from api_key_usage_hourly where (hour, key_id) > (",
    );
    // No key has the lowest id.
    sql.push_bind(Timestamp(micros_up(after.hour)?)).push(", ");
    sql.push_bind(after.key_id.map_or(Uuid::MIN, uuid));
    sql.push(") and hour < ").push_bind(Timestamp(micros_up(end)?));
    sql.push(" order by hour, key_id limit ").push_bind(bounded(limit));
    let rows = sql.build().persistent(false).fetch_all(connection).await.map_err(failed)?;
    rows.iter().map(hour).collect()
}

fn hour(row: &PgRow) -> Result<HourlyUse, StoreError> {
    let id = key_id(row.try_get("key_id").map_err(failed)?);
    let consumer_id = row.try_get("consumer_id").map_err(failed)?;
    Ok(HourlyUse::new(id, consumer_id, time(row, "hour")?, counts(row)?))
}

fn time(row: &PgRow, column: &str) -> Result<SystemTime, StoreError> {
    read_time(column, row.try_get(column).map_err(failed)?)
}

fn counts(row: &PgRow) -> Result<UseCounts, StoreError> {
    let count = |column| row.try_get(column).map_err(failed);
    Ok(UseCounts::new(
        count("admitted")?,
        count("limited")?,
        count("forbidden")?,
        count("refused")?,
        count("units")?,
    ))
}
