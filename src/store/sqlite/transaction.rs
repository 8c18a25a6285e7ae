use std::{fmt, time::SystemTime};

use serde_json::{Value, json as values};
use sqlx::{
    Sqlite, SqliteConnection, SqlitePool, Transaction, query, query_as, query_scalar, types::Uuid,
};
use tokio::sync::OwnedMutexGuard;

use super::{
    error::failed,
    record::{columns, now, record, records, uuid},
};
use crate::{
    record::{AuditEntry, KeyId, KeyRecord},
    store::{
        Claim, KeyTransaction, Selection, StoreError, StoreErrorKind,
        row::{Row, bounded, claimed, ended, json, key_id, micros_up},
    },
};

/// A transaction of [`SqliteKeyStore`](super::SqliteKeyStore).
///
/// It is the only one that writes, from its beginning to its end, and holds a connection of the
/// pool. A statement that fails ends it, and so does dropping a future of it half-way: nothing is
/// left then. Beside one in a file look-ups go on; a database in memory makes them wait for it.
pub struct SqliteTransaction {
    /// `None` while a statement runs, and from its failure on.
    open: Option<Transaction<'static, Sqlite>>,
    _turn: OwnedMutexGuard<()>,
}

impl SqliteTransaction {
    /// Begun as a reader, it could not become a writer after somebody else has been one.
    pub(super) async fn begin(
        pool: &SqlitePool,
        turn: OwnedMutexGuard<()>,
    ) -> Result<Self, StoreError> {
        let open = pool.begin_with("begin immediate").await.map_err(failed)?;
        Ok(Self { open: Some(open), _turn: turn })
    }

    /// The connection, for one statement. It is put back when that has succeeded.
    fn take(&mut self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        self.open.take().ok_or_else(ended)
    }

    /// The connection, for a statement of a trial.
    pub(super) fn connection(&mut self) -> Result<&mut SqliteConnection, StoreError> {
        self.open.as_deref_mut().ok_or_else(ended)
    }
}

impl fmt::Debug for SqliteTransaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteTransaction").field("is_open", &self.open.is_some()).finish()
    }
}

// Batches are one parameter each, in JSON.

// Whoever writes is alone: reading is locking.
const LOCK: &str = concat!(
    "select ",
    columns!(),
    " from api_keys where id in (select unhex(value, '-') from json_each(?1)) order by id"
);

const LOCK_CONSUMER: &str = concat!(
    "select ",
    columns!(),
    " from api_keys indexed by api_keys_live_of_consumer
    where consumer_id = ?1 and revoked_at is null order by id limit ?2"
);

const LOCK_PREFIX: &str = concat!(
    "select ",
    columns!(),
    " from api_keys indexed by api_keys_live_of_prefix
    where key_prefix = ?1 and revoked_at is null order by id limit ?2"
);

// Two questions, as each has its index.
const LOCK_ENDED: &str = concat!(
    "select ",
    columns!(),
    " from api_keys where id in (
        select id from (
            select id from api_keys indexed by api_keys_by_revocation
            where revoked_at < ?1 order by revoked_at limit ?2
        )
        union
        select id from (
            select id from api_keys indexed by api_keys_by_expiry
            where expires_at < ?1 order by expires_at limit ?2
        )
    ) order by id limit ?2"
);

// What is known is left out before triggers see it: they take an insertion that comes upon a known
// key for one that replaces it.
const INSERT: &str = "
insert into api_keys (
    id, key_hash, key_prefix, key_last4, consumer_id, name, scopes, rate_limits, metadata,
    is_active, created_at, created_by, not_before, expires_at, revoked_at, revoked_reason,
    rotated_from, rotated_at, root_id, version, plan
)
select
    unhex(value ->> 0), unhex(value ->> 1), value ->> 2, value ->> 3, value ->> 4, value ->> 5,
    value ->> 6, value ->> 7, value ->> 8, value ->> 9, value ->> 10, value ->> 11, value ->> 12,
    value ->> 13, value ->> 14, value ->> 15, unhex(value ->> 16), value ->> 17,
    unhex(value ->> 18), value ->> 19, value ->> 20
from json_each(?1)
where not exists (select 1 from api_keys where id = unhex(value ->> 0))
    and not exists (select 1 from api_keys where key_hash = unhex(value ->> 1))
on conflict do nothing
returning id";

const UPDATE: &str = concat!(
    "update api_keys set name = ?3, scopes = ?4, rate_limits = ?5, metadata = ?6, is_active = ?7, \
     not_before = ?8, expires_at = ?9, rotated_at = ?10, plan = ?11, version = version + 1 \
     where id = ?1 and version = ?2 returning ",
    columns!()
);

const REVOKE: &str = concat!(
    "update api_keys set revoked_at = ",
    now!(),
    ", revoked_reason = ?2, version = version + 1
    where id in (select unhex(value, '-') from json_each(?1)) and revoked_at is null returning ",
    columns!()
);

// What was recorded of their use goes with them: a trigger deletes it.
const DELETE: &str =
    "delete from api_keys where id in (select unhex(value, '-') from json_each(?1))";

const RECORD: &str = "
insert into api_key_events (action, key_id, consumer_id, actor, origin, reason, changes)
select
    value ->> 0, unhex(value ->> 1, '-'), value ->> 2, value ->> 3, value ->> 4, value ->> 5,
    value ->> 6
from json_each(?1) order by key";

const CLAIM: &str = "
insert into api_key_requests (request, fingerprint, key_id) values (?1, ?2, ?3)
on conflict do nothing
returning true";

const CLAIMED: &str = "select fingerprint, key_id from api_key_requests where request = ?1";

const SWEEP_REQUESTS: &str = "
delete from api_key_requests where request in (
    select request from api_key_requests where at < ?1 order by at limit ?2
)";

// A trigger deletes uses with their keys. `insert or replace` deletes a key without firing it: such
// are found among the keys that were changed last, rather than by comparing all uses with all keys.
const SWEEP_USAGE: &str = "
delete from api_key_usage where key_id in (
    select key_id
    from (select key_id from api_key_changes order by changed_in desc limit 5000) as changed
    where not exists (select 1 from api_keys where id = changed.key_id)
        and exists (select 1 from api_key_usage as used where used.key_id = changed.key_id)
    limit ?1
)";

impl KeyTransaction for SqliteTransaction {
    async fn lock(&mut self, ids: &[KeyId]) -> Result<Vec<KeyRecord>, StoreError> {
        let lock = query(LOCK).bind(texts(ids)?);
        let mut open = self.take()?;
        let rows = lock.fetch_all(&mut *open).await.map_err(failed)?;
        self.open = Some(open);
        records(&rows)
    }

    async fn lock_some(
        &mut self,
        keys: &Selection,
        limit: usize,
    ) -> Result<Vec<KeyRecord>, StoreError> {
        let lock = match keys {
            Selection::Consumer(consumer_id) => query(LOCK_CONSUMER).bind(consumer_id.clone()),
            Selection::Prefix(key_prefix) => query(LOCK_PREFIX).bind(key_prefix.clone()),
            Selection::EndedBefore(end) => query(LOCK_ENDED).bind(micros_up(*end)?),
        };
        let lock = lock.bind(bounded(limit));
        let mut open = self.take()?;
        let rows = lock.fetch_all(&mut *open).await.map_err(failed)?;
        self.open = Some(open);
        records(&rows)
    }

    async fn insert(&mut self, records: &[KeyRecord]) -> Result<Vec<KeyId>, StoreError> {
        if records.is_empty() {
            return Ok(Vec::new());
        }
        let batch = records.iter().map(key_values).collect::<Result<Vec<_>, _>>()?;
        let insert = query_scalar(INSERT).bind(json(&batch)?);
        let mut open = self.take()?;
        let inserted: Vec<Uuid> = insert.fetch_all(&mut *open).await.map_err(failed)?;
        self.open = Some(open);
        Ok(inserted.into_iter().map(key_id).collect())
    }

    async fn update(&mut self, changed: &KeyRecord) -> Result<KeyRecord, StoreError> {
        let row = Row::of(changed)?;
        let update = query(UPDATE)
            .bind(Uuid::from_bytes(row.id))
            .bind(row.version)
            .bind(row.name)
            .bind(json(&row.scopes)?)
            .bind(row.rate_limits)
            .bind(row.metadata)
            .bind(row.is_active)
            .bind(row.not_before)
            .bind(row.expires_at)
            .bind(row.rotated_at)
            .bind(row.plan);
        let mut open = self.take()?;
        let row = update.fetch_optional(&mut *open).await.map_err(failed)?;
        self.open = Some(open);
        record(row)?.ok_or(StoreError::new(StoreErrorKind::Conflict))
    }

    async fn revoke(
        &mut self,
        ids: &[KeyId],
        reason: Option<&str>,
    ) -> Result<Vec<KeyRecord>, StoreError> {
        let revoke = query(REVOKE).bind(texts(ids)?).bind(reason.map(str::to_owned));
        let mut open = self.take()?;
        let rows = revoke.fetch_all(&mut *open).await.map_err(failed)?;
        self.open = Some(open);
        let mut revoked = records(&rows)?;
        revoked.sort_unstable_by_key(|record| record.id);
        Ok(revoked)
    }

    async fn delete(&mut self, ids: &[KeyId]) -> Result<(), StoreError> {
        let delete = query(DELETE).bind(texts(ids)?);
        let mut open = self.take()?;
        delete.execute(&mut *open).await.map_err(failed)?;
        self.open = Some(open);
        Ok(())
    }

    async fn record(&mut self, entries: &[AuditEntry]) -> Result<(), StoreError> {
        let batch: Vec<_> = entries.iter().map(entry_values).collect();
        let record = query(RECORD).bind(json(&batch)?);
        let mut open = self.take()?;
        record.execute(&mut *open).await.map_err(failed)?;
        self.open = Some(open);
        Ok(())
    }

    async fn claim(&mut self, claim: &Claim) -> Result<Option<Claim>, StoreError> {
        let request = claim.request.to_vec();
        let insert = query_scalar(CLAIM)
            .bind(request.clone())
            .bind(claim.fingerprint.to_vec())
            .bind(uuid(claim.key_id));
        let mut open = self.take()?;
        let inserted: Option<bool> = insert.fetch_optional(&mut *open).await.map_err(failed)?;
        let mut earlier: Option<(Vec<u8>, Uuid)> = None;
        if inserted.is_none() {
            let read = query_as(CLAIMED).bind(request);
            earlier = Some(read.fetch_one(&mut *open).await.map_err(failed)?);
        }
        self.open = Some(open);
        let earlier = earlier.map(|(fingerprint, id)| claimed(claim.request, &fingerprint, id));
        earlier.transpose()
    }

    async fn sweep(&mut self, before: SystemTime, limit: usize) -> Result<usize, StoreError> {
        let limit = bounded(limit);
        let requests = query(SWEEP_REQUESTS).bind(micros_up(before)?).bind(limit);
        let mut open = self.take()?;
        let requests = requests.execute(&mut *open).await.map_err(failed)?.rows_affected();
        let usage = query(SWEEP_USAGE).bind(limit.saturating_sub_unsigned(requests));
        let usage = usage.execute(&mut *open).await.map_err(failed)?.rows_affected();
        self.open = Some(open);
        Ok(usize::try_from(requests + usage).unwrap_or(usize::MAX))
    }

    async fn commit(mut self) -> Result<(), StoreError> {
        self.take()?.commit().await.map_err(failed)
    }
}

fn texts(ids: &[KeyId]) -> Result<String, StoreError> {
    json(&ids.iter().map(ToString::to_string).collect::<Vec<_>>())
}

fn key_values(record: &KeyRecord) -> Result<Value, StoreError> {
    let row = Row::of(record)?;
    Ok(values!([
        hex(&row.id),
        hex(&row.key_hash),
        row.key_prefix,
        row.key_last4,
        row.consumer_id,
        row.name,
        json(&row.scopes)?,
        row.rate_limits,
        row.metadata,
        i64::from(row.is_active),
        row.created_at,
        row.created_by,
        row.not_before,
        row.expires_at,
        row.revoked_at,
        row.revoked_reason,
        row.rotated_from.map(|id| hex(&id)),
        row.rotated_at,
        hex(&row.root_id),
        row.version,
        row.plan,
    ]))
}

fn entry_values(entry: &AuditEntry) -> Value {
    values!([
        entry.action.as_str(),
        entry.key_id.map(|id| id.to_string()),
        entry.consumer_id,
        entry.actor,
        entry.origin,
        entry.reason,
        entry.changes,
    ])
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;

    let mut hex = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a String does not fail.
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}
