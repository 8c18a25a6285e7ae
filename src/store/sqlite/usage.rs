//! Writes last-use times and counts of uses; a row that the database refuses does not block the
//! others.

use std::time::SystemTime;

use sqlx::{SqliteConnection, SqlitePool, query, query_scalar, raw_sql};

use super::{
    error::{failed, is_of_a_row},
    lease::{Lease, WRITE},
    record::{hex, now},
};
use crate::{
    store::{
        StoreError,
        port::{Usage, UsageBatch, UseCounts},
        row::{BatchId, HourRow, batch_id, bounded, hour_rows, json, micros, micros_up},
    },
    trace,
};

/// Maximum statements spent searching for rows that cannot be written.
const MAX_SEARCH: usize = 200;

// The rows are one parameter, in JSON: pairs of id and time. Times that are not newer are not
// written.
const RECORD_USAGE: &str = "
insert into api_key_usage as stored (key_id, last_used_at)
select unhex(used.value ->> 0, '-') as id, used.value ->> 1
from json_each(?1) as used
where exists (select 1 from api_keys where api_keys.id = unhex(used.value ->> 0, '-'))
on conflict (key_id) do update set last_used_at = excluded.last_used_at
where stored.last_used_at < excluded.last_used_at";

// The batch is new if this returns a row.
const CLAIM: &str = concat!(
    "insert into api_key_usage_writers as stored (writer, sequence) values (?1, ?2)
    on conflict (writer) do update set sequence = excluded.sequence, at = ",
    now!(),
    " where stored.sequence < excluded.sequence
    returning true"
);

const ADD_TO_HOURS: &str = "
insert into api_key_usage_hourly as stored (
    key_id, hour, consumer_id, admitted, limited, forbidden, refused, units
)
select
    unhex(value ->> 0), value ->> 1, value ->> 3, value ->> '$[4][0]', value ->> '$[4][1]',
    value ->> '$[4][2]', value ->> '$[4][3]', value ->> '$[4][4]'
from json_each(?1) where true
on conflict (key_id, hour) do update set
    admitted = stored.admitted + excluded.admitted,
    limited = stored.limited + excluded.limited,
    forbidden = stored.forbidden + excluded.forbidden,
    refused = stored.refused + excluded.refused,
    units = stored.units + excluded.units";

const ADD_TO_DAYS: &str = "
insert into api_key_usage_daily as stored (
    key_id, day, consumer_id, admitted, limited, forbidden, refused, units
)
select
    unhex(value ->> 0), value ->> 2, value ->> 3, value ->> '$[4][0]', value ->> '$[4][1]',
    value ->> '$[4][2]', value ->> '$[4][3]', value ->> '$[4][4]'
from json_each(?1) where true
on conflict (key_id, day) do update set
    admitted = stored.admitted + excluded.admitted,
    limited = stored.limited + excluded.limited,
    forbidden = stored.forbidden + excluded.forbidden,
    refused = stored.refused + excluded.refused,
    units = stored.units + excluded.units";

const DELETE_HOURS: &str = "
delete from api_key_usage_hourly where (key_id, hour) in (
    select key_id, hour from api_key_usage_hourly where hour < ?1 order by hour limit ?2
)";

const DELETE_WRITERS: &str = "
delete from api_key_usage_writers where writer in (
    select writer from api_key_usage_writers where at < ?1 limit ?2
)";

/// Writes all rows of `batch` that can be written, usually in one transaction; invalid rows are
/// skipped.
pub(super) async fn record(pool: &SqlitePool, batch: &UsageBatch) -> Result<(), StoreError> {
    let pair = |usage: &Usage| Some((usage.key_id.to_string(), micros(usage.last_used_at).ok()?));
    let pairs: Vec<_> = batch.last_uses.iter().filter_map(pair).collect();
    let mut skipped = batch.last_uses.len() - pairs.len();
    let counted = batch.counted.as_ref().map(|counted| (batch_id(counted), hour_rows(counted)));
    if !is_written(pool, counted.as_ref(), &pairs).await? {
        if let Some((id, rows)) = &counted {
            add_what_can_be_added(pool, *id, rows).await?;
        }
        skipped += write_what_can_be_written(pool, &pairs).await?;
    }
    if skipped > 0 {
        trace::warn!(keys = skipped, "last-use times skipped");
    }
    Ok(())
}

/// Writes all of `batch` in the caller's transaction.
pub(super) async fn record_on(
    connection: &mut SqliteConnection,
    batch: &UsageBatch,
) -> Result<(), StoreError> {
    let pair = |usage: &Usage| Ok((usage.key_id.to_string(), micros(usage.last_used_at)?));
    let pairs = batch.last_uses.iter().map(pair).collect::<Result<Vec<_>, StoreError>>()?;
    let counted = batch.counted.as_ref().map(|counted| (batch_id(counted), hour_rows(counted)));
    write(connection, counted.as_ref(), &pairs).await?.map_err(failed)
}

type Counted<'a> = (BatchId, Vec<HourRow<'a>>);

/// Writes the batch unless one of its rows is refused.
async fn is_written(
    pool: &SqlitePool,
    counted: Option<&Counted<'_>>,
    pairs: &[(String, i64)],
) -> Result<bool, StoreError> {
    if counted.is_none() && pairs.is_empty() {
        return Ok(true);
    }
    let mut lease = Lease::begin(pool, WRITE).await?;
    match write(&mut lease, counted, pairs).await? {
        Ok(()) => {
            lease.commit().await?;
            Ok(true)
        }
        Err(error) => {
            lease.roll_back(None);
            if is_of_a_row(&error) { Ok(false) } else { Err(failed(error)) }
        }
    }
}

async fn write(
    connection: &mut SqliteConnection,
    counted: Option<&Counted<'_>>,
    pairs: &[(String, i64)],
) -> Result<sqlx::Result<()>, StoreError> {
    let pairs = json(&pairs)?;
    let hours = match counted {
        Some((id, rows)) => Some((*id, hours_json(rows)?)),
        None => None,
    };
    let write = async {
        if let Some((id, hours)) = hours
            && is_new(connection, id).await?
        {
            add(connection, hours).await?;
        }
        query(RECORD_USAGE).bind(pairs).execute(connection).await.map(drop)
    };
    Ok(write.await)
}

/// Returns how many last uses were skipped because the database refuses them.
async fn write_what_can_be_written(
    pool: &SqlitePool,
    pairs: &[(String, i64)],
) -> Result<usize, StoreError> {
    let (mut skipped, mut searched) = (0, 0);
    let mut parts = vec![pairs];
    while let Some(part) = parts.pop().filter(|part| !part.is_empty()) {
        if is_written(pool, None, part).await? {
            continue;
        }
        searched += 1;
        if part.len() > 1 && searched < MAX_SEARCH {
            let (first, second) = part.split_at(part.len() / 2);
            parts.extend([second, first]);
        } else {
            skipped += part.len();
        }
    }
    Ok(skipped)
}

/// Adds the counts that can be added, in one transaction, so that the batch counts once.
async fn add_what_can_be_added(
    pool: &SqlitePool,
    id: BatchId,
    rows: &[HourRow<'_>],
) -> Result<(), StoreError> {
    let mut lease = Lease::begin(pool, WRITE).await?;
    match add_by_parts(&mut lease, id, rows).await {
        Ok(skipped) => {
            lease.commit().await?;
            if skipped > 0 {
                trace::warn!(keys = skipped, "counts of uses skipped");
            }
            Ok(())
        }
        Err(error) => {
            lease.roll_back(None);
            Err(error)
        }
    }
}

async fn add_by_parts(
    connection: &mut SqliteConnection,
    id: BatchId,
    rows: &[HourRow<'_>],
) -> Result<usize, StoreError> {
    let (mut skipped, mut searched) = (0, 0);
    let is_new = is_new(connection, id).await.map_err(failed)?;
    let mut parts = if is_new { vec![rows] } else { Vec::new() };
    while let Some(part) = parts.pop() {
        raw_sql("savepoint part").execute(&mut *connection).await.map_err(failed)?;
        let end = match add(connection, hours_json(part)?).await {
            Ok(()) => "release part",
            Err(error) if is_of_a_row(&error) => {
                searched += 1;
                if part.len() > 1 && searched < MAX_SEARCH {
                    let (first, second) = part.split_at(part.len() / 2);
                    parts.extend([second, first]);
                } else {
                    skipped += part.len();
                }
                "rollback to part"
            }
            Err(error) => return Err(failed(error)),
        };
        raw_sql(end).execute(&mut *connection).await.map_err(failed)?;
    }
    Ok(skipped)
}

async fn is_new(
    connection: &mut SqliteConnection,
    (writer, sequence): BatchId,
) -> sqlx::Result<bool> {
    let claim = query_scalar::<_, bool>(CLAIM).bind(writer).bind(sequence);
    Ok(claim.fetch_optional(connection).await?.is_some())
}

async fn add(connection: &mut SqliteConnection, hours: String) -> sqlx::Result<()> {
    query(ADD_TO_HOURS).bind(hours.clone()).execute(&mut *connection).await?;
    query(ADD_TO_DAYS).bind(hours).execute(connection).await.map(drop)
}

fn hours_json(rows: &[HourRow<'_>]) -> Result<String, StoreError> {
    let row = |row: &HourRow<'_>| {
        let UseCounts { admitted, limited, forbidden, refused, units } = row.counts;
        let counts = (admitted, limited, forbidden, refused, units);
        (hex(row.key_id.as_bytes()), row.hour, row.day, row.consumer_id.to_owned(), counts)
    };
    json(&rows.iter().map(row).collect::<Vec<_>>())
}

/// Deletes at most `limit` rows: old hours, and writers that wrote nothing for long.
pub(super) async fn delete_counts(
    connection: &mut SqliteConnection,
    hours_before: SystemTime,
    writers_before: SystemTime,
    limit: usize,
) -> Result<usize, StoreError> {
    let limit = bounded(limit);
    let hours = query(DELETE_HOURS).bind(micros_up(hours_before)?).bind(limit);
    let hours = hours.execute(&mut *connection).await.map_err(failed)?.rows_affected();
    let rest = limit.saturating_sub_unsigned(hours);
    let writers = query(DELETE_WRITERS).bind(micros_up(writers_before)?).bind(rest);
    let writers = writers.execute(connection).await.map_err(failed)?.rows_affected();
    Ok(usize::try_from(hours + writers).unwrap_or(usize::MAX))
}
