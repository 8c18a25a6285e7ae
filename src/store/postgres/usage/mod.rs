//! Writes last-use times and counts of uses; a row that the database refuses does not block the
//! others.

mod counts;
mod session;
mod statement;

use sqlx::PgConnection;

pub(super) use self::counts::delete as delete_counts;
use self::{
    session::{begin, end_with},
    statement::{Part, Row, execute},
};
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
        port::{Usage, UsageBatch},
        row::{batch_id, hour_rows, micros},
    },
    trace,
};

/// Keys per statement, which writes all of them or none.
const CHUNK: usize = 5000;
/// Maximum statements spent searching for rows that cannot be written. Two such rows in a chunk
/// take at most 50.
const MAX_SEARCH: usize = 200;

enum Written {
    Yes,
    /// None, because of this error in one row.
    No(sqlx::Error),
}

/// Writes all rows of `batch` that can be written. Rows locked by another session cause an error at
/// the end, so the caller retries them; invalid rows are skipped.
pub(super) async fn record(management: &Management, batch: &UsageBatch) -> Result<(), StoreError> {
    let row =
        |usage: &Usage| Some((uuid(usage.key_id), Timestamp(micros(usage.last_used_at).ok()?)));
    let rows: Vec<Row> =
        batch.last_uses.iter().filter_map(row).filter(|(_, at)| at.is_storable()).collect();
    let mut skipped = batch.last_uses.len() - rows.len();
    let mut searched = 0;
    let mut locked = None;
    let mut lease = None;
    let mut parts: Vec<(&[Row], bool)> = rows.chunks(CHUNK).rev().map(|it| (it, false)).collect();
    if let Some(counted) = &batch.counted {
        let hours = counts::storable(hour_rows(counted));
        let id = batch_id(counted);
        let last_uses = parts.pop().map(|(first, _)| first).unwrap_or_default();
        let whole = Part { last_uses, batch: Some(id), hours: &hours };
        if let Written::No(_) = write(management, &mut lease, whole, false).await? {
            parts.push((last_uses, true));
            locked = counts::search(management, &mut lease, id, &hours).await?;
        }
    }
    while let Some((last_uses, is_search)) = parts.pop() {
        let part = Part { last_uses, ..Part::default() };
        let error = match write(management, &mut lease, part, is_search).await? {
            Written::Yes => continue,
            Written::No(error) => error,
        };
        searched += 1;
        if last_uses.len() > 1 && searched < MAX_SEARCH {
            let (first, second) = last_uses.split_at(last_uses.len() / 2);
            parts.extend([(second, true), (first, true)]);
        } else if is_locked(&error) {
            locked = Some(error);
        } else {
            trace::debug!(?error, keys = last_uses.len(), "last-use times refused");
            skipped += last_uses.len();
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
    batch: &UsageBatch,
) -> Result<(), StoreError> {
    let row = |usage: &Usage| Ok((uuid(usage.key_id), Timestamp(micros(usage.last_used_at)?)));
    let rows: Vec<Row> = batch.last_uses.iter().map(row).collect::<Result<_, StoreError>>()?;
    let hours = batch.counted.as_ref().map(hour_rows).unwrap_or_default();
    let id = batch.counted.as_ref().map(batch_id);
    let part = Part { last_uses: &rows, batch: id, hours: &hours };
    execute(connection, part).await.map_err(failed)
}

/// Uses a transaction of its own. Keeps the connection for the next call.
async fn write(
    management: &Management,
    kept: &mut Option<Lease>,
    part: Part<'_>,
    is_search: bool,
) -> Result<Written, StoreError> {
    let mut lease = begin(management, kept, is_search).await?;
    let written = execute(&mut lease, part).await;
    let (end, written) = match written {
        Ok(()) => ("commit", Written::Yes),
        Err(error) if is_of_a_row(&error) || is_locked(&error) => ("rollback", Written::No(error)),
        Err(error) => return Err(failed(error)),
    };
    Ok(match end_with(end, lease, kept).await? {
        Some(error) => Written::No(error),
        None => written,
    })
}
