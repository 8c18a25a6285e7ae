//! Pages of keys and audit events. Queries name their index, because SQLite knows little about how
//! common a value is.

use sqlx::{QueryBuilder, Row as _, Sqlite, SqliteConnection, sqlite::SqliteRow};
use tokio::task::yield_now;

use super::{
    error::failed,
    record::{columns, now, read, read_time, record_of, uuid},
};
use crate::{
    record::{KeyId, KeyStatus},
    store::{
        EventPage, EventQuery, InvalidRow, KeyPage, KeyQuery, ListedKey, StoreError,
        StoreErrorKind,
        listing::{Index, KeyRows, Listed, WINDOW, size},
        page::{CHUNK, ROWS_PER_TURN},
        row::{Event, EventRows, TEXTS, Uuid, bounded, key_id, micros_up},
    },
};

type Sql = QueryBuilder<Sqlite>;

pub(super) async fn keys(
    connection: &mut SqliteConnection,
    query: &KeyQuery,
) -> Result<KeyPage, StoreError> {
    let size = size(query);
    if size == 0 {
        return Ok(KeyPage::default());
    }
    let index = Index::of(query);
    let mut sql = edge(index, query.after);
    let row = sql.build().fetch_optional(&mut *connection).await.map_err(failed)?;
    let edge = row.map(|row| row.try_get::<Uuid, _>(0)).transpose().map_err(failed)?;
    let edge = edge.map(key_id);

    // Read in small chunks: a page ends at its byte limit.
    let mut page = KeyRows::new(size);
    let mut after = query.after;
    loop {
        let mut sql = keys_between(index, query, after, edge)?;
        sql.push(" limit ").push_bind(bounded((size + 1).min(CHUNK)));
        let rows = sql.build().fetch_all(&mut *connection).await.map_err(failed)?;
        for (index, row) in rows.iter().enumerate() {
            if index % ROWS_PER_TURN == 0 {
                yield_now().await;
            }
            let id = key_id(row.try_get("id").map_err(failed)?);
            if !page.add(id, listed(row)?) {
                return Ok(page.finish(edge));
            }
        }
        if rows.len() < CHUNK {
            return Ok(page.finish(edge));
        }
        after = page.last();
    }
}

fn listed(row: &SqliteRow) -> Result<Listed, StoreError> {
    match key(row) {
        Err(error) if error.kind() == StoreErrorKind::Corrupt => Ok(Err(as_text(row, &error)?)),
        key => key.map(Ok),
    }
}

fn as_text(row: &SqliteRow, error: &StoreError) -> Result<InvalidRow, StoreError> {
    match read(row) {
        Ok(columns) => Ok(columns.as_text(error)),
        // A column has another type: show the remaining ones.
        Err(_) => {
            let id = key_id(row.try_get("id").map_err(failed)?);
            let text = |column| row.try_get::<Option<String>, _>(column).unwrap_or(None);
            Ok(InvalidRow::new(id, error, TEXTS.map(|column| (column, text(column)))))
        }
    }
}

fn key(row: &SqliteRow) -> Result<ListedKey, StoreError> {
    let at: Option<i64> = row.try_get("last_used_at").map_err(failed)?;
    let at = at.map(|at| read_time("last_used_at", at)).transpose()?;
    Ok(ListedKey::new(record_of(row)?, at))
}

/// Selects the last key of the window after `after`, if the window is full.
fn edge(index: Index<'_>, after: Option<KeyId>) -> Sql {
    let id = id_of(index);
    let mut sql = Sql::new("select ");
    sql.push(id);
    window(&mut sql, index, after, None);
    sql.push(" order by ").push(id).push(" desc limit 1 offset ");
    sql.push_bind(bounded(WINDOW - 1));
    sql
}

/// Selects the matching keys from `edge` on.
fn keys_between(
    index: Index<'_>,
    query: &KeyQuery,
    after: Option<KeyId>,
    edge: Option<KeyId>,
) -> Result<Sql, StoreError> {
    let mut sql = Sql::new(concat!(
        "select ",
        columns!(),
        ", (select last_used_at from api_key_usage where key_id = listed.id) as last_used_at"
    ));
    window(&mut sql, index, after, edge);
    filter(&mut sql, query)?;
    sql.push(" order by ").push(id_of(index)).push(" desc");
    Ok(sql)
}

const fn id_of(index: Index<'_>) -> &'static str {
    match index {
        Index::Scope(_) | Index::Tag(_) => "found.key_id",
        _ => "listed.id",
    }
}

/// The part of the index between two keys, excluding `after` and including `edge`.
fn window(sql: &mut Sql, index: Index<'_>, after: Option<KeyId>, edge: Option<KeyId>) {
    let (from, value) = match index {
        Index::All => (" from api_keys as listed where true", None),
        Index::Live => {
            (" from api_keys as listed indexed by api_keys_live where revoked_at is null", None)
        }
        Index::Revoked => (
            " from api_keys as listed indexed by api_keys_revoked where revoked_at is not null",
            None,
        ),
        Index::Inactive => (
            " from api_keys as listed indexed by api_keys_inactive \
             where revoked_at is null and not is_active",
            None,
        ),
        Index::Beginning => (
            " from api_keys as listed indexed by api_keys_beginning \
             where revoked_at is null and not_before is not null",
            None,
        ),
        Index::Consumer(consumer_id) => (
            " from api_keys as listed indexed by api_keys_of_consumer where consumer_id = ",
            Some(consumer_id),
        ),
        Index::LiveOfConsumer(consumer_id) => (
            " from api_keys as listed indexed by api_keys_live_of_consumer \
             where revoked_at is null and consumer_id = ",
            Some(consumer_id),
        ),
        Index::Prefix(key_prefix) => (
            " from api_keys as listed indexed by api_keys_of_prefix where key_prefix = ",
            Some(key_prefix),
        ),
        Index::LiveOfPrefix(key_prefix) => (
            " from api_keys as listed indexed by api_keys_live_of_prefix \
             where revoked_at is null and key_prefix = ",
            Some(key_prefix),
        ),
        // SQLite does not reorder a cross join.
        Index::Scope(scope) => (
            " from api_key_scopes as found cross join api_keys as listed \
             on listed.id = found.key_id where found.scope = ",
            Some(scope),
        ),
        Index::Tag(tag) => (
            " from api_key_tags as found cross join api_keys as listed \
             on listed.id = found.key_id where found.tag = ",
            Some(tag),
        ),
    };
    sql.push(from);
    if let Some(value) = value {
        sql.push_bind(value.to_owned());
    }
    let id = id_of(index);
    if let Some(after) = after {
        sql.push(" and ").push(id).push(" < ").push_bind(uuid(after));
    }
    if let Some(edge) = edge {
        sql.push(" and ").push(id).push(" >= ").push_bind(uuid(edge));
    }
}

fn filter(sql: &mut Sql, query: &KeyQuery) -> Result<(), StoreError> {
    if let Some(consumer_id) = &query.consumer_id {
        sql.push(" and consumer_id = ").push_bind(consumer_id.clone());
    }
    if let Some(key_prefix) = &query.key_prefix {
        sql.push(" and key_prefix = ").push_bind(key_prefix.clone());
    }
    if let Some(scope) = &query.scope {
        sql.push(" and exists (select 1 from json_each(scopes) where value = ");
        sql.push_bind(scope.as_str().to_owned()).push(")");
    }
    if let Some(tag) = &query.tag {
        sql.push(" and exists (select 1 from json_each(tags) where value = ");
        sql.push_bind(tag.clone()).push(")");
    }
    if let Some(status) = query.status {
        sql.push(has_status(status));
    }
    if let Some(end) = query.expires_before {
        sql.push(" and expires_at < ").push_bind(micros_up(end)?);
    }
    if let Some(since) = query.unused_since {
        let since = micros_up(since)?;
        sql.push(" and created_at < ").push_bind(since);
        sql.push(" and not exists (select 1 from api_key_usage as used where used.key_id = ");
        sql.push("listed.id and used.last_used_at >= ").push_bind(since).push(")");
    }
    Ok(())
}

macro_rules! unexpired {
    () => {
        concat!(" and (expires_at is null or expires_at > ", now!(), ")")
    };
}

fn has_status(status: KeyStatus) -> &'static str {
    match status {
        KeyStatus::Revoked => " and revoked_at is not null",
        KeyStatus::Expired => concat!(" and revoked_at is null and expires_at <= ", now!()),
        KeyStatus::Inactive => {
            concat!(" and revoked_at is null and not is_active", unexpired!())
        }
        KeyStatus::NotYetActive => {
            concat!(" and revoked_at is null and is_active and not_before > ", now!(), unexpired!())
        }
        KeyStatus::Active => concat!(
            " and revoked_at is null and is_active and (not_before is null or not_before <= ",
            now!(),
            ")",
            unexpired!()
        ),
    }
}

pub(super) async fn events(
    connection: &mut SqliteConnection,
    query: &EventQuery,
) -> Result<EventPage, StoreError> {
    let mut page = EventRows::new(query.limit);
    let mut last = query.after.map(|after| i64::try_from(after).unwrap_or(i64::MAX));
    loop {
        let mut sql = events_before(query, last);
        let rows = sql.build().fetch_all(&mut *connection).await.map_err(failed)?;
        let events = rows.iter().map(event).collect::<sqlx::Result<Vec<_>>>().map_err(failed)?;
        let is_last = events.len() < CHUNK;
        match page.add(events) {
            Some(id) if !is_last => last = Some(id),
            _ => return Ok(page.finish()),
        }
    }
}

/// The next chunk of events.
fn events_before(query: &EventQuery, last: Option<i64>) -> Sql {
    let mut sql = Sql::new(
        "select id, at, action, key_id, consumer_id, actor, origin, reason, changes \
         from api_key_events",
    );
    sql.push(match (query.key_id, &query.consumer_id) {
        (Some(_), _) => " indexed by api_key_events_of_key",
        (None, Some(_)) => " indexed by api_key_events_of_consumer",
        (None, None) => "",
    });
    sql.push(" where true");
    if let Some(id) = query.key_id {
        sql.push(" and key_id = ").push_bind(uuid(id));
    }
    if let Some(consumer_id) = &query.consumer_id {
        sql.push(" and consumer_id = ").push_bind(consumer_id.clone());
    }
    if let Some(last) = last {
        sql.push(" and id < ").push_bind(last);
    }
    let limit = query.limit.saturating_add(1).min(CHUNK);
    sql.push(" order by id desc limit ").push_bind(bounded(limit));
    sql
}

pub(super) fn event(row: &SqliteRow) -> sqlx::Result<Event> {
    Ok(Event {
        id: row.try_get("id")?,
        at: row.try_get("at")?,
        action: row.try_get("action")?,
        key_id: row.try_get("key_id")?,
        consumer_id: row.try_get("consumer_id")?,
        actor: row.try_get("actor")?,
        origin: row.try_get("origin")?,
        reason: row.try_get("reason")?,
        changes: row.try_get("changes")?,
    })
}
