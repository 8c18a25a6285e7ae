//! Writes last-use times; a row that the database refuses does not block the others.

use sqlx::{PgConnection, query, raw_sql};

use super::{
    error::{failed, is_locked, is_of_a_row},
    lease::Lease,
    management::Management,
    record::uuid,
    timestamp::Timestamp,
};
use crate::{
    store::{
        StoreError,
        port::Usage,
        row::{Uuid, micros},
    },
    trace,
};

/// Keys per statement, which writes all of them or none.
const CHUNK: usize = 5000;
/// Maximum statements spent searching for rows that cannot be written. Two such rows in a chunk
/// take at most 50.
const MAX_SEARCH: usize = 200;

// The search is for rows that stay locked, not for those that another node releases soon.
const SEARCH: &str = "set local lock_timeout = '50ms'";

// Rows are locked in id order, so two nodes that write the same keys queue up instead of
// deadlocking. Times that are not newer are not written.
const RECORD_USAGE: &str = "
insert into api_key_usage as stored (key_id, last_used_at)
select used.id, used.at
from unnest($1, $2) as used (id, at)
where exists (select from api_keys where api_keys.id = used.id)
order by used.id
on conflict (key_id) do update set last_used_at = excluded.last_used_at
where stored.last_used_at < excluded.last_used_at";

type Row = (Uuid, Timestamp);

enum Written {
    Yes,
    /// None, because of this error in one row.
    No(sqlx::Error),
}

/// Writes all rows of `batch` that can be written. Rows locked by another session cause an error at
/// the end, so the caller retries them; invalid rows are skipped.
pub(super) async fn record(management: &Management, batch: &[Usage]) -> Result<(), StoreError> {
    let row =
        |usage: &Usage| Some((uuid(usage.key_id), Timestamp(micros(usage.last_used_at).ok()?)));
    let rows: Vec<Row> = batch.iter().filter_map(row).filter(|(_, at)| at.is_storable()).collect();
    let mut skipped = batch.len() - rows.len();
    let mut searched = 0;
    let mut locked = None;
    let mut lease = None;
    let mut parts: Vec<(&[Row], bool)> = rows.chunks(CHUNK).rev().map(|it| (it, false)).collect();
    while let Some((part, is_search)) = parts.pop() {
        let error = match write(management, &mut lease, part, is_search).await? {
            Written::Yes => continue,
            Written::No(error) => error,
        };
        searched += 1;
        if part.len() > 1 && searched < MAX_SEARCH {
            let (first, second) = part.split_at(part.len() / 2);
            parts.extend([(second, true), (first, true)]);
        } else if is_locked(&error) {
            locked = Some(error);
        } else {
            trace::debug!(?error, keys = part.len(), "last-use times refused");
            skipped += part.len();
        }
    }
    if let Some(lease) = lease {
        lease.release();
    }
    if skipped > 0 {
        trace::warn!(keys = skipped, "last-use times skipped");
    }
    locked.map_or(Ok(()), |error| Err(failed(error)))
}

/// Writes all of `batch` with one statement, in the caller's transaction.
pub(super) async fn record_on(
    connection: &mut PgConnection,
    batch: &[Usage],
) -> Result<(), StoreError> {
    let row = |usage: &Usage| Ok((uuid(usage.key_id), Timestamp(micros(usage.last_used_at)?)));
    let rows: Vec<Row> = batch.iter().map(row).collect::<Result<_, StoreError>>()?;
    let (ids, times): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
    query(RECORD_USAGE).bind(ids).bind(times).execute(connection).await.map_err(failed)?;
    Ok(())
}

/// Uses a transaction of its own. Keeps the connection for the next call.
async fn write(
    management: &Management,
    kept: &mut Option<Lease>,
    rows: &[Row],
    is_search: bool,
) -> Result<Written, StoreError> {
    let mut lease = match kept.take() {
        Some(mut lease) => {
            management.begin_on(&mut lease, |statements| &statements.begin_usage).await?;
            lease
        }
        // Not counted as management: a flush is one statement and must not wait for management.
        None => management.begin_unbounded(|statements| &statements.begin_usage).await?,
    };
    if is_search {
        raw_sql(SEARCH).execute(&mut *lease).await.map_err(failed)?;
    }
    let (ids, times): (Vec<_>, Vec<_>) = rows.iter().copied().unzip();
    let written = query(RECORD_USAGE).bind(ids).bind(times).execute(&mut *lease).await;
    let (end, written) = match written {
        Ok(_) => ("commit", Written::Yes),
        Err(error) if is_of_a_row(&error) || is_locked(&error) => ("rollback", Written::No(error)),
        Err(error) => return Err(failed(error)),
    };
    match raw_sql(end).execute(&mut *lease).await {
        Ok(_) => {}
        // A deferred constraint failed at commit, which ended the transaction.
        Err(error) if is_of_a_row(&error) => {
            *kept = Some(lease);
            return Ok(Written::No(error));
        }
        Err(error) => return Err(failed(error)),
    }
    *kept = Some(lease);
    Ok(written)
}
