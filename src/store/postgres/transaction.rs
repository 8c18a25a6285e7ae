use std::{fmt, sync::Arc, time::SystemTime};

use sqlx::{PgConnection, Row as _, postgres::PgRow, query, query_as, query_scalar, raw_sql};

use super::{
    error::failed,
    lease::Lease,
    plans,
    record::{columns, read_time, record, records, uuid},
    schema::Statements,
    timestamp::Timestamp,
};
use crate::{
    rate_limit::RateLimits,
    record::{AuditEntry, KeyId, KeyRecord},
    store::{
        IdempotencyRecord, KeyCountQuery, KeyCounts, KeyFilter, KeyTransaction, StoreError,
        StoreErrorKind,
        row::{Row, Uuid, bounded, claimed, counts, ended, json, key_id, micros_up},
    },
};

/// A transaction of [`PgKeyStore`](super::PgKeyStore).
///
/// It holds a connection of the pool. A failed statement ends it, and so does dropping one of its
/// futures half-way: the connection is then closed and the transaction rolled back.
pub struct PgTransaction {
    /// `None` while a statement runs, and after one failed.
    lease: Option<Lease>,
    statements: Arc<Statements>,
}

impl PgTransaction {
    /// Wraps a transaction that was begun on `lease`.
    pub(super) fn new(lease: Lease, statements: Arc<Statements>) -> Self {
        Self { lease: Some(lease), statements }
    }

    /// The rows of `keys` that `sql` selects.
    async fn selected(
        &mut self,
        sql: &'static str,
        keys: &KeyFilter,
        except: &[KeyId],
        limit: usize,
    ) -> Result<Vec<PgRow>, StoreError> {
        let query = match keys {
            KeyFilter::Consumer(id) | KeyFilter::ConsumerPrefix { consumer_id: id, .. } => {
                query(sql).bind(id)
            }
            KeyFilter::Prefix(key_prefix) => query(sql).bind(key_prefix),
            KeyFilter::EndedBefore(end) => query(sql).bind(Timestamp(micros_up(*end)?)),
        };
        let mut query = query.bind(bounded(limit)).bind(uuids(except));
        if let KeyFilter::ConsumerPrefix { key_prefix, .. } = keys {
            query = query.bind(key_prefix);
        }
        let mut lease = self.take()?;
        let rows = query.fetch_all(&mut *lease).await.map_err(failed)?;
        self.lease = Some(lease);
        Ok(rows)
    }

    /// The connection for a statement of a trial, and the statements that name the schema. A failed
    /// statement leaves the transaction open but unusable.
    pub(super) fn parts(&mut self) -> Result<(&mut PgConnection, Arc<Statements>), StoreError> {
        let statements = Arc::clone(&self.statements);
        let connection = self.lease.as_deref_mut().ok_or_else(ended)?;
        Ok((connection, statements))
    }

    /// Takes the connection for one statement; put back when it succeeds.
    fn take(&mut self) -> Result<Lease, StoreError> {
        self.lease.take().ok_or_else(ended)
    }
}

impl Drop for PgTransaction {
    fn drop(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.roll_back();
        }
    }
}

impl fmt::Debug for PgTransaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PgTransaction").field("is_open", &self.lease.is_some()).finish()
    }
}

// Rows are locked in id order. The outer select sets `read_at` after they are locked.
const LOCK: &str = concat!(
    "with locked as materialized (
        select * from api_keys where id = any($1) order by id for no key update
    )
    select ",
    columns!(),
    " from locked order by id"
);

// Comparing pairs makes the planner use the composite index for the order. Scanning the index on
// ids alone could read all of it before it finds the keys.
macro_rules! of_consumer {
    ($and:literal, $lock:literal) => {
        concat!(
            "select * from api_keys
            where (consumer_id, id) >= ($1, '00000000-0000-0000-0000-000000000000')
                and (consumer_id, id) <= ($1, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
                and revoked_at is null and id <> all($3)",
            $and,
            " order by consumer_id, id limit $2",
            $lock
        )
    };
}

macro_rules! of_prefix {
    ($lock:literal) => {
        concat!(
            "select * from api_keys
            where (key_prefix, id) >= ($1, '00000000-0000-0000-0000-000000000000')
                and (key_prefix, id) <= ($1, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
                and revoked_at is null and id <> all($3)
            order by key_prefix, id limit $2",
            $lock
        )
    };
}

// Two queries, one per index. Pruning skips locked rows, so the locking order does not matter.
macro_rules! ended {
    ($lock:literal) => {
        concat!(
            "with revoked as materialized (
                select * from api_keys where revoked_at < $1 and id <> all($3)
                order by revoked_at limit $2",
            $lock,
            "), expired as materialized (
                select * from api_keys
                where expires_at < $1 and (revoked_at is null or revoked_at >= $1)
                    and id <> all($3)
                order by expires_at limit $2",
            $lock,
            "), ended as materialized (
                select * from revoked union all select * from expired limit $2
            )"
        )
    };
}

macro_rules! locked {
    ($rows:expr) => {
        concat!(
            "with locked as materialized (",
            $rows,
            ") select ",
            columns!(),
            " from locked order by id"
        )
    };
}

const LOCK_CONSUMER: &str = locked!(of_consumer!("", " for no key update"));
const LOCK_CONSUMER_PREFIX: &str =
    locked!(of_consumer!(" and key_prefix = $4", " for no key update"));
const LOCK_PREFIX: &str = locked!(of_prefix!(" for no key update"));
const LOCK_ENDED: &str = concat!(
    ended!(" for no key update skip locked"),
    " select ",
    columns!(),
    " from ended order by id"
);

const SELECT_CONSUMER: &str = concat!("select id from (", of_consumer!("", ""), ") as selected");
const SELECT_CONSUMER_PREFIX: &str =
    concat!("select id from (", of_consumer!(" and key_prefix = $4", ""), ") as selected");
const SELECT_PREFIX: &str = concat!("select id from (", of_prefix!(""), ") as selected");
const SELECT_ENDED: &str = concat!(ended!(""), " select id from ended");

// Inserted in hash order, so that two imports of the same keys queue up instead of deadlocking.
const INSERT: &str = "
insert into api_keys (
    id, key_hash, key_prefix, key_last4, consumer_id, name, scopes, rate_limits, metadata,
    is_active, created_at, created_by, not_before, expires_at, revoked_at, revoked_reason,
    rotated_from, rotated_at, root_id, version, plan
)
select
    id, key_hash, key_prefix, key_last4, consumer_id, name,
    array(select jsonb_array_elements_text(scopes::jsonb)), rate_limits::jsonb, metadata::jsonb,
    is_active, created_at, created_by, not_before, expires_at, revoked_at, revoked_reason,
    rotated_from, rotated_at, root_id, version, plan
from unnest(
    $1::uuid[], $2::bytea[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
    $8::text[], $9::text[], $10::boolean[], $11::timestamptz[], $12::text[], $13::timestamptz[],
    $14::timestamptz[], $15::timestamptz[], $16::text[], $17::uuid[], $18::timestamptz[],
    $19::uuid[], $20::bigint[], $21::text[]
) with ordinality as new (
    id, key_hash, key_prefix, key_last4, consumer_id, name, scopes, rate_limits, metadata,
    is_active, created_at, created_by, not_before, expires_at, revoked_at, revoked_reason,
    rotated_from, rotated_at, root_id, version, plan, place
)
order by key_hash, place
on conflict do nothing
returning id";

const UPDATE: &str = concat!(
    "update api_keys set name = $3, scopes = $4, rate_limits = $5::jsonb, metadata = $6::jsonb, \
     is_active = $7, not_before = $8, expires_at = $9, rotated_at = $10, plan = $11, version = version + 1 \
     where id = $1 and version = $2 returning ",
    columns!()
);

const REVOKE: &str = concat!(
    "with locked as materialized (
        select id from api_keys where id = any($1) and revoked_at is null
        order by id for no key update
    ), revoked as (
        update api_keys
        set revoked_at = clock_timestamp(), revoked_reason = $2, version = version + 1
        where id = any(array(select id from locked))
        returning ",
    columns!(),
    ")
    select * from revoked order by id"
);

// Held until the transaction ends. A hash collision makes another consumer wait.
const LOCK_COUNT: &str =
    "select pg_advisory_xact_lock(hashtextextended('api-keys of ' || $1, 7021227462866860403))";

// Each part scans an index range and stops at the limit. A separate statement from the lock, so
// that it sees what earlier lock holders committed.
const COUNT: &str = "
select
    (select count(*) from (
        (select 1 from api_keys
        where consumer_id = $1 and revoked_at is null and expires_at is null limit $3)
        union all
        (select 1 from api_keys
        where (consumer_id, expires_at) > ($1, statement_timestamp())
            and (consumer_id, expires_at) <= ($1, 'infinity') and revoked_at is null
        order by consumer_id, expires_at limit $3)
    ) as live),
    (select count(*) from (
        select 1 from api_keys
        where (consumer_id, id) >= ($1, $2)
            and (consumer_id, id) <= ($1, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
        order by consumer_id, id limit $3
    ) as recent)";

const NTH_ROTATION: &str = "
select created_at from api_keys where root_id = $1 and rotated_from is not null
order by created_at desc limit 1 offset $2";

// A trigger deletes their recorded use as well.
const DELETE: &str = "delete from api_keys where id = any($1)";

const RECORD: &str = "
insert into api_key_events (action, key_id, consumer_id, actor, origin, reason, changes)
select action, key_id, consumer_id, actor, origin, reason, changes::jsonb
from unnest(
    $1::text[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[]
) with ordinality as new (action, key_id, consumer_id, actor, origin, reason, changes, place)
order by place";

const CLAIM: &str = "
insert into api_key_requests (request, fingerprint, key_id) values ($1, $2, $3)
on conflict do nothing
returning true";

/// A conflicting row may be deleted before it is read. The limit ends the loop when a trigger of
/// the application never keeps rows.
const CLAIM_ATTEMPTS: usize = 5;

const CLAIMED: &str = "select fingerprint, key_id from api_key_requests where request = $1";

const SWEEP_REQUESTS: &str = "
delete from api_key_requests where request = any(array(
    select request from api_key_requests where at < $1
    order by at limit $2
    for update skip locked
))";

// A use written while its key was being deleted is left behind. It is searched for among recently
// changed keys instead of comparing all uses with all keys.
const SWEEP_USAGE: &str = "
delete from api_key_usage where key_id = any(array(
    select key_id
    from (select key_id from api_key_changes order by changed_in desc limit 5000) as changed
    where (select true from api_keys where id = changed.key_id) is null
        and (select true from api_key_usage as used where used.key_id = changed.key_id)
    order by key_id
    limit $1
))";

impl KeyTransaction for PgTransaction {
    async fn lock(&mut self, ids: &[KeyId]) -> Result<Vec<KeyRecord>, StoreError> {
        let mut lease = self.take()?;
        let lock = query(LOCK).bind(uuids(ids));
        let rows = lock.fetch_all(&mut *lease).await.map_err(failed)?;
        self.lease = Some(lease);
        records(&rows)
    }

    async fn lock_some(
        &mut self,
        keys: &KeyFilter,
        except: &[KeyId],
        limit: usize,
    ) -> Result<Vec<KeyRecord>, StoreError> {
        let lock = match keys {
            KeyFilter::Consumer(_) => LOCK_CONSUMER,
            KeyFilter::Prefix(_) => LOCK_PREFIX,
            KeyFilter::ConsumerPrefix { .. } => LOCK_CONSUMER_PREFIX,
            KeyFilter::EndedBefore(_) => LOCK_ENDED,
        };
        let rows = self.selected(lock, keys, except, limit).await?;
        records(&rows)
    }

    async fn select_some(
        &mut self,
        keys: &KeyFilter,
        except: &[KeyId],
        limit: usize,
    ) -> Result<Vec<KeyId>, StoreError> {
        let select = match keys {
            KeyFilter::Consumer(_) => SELECT_CONSUMER,
            KeyFilter::Prefix(_) => SELECT_PREFIX,
            KeyFilter::ConsumerPrefix { .. } => SELECT_CONSUMER_PREFIX,
            KeyFilter::EndedBefore(_) => SELECT_ENDED,
        };
        let rows = self.selected(select, keys, except, limit).await?;
        rows.iter().map(|row| row.try_get("id").map(key_id).map_err(failed)).collect()
    }

    async fn insert(&mut self, records: &[KeyRecord]) -> Result<Vec<KeyId>, StoreError> {
        if records.is_empty() {
            return Ok(Vec::new());
        }
        let rows = records.iter().map(Row::of).collect::<Result<Vec<_>, _>>()?;
        let scopes = rows.iter().map(|row| json(&row.scopes)).collect::<Result<Vec<_>, _>>()?;
        let insert = query_scalar(INSERT)
            .bind(column(&rows, |row| Uuid::from_bytes(row.id)))
            .bind(column(&rows, |row| row.key_hash.clone()))
            .bind(column(&rows, |row| row.key_prefix.clone()))
            .bind(column(&rows, |row| row.key_last4.clone()))
            .bind(column(&rows, |row| row.consumer_id.clone()))
            .bind(column(&rows, |row| row.name.clone()))
            .bind(scopes)
            .bind(column(&rows, |row| row.rate_limits.clone()))
            .bind(column(&rows, |row| row.metadata.clone()))
            .bind(column(&rows, |row| row.is_active))
            .bind(column(&rows, |row| Timestamp(row.created_at)))
            .bind(column(&rows, |row| row.created_by.clone()))
            .bind(column(&rows, |row| row.not_before.map(Timestamp)))
            .bind(column(&rows, |row| row.expires_at.map(Timestamp)))
            .bind(column(&rows, |row| row.revoked_at.map(Timestamp)))
            .bind(column(&rows, |row| row.revoked_reason.clone()))
            .bind(column(&rows, |row| row.rotated_from.map(Uuid::from_bytes)))
            .bind(column(&rows, |row| row.rotated_at.map(Timestamp)))
            .bind(column(&rows, |row| Uuid::from_bytes(row.root_id)))
            .bind(column(&rows, |row| row.version))
            .bind(column(&rows, |row| row.plan.clone()));
        let mut lease = self.take()?;
        let inserted: Vec<Uuid> = insert.fetch_all(&mut *lease).await.map_err(failed)?;
        self.lease = Some(lease);
        Ok(inserted.into_iter().map(key_id).collect())
    }

    async fn update(&mut self, changed: &KeyRecord) -> Result<KeyRecord, StoreError> {
        let row = Row::of(changed)?;
        let update = query(UPDATE)
            .bind(Uuid::from_bytes(row.id))
            .bind(row.version)
            .bind(row.name)
            .bind(row.scopes)
            .bind(row.rate_limits)
            .bind(row.metadata)
            .bind(row.is_active)
            .bind(row.not_before.map(Timestamp))
            .bind(row.expires_at.map(Timestamp))
            .bind(row.rotated_at.map(Timestamp))
            .bind(row.plan);
        let mut lease = self.take()?;
        let row = update.fetch_optional(&mut *lease).await.map_err(failed)?;
        self.lease = Some(lease);
        record(row)?.ok_or(StoreError::new(StoreErrorKind::Conflict))
    }

    async fn revoke(
        &mut self,
        ids: &[KeyId],
        reason: Option<&str>,
    ) -> Result<Vec<KeyRecord>, StoreError> {
        let mut lease = self.take()?;
        let revoke = query(REVOKE).bind(uuids(ids)).bind(reason);
        let rows = revoke.fetch_all(&mut *lease).await.map_err(failed)?;
        self.lease = Some(lease);
        records(&rows)
    }

    async fn count_keys(&mut self, asked: &KeyCountQuery) -> Result<KeyCounts, StoreError> {
        let lock = query(LOCK_COUNT).bind(&asked.consumer_id);
        let count = query_as(COUNT)
            .bind(&asked.consumer_id)
            .bind(uuid(asked.recent_from))
            .bind(bounded(asked.limit));
        let mut lease = self.take()?;
        lock.execute(&mut *lease).await.map_err(failed)?;
        let counted: (i64, i64) = count.fetch_one(&mut *lease).await.map_err(failed)?;
        self.lease = Some(lease);
        Ok(counts(counted, asked.limit))
    }

    async fn nth_rotation(
        &mut self,
        root: KeyId,
        nth: usize,
    ) -> Result<Option<SystemTime>, StoreError> {
        let find = query_scalar(NTH_ROTATION).bind(uuid(root)).bind(bounded(nth.saturating_sub(1)));
        let mut lease = self.take()?;
        let at: Option<Timestamp> = find.fetch_optional(&mut *lease).await.map_err(failed)?;
        self.lease = Some(lease);
        at.map(|at| read_time("created_at", at)).transpose()
    }

    async fn delete(&mut self, ids: &[KeyId]) -> Result<(), StoreError> {
        if ids.is_empty() {
            return Ok(());
        }
        let mut lease = self.take()?;
        query(DELETE).bind(uuids(ids)).execute(&mut *lease).await.map_err(failed)?;
        self.lease = Some(lease);
        Ok(())
    }

    async fn write_audit(&mut self, entries: &[AuditEntry]) -> Result<(), StoreError> {
        if entries.is_empty() {
            return Ok(());
        }
        let record = query(RECORD)
            .bind(column(entries, |entry| entry.action.as_str()))
            .bind(column(entries, |entry| entry.key_id.map(uuid)))
            .bind(column(entries, |entry| entry.consumer_id.clone()))
            .bind(column(entries, |entry| entry.actor.clone()))
            .bind(column(entries, |entry| entry.origin.clone()))
            .bind(column(entries, |entry| entry.reason.clone()))
            .bind(column(entries, |entry| entry.changes.clone()));
        let mut lease = self.take()?;
        record.execute(&mut *lease).await.map_err(failed)?;
        self.lease = Some(lease);
        Ok(())
    }

    async fn set_plan(
        &mut self,
        name: &str,
        limits: &RateLimits,
    ) -> Result<Option<String>, StoreError> {
        let mut lease = self.take()?;
        let before = plans::set(&mut lease, name, limits).await?;
        self.lease = Some(lease);
        Ok(before)
    }

    async fn remove_plan(&mut self, name: &str) -> Result<Option<String>, StoreError> {
        let mut lease = self.take()?;
        let before = plans::remove(&mut lease, name).await?;
        self.lease = Some(lease);
        Ok(before)
    }

    async fn claim_idempotency_key(
        &mut self,
        claim: &IdempotencyRecord,
    ) -> Result<Option<IdempotencyRecord>, StoreError> {
        let mut lease = self.take()?;
        for _ in 0..CLAIM_ATTEMPTS {
            let insert = query_scalar(CLAIM)
                .bind(claim.request.as_slice())
                .bind(claim.fingerprint.as_slice())
                .bind(uuid(claim.key_id));
            let inserted: Option<bool> =
                insert.fetch_optional(&mut *lease).await.map_err(failed)?;
            if inserted.is_some() {
                self.lease = Some(lease);
                return Ok(None);
            }
            let earlier = query_as(CLAIMED).bind(claim.request.as_slice());
            let earlier: Option<(Vec<u8>, Uuid)> =
                earlier.fetch_optional(&mut *lease).await.map_err(failed)?;
            // `None`: deleted in between.
            if let Some((fingerprint, key_id)) = earlier {
                self.lease = Some(lease);
                return claimed(claim.request, &fingerprint, key_id).map(Some);
            }
        }
        Err(StoreError::new(StoreErrorKind::Other).because("an idempotency key is not kept"))
    }

    async fn delete_expired(
        &mut self,
        before: SystemTime,
        limit: usize,
    ) -> Result<usize, StoreError> {
        let limit = bounded(limit);
        let requests = query(SWEEP_REQUESTS).bind(Timestamp(micros_up(before)?)).bind(limit);
        let mut lease = self.take()?;
        let requests = requests.execute(&mut *lease).await.map_err(failed)?.rows_affected();
        let rest = limit.saturating_sub_unsigned(requests);
        let usage = query(SWEEP_USAGE).bind(rest);
        let usage = usage.execute(&mut *lease).await.map_err(failed)?.rows_affected();
        self.lease = Some(lease);
        Ok(usize::try_from(requests + usage).unwrap_or(usize::MAX))
    }

    async fn commit(mut self) -> Result<(), StoreError> {
        let mut lease = self.take()?;
        raw_sql("commit").execute(&mut *lease).await.map_err(failed)?;
        lease.release();
        Ok(())
    }
}

fn uuids(ids: &[KeyId]) -> Vec<Uuid> {
    ids.iter().copied().map(uuid).collect()
}

/// One column of all rows, as an array.
fn column<R, T>(rows: &[R], value: impl Fn(&R) -> T) -> Vec<T> {
    rows.iter().map(value).collect()
}
