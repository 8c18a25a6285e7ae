mod queries;

use std::{fmt, time::SystemTime};

use serde_json::{Value, json as values};
use sqlx::{Row as _, SqliteConnection, query, query_as, query_scalar, raw_sql, sqlite::SqliteRow};
use tokio::sync::OwnedMutexGuard;

use self::queries::{
    CLAIM, CLAIMED, COUNT, DELETE, DELETE_REQUESTS, DELETE_USAGE, INSERT, LOCK, LOCK_CONSUMER,
    LOCK_CONSUMER_PREFIX, LOCK_ENDED, LOCK_PREFIX, MARK, NTH_ROTATION, REVOKE, SELECT_CONSUMER,
    SELECT_CONSUMER_PREFIX, SELECT_ENDED, SELECT_PREFIX, UNMARK, UPDATE, WRITE_AUDIT,
};
use super::{
    error::failed,
    lease::Lease,
    legacy_hashes, plans,
    record::{hex, read_time, record, records, uuid},
    usage,
};
use crate::{
    key::KeyHash,
    rate_limit::RateLimits,
    record::{AuditEntry, KeyId, KeyRecord},
    store::{
        StoreError, StoreErrorKind,
        port::{IdempotencyRecord, KeyCountQuery, KeyCounts, KeyFilter, KeyTransaction, LegacyKey},
        row::{Row, Uuid, bounded, claimed, counts, ended, json, key_id, micros_up},
    },
};

/// Runs a statement on a lease, which is consumed if the statement fails.
macro_rules! run {
    ($lease:ident, $statement:expr) => {{
        let outcome = $statement.await;
        let (done, same) = $lease.after(outcome)?;
        $lease = same;
        done
    }};
}

/// A transaction of [`SqliteKeyStore`](super::SqliteKeyStore).
///
/// It is the only writer for its whole duration, and holds a connection of the pool. A failed
/// statement rolls it back. Dropping one of its futures half-way rolls it back and closes the
/// connection. Look-ups in a file continue meanwhile; in a database in memory they wait.
pub struct SqliteTransaction {
    /// `None` while a statement runs, and after one failed.
    open: Option<Lease>,
    turn: Option<OwnedMutexGuard<()>>,
}

impl SqliteTransaction {
    /// Wraps a transaction that was begun on `lease`.
    pub(super) async fn new(
        mut lease: Lease,
        turn: OwnedMutexGuard<()>,
    ) -> Result<Self, StoreError> {
        raw_sql(MARK).execute(&mut *lease).await.map_err(failed)?;
        Ok(Self { open: Some(lease), turn: Some(turn) })
    }

    /// The rows of `keys` that `sql` selects.
    async fn selected(
        &mut self,
        sql: &'static str,
        keys: &KeyFilter,
        except: &[KeyId],
        limit: usize,
    ) -> Result<Vec<SqliteRow>, StoreError> {
        let query = match keys {
            KeyFilter::Consumer(id) | KeyFilter::ConsumerPrefix { consumer_id: id, .. } => {
                query(sql).bind(id.clone())
            }
            KeyFilter::Prefix(key_prefix) => query(sql).bind(key_prefix.clone()),
            KeyFilter::EndedBefore(end) => query(sql).bind(micros_up(*end)?),
        };
        let mut query = query.bind(bounded(limit)).bind(texts(except)?);
        if let KeyFilter::ConsumerPrefix { key_prefix, .. } = keys {
            query = query.bind(key_prefix.clone());
        }
        let mut open = self.take()?;
        let rows = run!(open, query.fetch_all(&mut *open));
        self.open = Some(open);
        Ok(rows)
    }

    /// The connection, for a statement of a trial.
    pub(super) fn connection(&mut self) -> Result<&mut SqliteConnection, StoreError> {
        self.open.as_deref_mut().ok_or_else(ended)
    }

    /// Takes the connection for one statement; put back when it succeeds.
    fn take(&mut self) -> Result<Lease, StoreError> {
        self.open.take().ok_or_else(ended)
    }
}

impl Drop for SqliteTransaction {
    fn drop(&mut self) {
        if let Some(lease) = self.open.take() {
            lease.roll_back(self.turn.take());
        }
    }
}

impl fmt::Debug for SqliteTransaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteTransaction").field("is_open", &self.open.is_some()).finish()
    }
}

impl KeyTransaction for SqliteTransaction {
    async fn lock(&mut self, ids: &[KeyId]) -> Result<Vec<KeyRecord>, StoreError> {
        let lock = query(LOCK).bind(texts(ids)?);
        let mut open = self.take()?;
        let rows = run!(open, lock.fetch_all(&mut *open));
        self.open = Some(open);
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
        let batch = records.iter().map(key_values).collect::<Result<Vec<_>, _>>()?;
        let insert = query_scalar(INSERT).bind(json(&batch)?);
        let mut open = self.take()?;
        let inserted: Vec<Uuid> = run!(open, insert.fetch_all(&mut *open));
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
            .bind(row.plan)
            .bind(row.networks.as_ref().map(json).transpose()?)
            .bind(row.tags.as_ref().map(json).transpose()?)
            .bind(row.origins.as_ref().map(json).transpose()?);
        let mut open = self.take()?;
        let row = run!(open, update.fetch_optional(&mut *open));
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
        let rows = run!(open, revoke.fetch_all(&mut *open));
        self.open = Some(open);
        let mut revoked = records(&rows)?;
        revoked.sort_unstable_by_key(|record| record.id);
        Ok(revoked)
    }

    /// There is only one writer, so no lock is needed.
    async fn count_keys(&mut self, asked: &KeyCountQuery) -> Result<KeyCounts, StoreError> {
        let count = query_as(COUNT)
            .bind(asked.consumer_id.clone())
            .bind(uuid(asked.recent_from))
            .bind(bounded(asked.limit));
        let mut open = self.take()?;
        let counted: (i64, i64) = run!(open, count.fetch_one(&mut *open));
        self.open = Some(open);
        Ok(counts(counted, asked.limit))
    }

    async fn nth_rotation(
        &mut self,
        root: KeyId,
        nth: usize,
    ) -> Result<Option<SystemTime>, StoreError> {
        let find = query_scalar(NTH_ROTATION).bind(uuid(root)).bind(bounded(nth.saturating_sub(1)));
        let mut open = self.take()?;
        let at: Option<i64> = run!(open, find.fetch_optional(&mut *open));
        self.open = Some(open);
        at.map(|at| read_time("created_at", at)).transpose()
    }

    async fn delete(&mut self, ids: &[KeyId]) -> Result<(), StoreError> {
        let delete = query(DELETE).bind(texts(ids)?);
        let mut open = self.take()?;
        run!(open, delete.execute(&mut *open));
        self.open = Some(open);
        Ok(())
    }

    async fn write_audit(&mut self, entries: &[AuditEntry]) -> Result<(), StoreError> {
        let batch: Vec<_> = entries.iter().map(entry_values).collect();
        let record = query(WRITE_AUDIT).bind(json(&batch)?);
        let mut open = self.take()?;
        run!(open, record.execute(&mut *open));
        self.open = Some(open);
        Ok(())
    }

    async fn set_plan(
        &mut self,
        name: &str,
        limits: &RateLimits,
    ) -> Result<Option<String>, StoreError> {
        let mut open = self.take()?;
        let before = plans::set(&mut open, name, limits).await?;
        self.open = Some(open);
        Ok(before)
    }

    async fn remove_plan(&mut self, name: &str) -> Result<Option<String>, StoreError> {
        let mut open = self.take()?;
        let before = plans::remove(&mut open, name).await?;
        self.open = Some(open);
        Ok(before)
    }

    async fn claim_idempotency_key(
        &mut self,
        claim: &IdempotencyRecord,
    ) -> Result<Option<IdempotencyRecord>, StoreError> {
        let request = claim.request.to_vec();
        let insert = query_scalar(CLAIM)
            .bind(request.clone())
            .bind(claim.fingerprint.to_vec())
            .bind(uuid(claim.key_id));
        let mut open = self.take()?;
        let inserted: Option<bool> = run!(open, insert.fetch_optional(&mut *open));
        let mut earlier: Option<(Vec<u8>, Uuid)> = None;
        if inserted.is_none() {
            let read = query_as(CLAIMED).bind(request);
            earlier = Some(run!(open, read.fetch_one(&mut *open)));
        }
        self.open = Some(open);
        let earlier = earlier.map(|(fingerprint, id)| claimed(claim.request, &fingerprint, id));
        earlier.transpose()
    }

    async fn delete_expired(
        &mut self,
        before: SystemTime,
        limit: usize,
    ) -> Result<usize, StoreError> {
        let limit = bounded(limit);
        let requests = query(DELETE_REQUESTS).bind(micros_up(before)?).bind(limit);
        let mut open = self.take()?;
        let requests = run!(open, requests.execute(&mut *open)).rows_affected();
        let usage = query(DELETE_USAGE).bind(limit.saturating_sub_unsigned(requests));
        let usage = run!(open, usage.execute(&mut *open)).rows_affected();
        self.open = Some(open);
        Ok(usize::try_from(requests + usage).unwrap_or(usize::MAX))
    }

    async fn delete_counted_uses(
        &mut self,
        hours_before: SystemTime,
        writers_before: SystemTime,
        limit: usize,
    ) -> Result<usize, StoreError> {
        let mut open = self.take()?;
        let rows = usage::delete_counts(&mut open, hours_before, writers_before, limit).await?;
        self.open = Some(open);
        Ok(rows)
    }

    async fn known_legacy_hashes(
        &mut self,
        digests: &[[u8; 32]],
    ) -> Result<Vec<[u8; 32]>, StoreError> {
        let mut open = self.take()?;
        let known = legacy_hashes::known(&mut open, digests).await?;
        self.open = Some(open);
        Ok(known)
    }

    async fn insert_legacy_hashes(&mut self, keys: &[LegacyKey]) -> Result<usize, StoreError> {
        let mut open = self.take()?;
        let most = legacy_hashes::insert(&mut open, keys).await?;
        self.open = Some(open);
        Ok(most)
    }

    async fn replace_legacy_hash(
        &mut self,
        id: KeyId,
        digest: &[u8; 32],
        hash: &KeyHash,
    ) -> Result<Option<KeyRecord>, StoreError> {
        let mut open = self.take()?;
        let moved = legacy_hashes::replace(&mut open, id, digest, hash).await?;
        self.open = Some(open);
        Ok(moved)
    }

    async fn commit(mut self) -> Result<(), StoreError> {
        let mut open = self.take()?;
        raw_sql(UNMARK).execute(&mut *open).await.map_err(failed)?;
        open.commit().await
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
        row.networks.as_ref().map(json).transpose()?,
        row.tags.as_ref().map(json).transpose()?,
        row.origins.as_ref().map(json).transpose()?,
        row.kind,
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
