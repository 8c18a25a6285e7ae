mod queries;

use std::{fmt, sync::Arc, time::SystemTime};

use sqlx::{PgConnection, Row as _, postgres::PgRow, query, query_as, query_scalar, raw_sql};

use self::queries::{
    CLAIM, CLAIMED, COUNT, DELETE, DELETE_REQUESTS, DELETE_USAGE, INSERT, LOCK, LOCK_CONSUMER,
    LOCK_CONSUMER_PREFIX, LOCK_COUNT, LOCK_ENDED, LOCK_PREFIX, NTH_ROTATION, REVOKE,
    SELECT_CONSUMER, SELECT_CONSUMER_PREFIX, SELECT_ENDED, SELECT_PREFIX, UPDATE, WRITE_AUDIT,
};
use super::{
    error::failed,
    lease::Lease,
    legacy_hashes, plans,
    record::{read_time, record, records, uuid},
    schema::Statements,
    timestamp::Timestamp,
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

/// A conflicting row may be deleted before it is read. The limit ends the loop when a trigger of
/// the application never keeps rows.
const CLAIM_ATTEMPTS: usize = 5;

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
        let insert = insert
            .bind(lists(&rows, |row| row.networks.as_ref())?)
            .bind(lists(&rows, |row| row.tags.as_ref())?)
            .bind(lists(&rows, |row| row.origins.as_ref())?)
            .bind(column(&rows, |row| row.kind.clone()));
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
            .bind(row.plan)
            .bind(row.networks)
            .bind(row.tags)
            .bind(row.origins);
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
        let record = query(WRITE_AUDIT)
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
        let requests = query(DELETE_REQUESTS).bind(Timestamp(micros_up(before)?)).bind(limit);
        let mut lease = self.take()?;
        let requests = requests.execute(&mut *lease).await.map_err(failed)?.rows_affected();
        let rest = limit.saturating_sub_unsigned(requests);
        let usage = query(DELETE_USAGE).bind(rest);
        let usage = usage.execute(&mut *lease).await.map_err(failed)?.rows_affected();
        self.lease = Some(lease);
        Ok(usize::try_from(requests + usage).unwrap_or(usize::MAX))
    }

    async fn delete_counted_uses(
        &mut self,
        hours_before: SystemTime,
        writers_before: SystemTime,
        limit: usize,
    ) -> Result<usize, StoreError> {
        let mut lease = self.take()?;
        let rows = usage::delete_counts(&mut lease, hours_before, writers_before, limit).await?;
        self.lease = Some(lease);
        Ok(rows)
    }

    async fn known_legacy_hashes(
        &mut self,
        digests: &[[u8; 32]],
    ) -> Result<Vec<[u8; 32]>, StoreError> {
        let mut lease = self.take()?;
        let known = legacy_hashes::known(&mut lease, digests).await?;
        self.lease = Some(lease);
        Ok(known)
    }

    async fn insert_legacy_hashes(&mut self, keys: &[LegacyKey]) -> Result<usize, StoreError> {
        let mut lease = self.take()?;
        let most = legacy_hashes::insert(&mut lease, keys).await?;
        self.lease = Some(lease);
        Ok(most)
    }

    async fn replace_legacy_hash(
        &mut self,
        id: KeyId,
        digest: &[u8; 32],
        hash: &KeyHash,
    ) -> Result<Option<KeyRecord>, StoreError> {
        let mut lease = self.take()?;
        let moved = legacy_hashes::replace(&mut lease, id, digest, hash).await?;
        self.lease = Some(lease);
        Ok(moved)
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

/// One column of lists, each as JSON: PostgreSQL has no arrays of arrays of different lengths.
fn lists(
    rows: &[Row],
    list: impl Fn(&Row) -> Option<&Vec<String>>,
) -> Result<Vec<Option<String>>, StoreError> {
    rows.iter().map(|row| list(row).map(json).transpose()).collect()
}

/// One column of all rows, as an array.
fn column<R, T>(rows: &[R], value: impl Fn(&R) -> T) -> Vec<T> {
    rows.iter().map(value).collect()
}
