//! Events that time brings about: searched for in bounded steps, each along an index.

use std::time::{Duration, SystemTime};

use serde_json::json as values;
use sqlx::{SqliteConnection, query, query_as};

use super::{SqliteKeyStore, error::failed, record::hex};
use crate::store::{
    ManageKeys as _, StoreError,
    port::{KeyTransaction as _, LAST_USES, LATE_USES, Notice, UNUSED},
    row::{Due, Position, Uuid, bounded, entries, json, micros},
};

const FIRST_USES: &str = "
select id, consumer_id, created_at, true
from (select key_id from api_key_first_uses order by key_id limit ?1) as used
join api_keys on id = used.key_id
order by id";

const FORGET_FIRST_USES: &str = "
delete from api_key_first_uses
where key_id in (select key_id from api_key_first_uses order by key_id limit ?1)";

// Of a rotated key, another one has taken the place.
const EXPIRING: &str = "
select id, consumer_id, expires_at, revoked_at is null and rotated_at is null and expires_at > ?4
from api_keys
where expires_at is not null and (expires_at, id) > (?1, ?2) and expires_at <= ?3
order by expires_at, id limit ?5";

const RETIRED_USED: &str = "
select
    id, consumer_id, expires_at,
    revoked_at is null and rotated_at is not null
        and coalesce(last_used_at >= max(rotated_at, expires_at - ?4), false)
        and not exists (
            select 1 from api_key_notices as told
            where told.key_id = id and notice = 'retired_used' and about = expires_at
        )
from api_keys left join api_key_usage as used on used.key_id = id
where expires_at is not null and (expires_at, id) > (?1, ?2) and expires_at <= ?3
order by expires_at, id limit ?5";

const UNUSED_KEYS: &str = "
select id, consumer_id, since, is_lasting and since <= ?2 and not exists (
    select 1 from api_key_notices as told
    where told.key_id = id and notice = 'unused' and about = since
)
from (
    select
        id, consumer_id, coalesce(last_used_at, created_at) as since,
        is_active and (expires_at is null or expires_at > ?3) as is_lasting
    from (
        select * from api_keys where revoked_at is null and id > ?1 order by id limit ?4
    ) as live
    left join api_key_usage as used on used.key_id = id
) as examined
order by id";

const BEGIN: &str = "
insert into api_key_notice_positions (notice, at, key_id) values (?1, ?2, ?3)
on conflict do nothing";

const POSITION: &str = "select at, key_id from api_key_notice_positions where notice = ?1";

const ADVANCE: &str = "
update api_key_notice_positions set at = ?2, key_id = ?3
where notice = ?1 and (at <> ?2 or key_id <> ?3)";

const TELL: &str = "
insert into api_key_notices (key_id, notice, about)
select unhex(told.value ->> 0), ?1, told.value ->> 1 from json_each(?2) as told where true
on conflict (key_id, notice) do update set about = excluded.about";

const FIRST_KEY: Uuid = Uuid::from_bytes([0; 16]);
const LAST_KEY: Uuid = Uuid::from_bytes([u8::MAX; 16]);

type Examined = (Uuid, String, i64, bool);

pub(super) async fn write(
    store: &SqliteKeyStore,
    notice: Notice,
    now: SystemTime,
    limit: usize,
) -> Result<usize, StoreError> {
    let mut transaction = store.begin().await?;
    let connection = transaction.connection()?;
    let now = micros(now)?;
    let keys = match (notice, notice.days_ahead()) {
        (Notice::FirstUse, _) => first_uses(connection, limit).await?,
        (_, Some((days, next))) => expiring(connection, notice, now, (days, next), limit).await?,
        (Notice::RetiredUsed, _) => retired_used(connection, now, limit).await?,
        _ => unused(connection, now, limit).await?,
    };
    transaction.write_audit(&entries(notice, &keys)).await?;
    transaction.commit().await?;
    Ok(keys.len())
}

async fn first_uses(
    connection: &mut SqliteConnection,
    limit: usize,
) -> Result<Vec<Due>, StoreError> {
    let rows = query_as(FIRST_USES).bind(bounded(limit)).fetch_all(&mut *connection).await;
    let forget = query(FORGET_FIRST_USES).bind(bounded(limit)).execute(connection);
    forget.await.map_err(failed)?;
    Ok(examined(rows.map_err(failed)?))
}

/// The position is the expiry up to which keys were told: a key whose expiry is set to something
/// nearer later is told by the next notice.
async fn expiring(
    connection: &mut SqliteConnection,
    notice: Notice,
    now: i64,
    (days, next): (u32, u32),
    limit: usize,
) -> Result<Vec<Due>, StoreError> {
    let (until, next) = (ahead(now, days), ahead(now, next));
    let begin = Position { at: next, key_id: FIRST_KEY };
    let from = position(connection, notice, begin).await?;
    let search = query_as(EXPIRING)
        .bind(from.at)
        .bind(from.key_id)
        .bind(until)
        .bind(next)
        .bind(bounded(limit));
    let keys = examined(search.fetch_all(&mut *connection).await.map_err(failed)?);
    let end = Position { at: until.max(from.at), key_id: LAST_KEY };
    advance(connection, notice, after(&keys, limit, end)).await?;
    Ok(keys)
}

async fn retired_used(
    connection: &mut SqliteConnection,
    now: i64,
    limit: usize,
) -> Result<Vec<Due>, StoreError> {
    let begin = Position { at: now.saturating_sub(length(LATE_USES)), key_id: FIRST_KEY };
    let from = position(connection, Notice::RetiredUsed, begin).await?;
    let from = if from.at < begin.at { begin } else { from };
    let search = query_as(RETIRED_USED)
        .bind(from.at)
        .bind(from.key_id)
        .bind(now.saturating_add(length(LAST_USES)))
        .bind(length(LAST_USES))
        .bind(bounded(limit));
    let keys = examined(search.fetch_all(&mut *connection).await.map_err(failed)?);
    advance(connection, Notice::RetiredUsed, after(&keys, limit, begin)).await?;
    tell(connection, Notice::RetiredUsed, &keys).await?;
    Ok(keys)
}

async fn unused(
    connection: &mut SqliteConnection,
    now: i64,
    limit: usize,
) -> Result<Vec<Due>, StoreError> {
    let begin = Position { at: 0, key_id: FIRST_KEY };
    let from = position(connection, Notice::Unused, begin).await?;
    let search = query_as(UNUSED_KEYS)
        .bind(from.key_id)
        .bind(now.saturating_sub(length(UNUSED)))
        .bind(now)
        .bind(bounded(limit));
    let keys = examined(search.fetch_all(&mut *connection).await.map_err(failed)?);
    let end = Position { at: 0, ..after(&keys, limit, begin) };
    advance(connection, Notice::Unused, end).await?;
    tell(connection, Notice::Unused, &keys).await?;
    Ok(keys)
}

/// Where the search goes on: after the last key, or at `end` if it was the last one.
fn after(keys: &[Due], limit: usize, end: Position) -> Position {
    match keys.last() {
        Some(last) if keys.len() >= limit => Position { at: last.about, key_id: last.key_id },
        _ => end,
    }
}

async fn position(
    connection: &mut SqliteConnection,
    notice: Notice,
    begin: Position,
) -> Result<Position, StoreError> {
    let begin = query(BEGIN).bind(notice.name()).bind(begin.at).bind(begin.key_id);
    begin.execute(&mut *connection).await.map_err(failed)?;
    let position = query_as(POSITION).bind(notice.name()).fetch_one(connection);
    let (at, key_id): (i64, Uuid) = position.await.map_err(failed)?;
    Ok(Position { at, key_id })
}

async fn advance(
    connection: &mut SqliteConnection,
    notice: Notice,
    to: Position,
) -> Result<(), StoreError> {
    let advance = query(ADVANCE).bind(notice.name()).bind(to.at).bind(to.key_id);
    advance.execute(connection).await.map_err(failed)?;
    Ok(())
}

async fn tell(
    connection: &mut SqliteConnection,
    notice: Notice,
    keys: &[Due],
) -> Result<(), StoreError> {
    let due = keys.iter().filter(|key| key.is_due);
    let due: Vec<_> = due.map(|key| values!([hex(key.key_id.as_bytes()), key.about])).collect();
    if !due.is_empty() {
        let tell = query(TELL).bind(notice.name()).bind(json(&due)?);
        tell.execute(connection).await.map_err(failed)?;
    }
    Ok(())
}

fn examined(rows: Vec<Examined>) -> Vec<Due> {
    let due = |(key_id, consumer_id, about, is_due)| Due { key_id, consumer_id, about, is_due };
    rows.into_iter().map(due).collect()
}

fn length(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

fn ahead(now: i64, days: u32) -> i64 {
    const DAY: i64 = 86_400_000_000;
    now.saturating_add(DAY.saturating_mul(days.into()))
}
