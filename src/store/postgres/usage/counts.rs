//! Counts of uses that the database refuses in part, and their deletion.

use std::time::SystemTime;

use sqlx::{PgConnection, query, query_scalar, raw_sql};

use super::{
    session::{begin, end_with},
    statement::{Part, execute},
};
use crate::{
    store::{
        StoreError,
        postgres::{
            error::{failed, is_locked, is_of_a_row},
            lease::Lease,
            management::Management,
            timestamp::Timestamp,
        },
        row::{BatchId, HourRow, bounded, micros_up},
    },
    trace,
};

/// Maximum statements spent searching for counts that cannot be added.
const MAX_SEARCH: usize = 200;

// The batch is new if this returns a row.
const CLAIM: &str = "
insert into api_key_usage_writers as stored (writer, sequence) values ($1, $2)
on conflict (writer) do update set sequence = excluded.sequence, at = clock_timestamp()
where stored.sequence < excluded.sequence
returning true";

const DELETE_HOURS: &str = "
delete from api_key_usage_hourly as stored
using (
    select key_id, hour from api_key_usage_hourly where hour < $1
    order by hour limit $2
    for update skip locked
) as old
where (stored.key_id, stored.hour) = (old.key_id, old.hour)";

const DELETE_WRITERS: &str = "
delete from api_key_usage_writers where writer = any(array(
    select writer from api_key_usage_writers where at < $1
    limit $2
    for update skip locked
))";

/// The rows that PostgreSQL can store: those with times in its range, and text without NUL.
pub(super) fn storable(rows: Vec<HourRow<'_>>) -> Vec<HourRow<'_>> {
    let is_storable = |row: &HourRow<'_>| {
        Timestamp(row.hour).is_storable()
            && Timestamp(row.day).is_storable()
            && !row.consumer_id.contains('\0')
    };
    rows.into_iter().filter(is_storable).collect()
}

/// Adds the counts that can be added, in one transaction, so that the batch counts once. Returns the
/// error of a locked row, for which nothing was added.
pub(super) async fn search(
    management: &Management,
    kept: &mut Option<Lease>,
    batch: BatchId,
    rows: &[HourRow<'_>],
) -> Result<Option<sqlx::Error>, StoreError> {
    let mut lease = begin(management, kept, true).await?;
    match add(&mut lease, batch, rows).await {
        Ok(skipped) => {
            if skipped > 0 {
                trace::warn!(keys = skipped, "counts of uses skipped");
            }
            end_with("commit", lease, kept).await
        }
        Err(error) if is_locked(&error) => {
            end_with("rollback", lease, kept).await?;
            Ok(Some(error))
        }
        Err(error) => Err(failed(error)),
    }
}

/// Returns how many rows were skipped because the database refuses them.
async fn add(
    connection: &mut PgConnection,
    (writer, sequence): BatchId,
    rows: &[HourRow<'_>],
) -> sqlx::Result<usize> {
    let claim = query_scalar::<_, bool>(CLAIM).bind(writer).bind(sequence);
    if claim.fetch_optional(&mut *connection).await?.is_none() {
        return Ok(0);
    }
    let (mut skipped, mut searched) = (0, 0);
    let mut parts = vec![rows];
    while let Some(part) = parts.pop() {
        raw_sql("savepoint part").execute(&mut *connection).await?;
        let hours = Part { hours: part, ..Part::default() };
        match execute(&mut *connection, hours).await {
            Ok(()) => {
                raw_sql("release savepoint part").execute(&mut *connection).await?;
            }
            Err(error) if is_of_a_row(&error) => {
                raw_sql("rollback to savepoint part").execute(&mut *connection).await?;
                searched += 1;
                if part.len() > 1 && searched < MAX_SEARCH {
                    let (first, second) = part.split_at(part.len() / 2);
                    parts.extend([second, first]);
                } else {
                    trace::debug!(?error, keys = part.len(), "counts of uses refused");
                    skipped += part.len();
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(skipped)
}

/// Deletes at most `limit` rows: old hours, and writers that wrote nothing for long.
pub(crate) async fn delete(
    connection: &mut PgConnection,
    hours_before: SystemTime,
    writers_before: SystemTime,
    limit: usize,
) -> Result<usize, StoreError> {
    let limit = bounded(limit);
    let hours = query(DELETE_HOURS).bind(Timestamp(micros_up(hours_before)?)).bind(limit);
    let hours = hours.execute(&mut *connection).await.map_err(failed)?.rows_affected();
    let rest = limit.saturating_sub_unsigned(hours);
    let writers = query(DELETE_WRITERS).bind(Timestamp(micros_up(writers_before)?)).bind(rest);
    let writers = writers.execute(&mut *connection).await.map_err(failed)?.rows_affected();
    Ok(usize::try_from(hours + writers).unwrap_or(usize::MAX))
}
