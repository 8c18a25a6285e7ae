//! Events that time brings about: searched for in bounded steps, each along an index.

use std::time::{Duration, SystemTime};

use sqlx::{PgConnection, query, query_as};

use super::{PgKeyStore, error::failed, timestamp::Timestamp};
use crate::store::{
    ManageKeys as _, StoreError,
    port::{KeyTransaction as _, LAST_USES, LATE_USES, Notice, UNUSED},
    row::{Due, Position, Uuid, bounded, entries, micros},
};

const FIRST_USES: &str = "
with used as (
    delete from api_key_first_uses where key_id = any(array(
        select key_id from api_key_first_uses order by key_id limit $1 for update skip locked
    ))
    returning key_id
)
select id, consumer_id, created_at, true from used join api_keys on id = used.key_id order by id";

// Of a rotated key, another one has taken the place.
const EXPIRING: &str = "
select id, consumer_id, expires_at, revoked_at is null and rotated_at is null and expires_at > $4
from api_keys
where expires_at is not null and (expires_at, id) > ($1, $2) and expires_at <= $3
order by expires_at, id limit $5";

const RETIRED_USED: &str = "
select
    id, consumer_id, expires_at,
    revoked_at is null and rotated_at is not null
        and coalesce(
            last_used_at >= greatest(rotated_at, expires_at - $4 * interval '1 microsecond'), false
        )
        and not exists (
            select from api_key_notices as told
            where told.key_id = id and notice = 'retired_used' and about = expires_at
        )
from api_keys left join api_key_usage as used on used.key_id = id
where expires_at is not null and (expires_at, id) > ($1, $2) and expires_at <= $3
order by expires_at, id limit $5";

const UNUSED_KEYS: &str = "
select id, consumer_id, since, is_lasting and since <= $2 and not exists (
    select from api_key_notices as told
    where told.key_id = id and notice = 'unused' and about = since
)
from (
    select
        id, consumer_id, coalesce(last_used_at, created_at) as since,
        is_active and (expires_at is null or expires_at > $3) as is_lasting
    from (
        select * from api_keys where revoked_at is null and id > $1 order by id limit $4
    ) as live
    left join api_key_usage as used on used.key_id = id
) as examined
order by id";

const BEGIN: &str = "
insert into api_key_notice_positions (notice, at, key_id) values ($1, $2, $3)
on conflict do nothing";

// Locked until the transaction ends: two nodes do not search the same keys.
const POSITION: &str =
    "select at, key_id from api_key_notice_positions where notice = $1 for update";

const ADVANCE: &str = "
update api_key_notice_positions set at = $2, key_id = $3
where notice = $1 and (at, key_id) is distinct from ($2, $3)";

const TELL: &str = "
insert into api_key_notices (key_id, notice, about)
select id, $1, about from unnest($2::uuid[], $3::timestamptz[]) as told (id, about) order by id
on conflict (key_id, notice) do update set about = excluded.about";

type Examined = (Uuid, String, Timestamp, bool);

pub(super) async fn write(
    store: &PgKeyStore,
    notice: Notice,
    now: SystemTime,
    limit: usize,
) -> Result<usize, StoreError> {
    let mut transaction = store.begin().await?;
    let (connection, _) = transaction.parts()?;
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

async fn first_uses(connection: &mut PgConnection, limit: usize) -> Result<Vec<Due>, StoreError> {
    let rows = query_as(FIRST_USES).bind(bounded(limit)).fetch_all(connection).await;
    Ok(examined(rows.map_err(failed)?))
}

/// The position is the expiry up to which keys were told: a key whose expiry is set to something
/// nearer later is told by the next notice.
async fn expiring(
    connection: &mut PgConnection,
    notice: Notice,
    now: i64,
    (days, next): (u32, u32),
    limit: usize,
) -> Result<Vec<Due>, StoreError> {
    let (until, next) = (ahead(now, days), ahead(now, next));
    let begin = Position { at: next, key_id: Uuid::MIN };
    let from = position(connection, notice, begin).await?;
    let search = query_as(EXPIRING)
        .bind(Timestamp(from.at))
        .bind(from.key_id)
        .bind(Timestamp(until))
        .bind(Timestamp(next))
        .bind(bounded(limit));
    let keys = examined(search.fetch_all(&mut *connection).await.map_err(failed)?);
    let end = Position { at: until.max(from.at), key_id: Uuid::MAX };
    advance(connection, notice, after(&keys, limit, end)).await?;
    Ok(keys)
}

async fn retired_used(
    connection: &mut PgConnection,
    now: i64,
    limit: usize,
) -> Result<Vec<Due>, StoreError> {
    let begin = Position { at: now.saturating_sub(length(LATE_USES)), key_id: Uuid::MIN };
    let from = position(connection, Notice::RetiredUsed, begin).await?;
    let from = if from.at < begin.at { begin } else { from };
    let search = query_as(RETIRED_USED)
        .bind(Timestamp(from.at))
        .bind(from.key_id)
        .bind(Timestamp(now.saturating_add(length(LAST_USES))))
        .bind(length(LAST_USES))
        .bind(bounded(limit));
    let keys = examined(search.fetch_all(&mut *connection).await.map_err(failed)?);
    advance(connection, Notice::RetiredUsed, after(&keys, limit, begin)).await?;
    tell(connection, Notice::RetiredUsed, &keys).await?;
    Ok(keys)
}

async fn unused(
    connection: &mut PgConnection,
    now: i64,
    limit: usize,
) -> Result<Vec<Due>, StoreError> {
    let begin = Position { at: 0, key_id: Uuid::MIN };
    let from = position(connection, Notice::Unused, begin).await?;
    let search = query_as(UNUSED_KEYS)
        .bind(from.key_id)
        .bind(Timestamp(now.saturating_sub(length(UNUSED))))
        .bind(Timestamp(now))
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
    connection: &mut PgConnection,
    notice: Notice,
    begin: Position,
) -> Result<Position, StoreError> {
    let begin = query(BEGIN).bind(notice.name()).bind(Timestamp(begin.at)).bind(begin.key_id);
    begin.execute(&mut *connection).await.map_err(failed)?;
    let position = query_as(POSITION).bind(notice.name()).fetch_one(connection);
    let (at, key_id): (Timestamp, Uuid) = position.await.map_err(failed)?;
    Ok(Position { at: at.0, key_id })
}

async fn advance(
    connection: &mut PgConnection,
    notice: Notice,
    to: Position,
) -> Result<(), StoreError> {
    let advance = query(ADVANCE).bind(notice.name()).bind(Timestamp(to.at)).bind(to.key_id);
    advance.execute(connection).await.map_err(failed)?;
    Ok(())
}

async fn tell(
    connection: &mut PgConnection,
    notice: Notice,
    keys: &[Due],
) -> Result<(), StoreError> {
    let due = keys.iter().filter(|key| key.is_due);
    let (ids, about): (Vec<_>, Vec<_>) = due.map(|key| (key.key_id, Timestamp(key.about))).unzip();
    if !ids.is_empty() {
        let tell = query(TELL).bind(notice.name()).bind(ids).bind(about);
        tell.execute(connection).await.map_err(failed)?;
    }
    Ok(())
}

fn examined(rows: Vec<Examined>) -> Vec<Due> {
    let due = |(key_id, consumer_id, Timestamp(about), is_due)| Due {
        key_id,
        consumer_id,
        about,
        is_due,
    };
    rows.into_iter().map(due).collect()
}

fn length(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

fn ahead(now: i64, days: u32) -> i64 {
    const DAY: i64 = 86_400_000_000;
    now.saturating_add(DAY.saturating_mul(days.into()))
}
