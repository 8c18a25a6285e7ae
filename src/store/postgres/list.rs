//! Pages of keys and audit events. Their statements are built per query and not cached: a generic
//! plan for all consumers would not suit the one that has most of the keys.

use std::time::SystemTime;

use sqlx::{PgConnection, Postgres, QueryBuilder, Row as _, postgres::PgRow, query};
use tokio::task::yield_now;

use super::{
    error::failed,
    record::{columns, read, read_time, record_of, uuid},
    timestamp::Timestamp,
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

type Sql = QueryBuilder<Postgres>;

/// Reads a page, in a transaction begun for it.
pub(super) async fn keys(
    connection: &mut PgConnection,
    asked: &KeyQuery,
) -> Result<KeyPage, StoreError> {
    let size = size(asked);
    if size == 0 {
        return Ok(KeyPage::default());
    }
    let index = Index::of(asked);
    let mut sql = edge(index, asked.after);
    let row = sql.build().persistent(false).fetch_optional(&mut *connection).await;
    let edge = row.map_err(failed)?.map(|row| row.try_get::<Uuid, _>(0)).transpose();
    let edge = edge.map_err(failed)?.map(key_id);
    let mut sql = keys_of(index, asked)?;
    sql.push(" limit ").push_bind(bounded(size + 1));
    sql.build().persistent(false).execute(&mut *connection).await.map_err(failed)?;
    let mut page = KeyRows::new(size);
    loop {
        let fetch = query(FETCH).persistent(false);
        let rows = fetch.fetch_all(&mut *connection).await.map_err(failed)?;
        let mut is_open = rows.len() == CHUNK;
        for (index, row) in rows.iter().enumerate() {
            if index % ROWS_PER_TURN == 0 {
                yield_now().await;
            }
            let id = key_id(row.try_get("id").map_err(failed)?);
            if !page.add(id, listed(row)?) {
                is_open = false;
                break;
            }
        }
        if !is_open {
            break;
        }
    }
    // Ending the transaction closes the cursor.
    Ok(page.finish(edge))
}

// A page ends at its byte limit; a cursor avoids reading rows beyond it.
const FETCH: &str = "fetch 16 from api_key_page";
const _: () = assert!(CHUNK == 16, "as many as are fetched");

fn listed(row: &PgRow) -> Result<Listed, StoreError> {
    match key(row) {
        Err(error) if error.kind() == StoreErrorKind::Corrupt => Ok(Err(as_text(row, &error)?)),
        key => key.map(Ok),
    }
}

fn key(row: &PgRow) -> Result<ListedKey, StoreError> {
    let at: Option<Timestamp> = row.try_get("last_used_at").map_err(failed)?;
    let at = at.map(|at| read_time("last_used_at", at)).transpose()?;
    Ok(ListedKey::new(record_of(row)?, at))
}

fn as_text(row: &PgRow, error: &StoreError) -> Result<InvalidRow, StoreError> {
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

/// Selects the last key of the window after `after`, if the window is full.
fn edge(index: Index<'_>, after: Option<KeyId>) -> Sql {
    let mut sql = Sql::new(match index {
        Index::Scope(_) | Index::Tag(_) => "select key_id",
        _ => "select id",
    });
    window(&mut sql, index, after);
    sql.push(order(index)).push(" limit 1 offset ").push_bind(bounded(WINDOW - 1));
    sql
}

/// Selects the matching keys of the window.
///
/// The inner limit also separates the window from the filters: otherwise the planner's estimate of
/// how common matches are might lead it to scan another index from end to end.
fn keys_of(index: Index<'_>, query: &KeyQuery) -> Result<Sql, StoreError> {
    let mut sql = Sql::new(concat!(
        "declare api_key_page no scroll cursor for select ",
        columns!(),
        ", (select last_used_at from api_key_usage where key_id = listed.id) as last_used_at \
         from (select "
    ));
    // An index that is a table of its own.
    let beside = match index {
        Index::Scope(_) => Some("scope, key_id"),
        Index::Tag(_) => Some("tag, key_id"),
        _ => None,
    };
    sql.push(beside.unwrap_or("*"));
    window(&mut sql, index, query.after);
    sql.push(order(index)).push(" limit ").push_bind(bounded(WINDOW)).push(") as ");
    sql.push(if beside.is_some() {
        "found cross join lateral \
         (select * from api_keys where id = found.key_id offset 0) as listed"
    } else {
        "listed"
    });
    sql.push(" where true");
    filter(&mut sql, query)?;
    sql.push(order(index));
    Ok(sql)
}

/// The part of the index after a key.
///
/// Comparing pairs makes the planner use the composite index for the order.
fn window(sql: &mut Sql, index: Index<'_>, after: Option<KeyId>) {
    let (from, first) = match index {
        Index::All => (" from api_keys where id", None),
        Index::Live => (" from api_keys where revoked_at is null and id", None),
        Index::Revoked => (" from api_keys where revoked_at is not null and id", None),
        Index::Inactive => {
            (" from api_keys where revoked_at is null and not is_active and id", None)
        }
        Index::Beginning => {
            (" from api_keys where revoked_at is null and not_before is not null and id", None)
        }
        Index::Consumer(consumer_id) => {
            (" from api_keys where (consumer_id, id)", Some(("(consumer_id, id)", consumer_id)))
        }
        Index::LiveOfConsumer(consumer_id) => (
            " from api_keys where revoked_at is null and (consumer_id, id)",
            Some(("(consumer_id, id)", consumer_id)),
        ),
        Index::Prefix(key_prefix) => {
            (" from api_keys where (key_prefix, id)", Some(("(key_prefix, id)", key_prefix)))
        }
        Index::LiveOfPrefix(key_prefix) => (
            " from api_keys where revoked_at is null and (key_prefix, id)",
            Some(("(key_prefix, id)", key_prefix)),
        ),
        Index::Scope(scope) => {
            (" from api_key_scopes where (scope, key_id)", Some(("(scope, key_id)", scope)))
        }
        Index::Tag(tag) => (" from api_key_tags where (tag, key_id)", Some(("(tag, key_id)", tag))),
    };
    let bound = |sql: &mut Sql, id: Uuid| match first {
        Some((_, value)) => {
            sql.push("(").push_bind(value.to_owned()).push(", ").push_bind(id).push(")");
        }
        None => {
            sql.push_bind(id);
        }
    };
    sql.push(from).push(if after.is_some() { " < " } else { " <= " });
    bound(sql, after.map_or(Uuid::MAX, uuid));
    if let Some((pair, _)) = first {
        sql.push(" and ").push(pair).push(" >= ");
        bound(sql, Uuid::MIN);
    }
}

fn order(index: Index<'_>) -> &'static str {
    match index {
        Index::Consumer(_) | Index::LiveOfConsumer(_) => " order by consumer_id desc, id desc",
        Index::Prefix(_) | Index::LiveOfPrefix(_) => " order by key_prefix desc, id desc",
        Index::Scope(_) => " order by scope desc, key_id desc",
        Index::Tag(_) => " order by tag desc, key_id desc",
        _ => " order by id desc",
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
        sql.push(" and ").push_bind(scope.as_str().to_owned()).push(" = any(scopes)");
    }
    if let Some(tag) = &query.tag {
        sql.push(" and ").push_bind(tag.clone()).push(" = any(tags)");
    }
    if let Some(status) = query.status {
        sql.push(has_status(status));
    }
    if let Some(end) = query.expires_before {
        sql.push(" and expires_at < ").push_bind(before(end)?);
    }
    if let Some(since) = query.unused_since {
        sql.push(" and created_at < ").push_bind(before(since)?);
        // A subselect per key: a join might read all uses.
        sql.push(
            " and coalesce(
                (select last_used_at from api_key_usage where key_id = listed.id), '-infinity'
            ) < ",
        );
        sql.push_bind(before(since)?);
    }
    Ok(())
}

fn before(end: SystemTime) -> Result<Timestamp, StoreError> {
    micros_up(end).map(Timestamp)
}

fn has_status(status: KeyStatus) -> &'static str {
    match status {
        KeyStatus::Revoked => " and revoked_at is not null",
        KeyStatus::Expired => " and revoked_at is null and expires_at <= statement_timestamp()",
        KeyStatus::Inactive => {
            " and revoked_at is null and not is_active \
             and (expires_at is null or expires_at > statement_timestamp())"
        }
        KeyStatus::NotYetActive => {
            " and revoked_at is null and is_active and not_before > statement_timestamp() \
             and (expires_at is null or expires_at > statement_timestamp())"
        }
        KeyStatus::Active => {
            " and revoked_at is null and is_active \
             and (not_before is null or not_before <= statement_timestamp()) \
             and (expires_at is null or expires_at > statement_timestamp())"
        }
    }
}

pub(super) async fn events(
    connection: &mut PgConnection,
    query: &EventQuery,
) -> Result<EventPage, StoreError> {
    let mut page = EventRows::new(query.limit);
    let mut last = query.after.map_or(i64::MAX, |after| i64::try_from(after).unwrap_or(i64::MAX));
    loop {
        let mut sql = events_before(query, last);
        let built = sql.build().persistent(false);
        let rows = built.fetch_all(&mut *connection).await.map_err(failed)?;
        let events = rows.iter().map(event).collect::<sqlx::Result<Vec<_>>>().map_err(failed)?;
        let is_last = events.len() < CHUNK;
        match page.add(events) {
            Some(id) if !is_last => last = id,
            _ => return Ok(page.finish()),
        }
    }
}

/// The next chunk of events.
fn events_before(query: &EventQuery, last: i64) -> Sql {
    let mut sql = Sql::new(
        "select id, at, action, key_id, consumer_id, actor, origin, reason, \
         changes::text as changes from api_key_events where ",
    );
    let order = if let Some(id) = query.key_id {
        sql.push("(key_id, id) < (").push_bind(uuid(id)).push(", ").push_bind(last);
        sql.push(") and (key_id, id) > (").push_bind(uuid(id)).push(", 0)");
        if let Some(consumer_id) = &query.consumer_id {
            sql.push(" and consumer_id = ").push_bind(consumer_id.clone());
        }
        " order by key_id desc, id desc limit "
    } else if let Some(consumer_id) = &query.consumer_id {
        sql.push("(consumer_id, id) < (").push_bind(consumer_id.clone());
        sql.push(", ").push_bind(last);
        sql.push(") and (consumer_id, id) > (").push_bind(consumer_id.clone()).push(", 0)");
        " order by consumer_id desc, id desc limit "
    } else {
        sql.push("id < ").push_bind(last);
        " order by id desc limit "
    };
    sql.push(order).push_bind(bounded(query.limit.saturating_add(1).min(CHUNK)));
    sql
}

pub(super) fn event(row: &PgRow) -> sqlx::Result<Event> {
    Ok(Event {
        id: row.try_get("id")?,
        at: row.try_get::<Timestamp, _>("at")?.0,
        action: row.try_get("action")?,
        key_id: row.try_get("key_id")?,
        consumer_id: row.try_get("consumer_id")?,
        actor: row.try_get("actor")?,
        origin: row.try_get("origin")?,
        reason: row.try_get("reason")?,
        changes: row.try_get("changes")?,
    })
}
