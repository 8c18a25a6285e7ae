//! Webhook endpoints, and the audit in the order in which they get it.

use std::time::{Duration, SystemTime};

use sqlx::{Row as _, query, query_scalar, sqlite::SqliteRow};

use super::{
    SqliteKeyStore, SqliteTransaction,
    error::failed,
    lease::{Lease, READ, WRITE},
    list::event,
    notices,
    record::now,
};
use crate::{
    record::{AuditEntry, WebhookEndpoint, WebhookId},
    store::{
        ManageKeys as _, StoreError,
        page::CHUNK,
        port::{AuditFrontier, AuditLine, KeyTransaction as _, Notice, WebhookStore},
        row::{Endpoint, Lines, Uuid, bounded, corrupt},
    },
};

const LEASE: &str = concat!(
    "update api_key_webhook_lease set holder = ?1, expires_at = ",
    now!(),
    " + ?2 where holder = ?1 or expires_at <= ",
    now!()
);

const RELEASE: &str = "update api_key_webhook_lease set expires_at = 0 where holder = ?1";

const ADD: &str = "
insert into api_key_webhooks (id, url, secret, events, delivered_to)
select ?1, ?2, ?3, ?4, coalesce((select max(id) from api_key_events), 0)
where (select count(*) from api_key_webhooks) < ?5";

const ALL: &str = "
select id, url, secret, previous_secret, previous_until, events, delivered_to, state, failures,
    next_attempt_at, last_error, last_delivered_at, created_at, version
from api_key_webhooks order by created_at, id";

const UPDATE: &str = "
update api_key_webhooks
set secret = ?3, previous_secret = ?4, previous_until = ?5, delivered_to = ?6, state = ?7,
    failures = ?8, next_attempt_at = ?9, last_error = ?10, last_delivered_at = ?11,
    version = version + 1
where id = ?1 and version = ?2";

const REMOVE: &str = "delete from api_key_webhooks where id = ?1";

// One writer at a time: events are seen in the order of their numbers.
const FRONTIER: &str = "select coalesce(max(id), 0) from api_key_events";

const AFTER: &str = "
select id, at, action, key_id, consumer_id, actor, origin, reason, changes
from api_key_events where id > ?1 and id <= ?2 order by id limit ?3";

impl WebhookStore for SqliteKeyStore {
    async fn lease_webhooks(
        &self,
        holder: [u8; 16],
        duration: Duration,
    ) -> Result<bool, StoreError> {
        let micros = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        let take = query(LEASE).bind(Uuid::from_bytes(holder)).bind(micros);
        let mut lease = Lease::begin(self.pool(), WRITE).await?;
        let taken = take.execute(&mut *lease).await;
        let (taken, lease) = lease.after(taken)?;
        lease.commit().await?;
        Ok(taken.rows_affected() > 0)
    }

    async fn release_webhooks(&self, holder: [u8; 16]) -> Result<(), StoreError> {
        let release = query(RELEASE).bind(Uuid::from_bytes(holder));
        let mut lease = Lease::begin(self.pool(), WRITE).await?;
        let released = release.execute(&mut *lease).await;
        lease.after(released)?.1.commit().await
    }

    async fn add_webhook(
        &self,
        endpoint: &WebhookEndpoint,
        max: usize,
        audit: AuditEntry,
    ) -> Result<bool, StoreError> {
        let row = Endpoint::of(endpoint)?;
        let add = query(ADD)
            .bind(Uuid::from_bytes(row.id))
            .bind(row.url)
            .bind(row.secret)
            .bind(row.events)
            .bind(bounded(max));
        let mut transaction = self.begin().await?;
        let added = add.execute(transaction.connection()?).await.map_err(failed)?;
        finish(transaction, added.rows_affected() > 0, Some(audit)).await
    }

    async fn webhooks(&self) -> Result<Vec<WebhookEndpoint>, StoreError> {
        let mut lease = Lease::begin(self.pool(), READ).await?;
        let rows = query(ALL).fetch_all(&mut *lease).await;
        let (rows, lease) = lease.after(rows)?;
        lease.commit().await?;
        rows.iter().map(|row| endpoint(row).map_err(failed)?.parse()).collect()
    }

    async fn update_webhook(
        &self,
        endpoint: &WebhookEndpoint,
        audit: Option<AuditEntry>,
    ) -> Result<bool, StoreError> {
        let row = Endpoint::of(endpoint)?;
        let update = query(UPDATE)
            .bind(Uuid::from_bytes(row.id))
            .bind(row.version)
            .bind(row.secret)
            .bind(row.previous_secret)
            .bind(row.previous_until)
            .bind(row.delivered_to)
            .bind(row.state)
            .bind(row.failures)
            .bind(row.next_attempt_at)
            .bind(row.last_error)
            .bind(row.last_delivered_at);
        let mut transaction = self.begin().await?;
        let updated = update.execute(transaction.connection()?).await.map_err(failed)?;
        finish(transaction, updated.rows_affected() > 0, audit).await
    }

    async fn remove_webhook(&self, id: WebhookId, audit: AuditEntry) -> Result<bool, StoreError> {
        let remove = query(REMOVE).bind(Uuid::from_bytes(*id.as_bytes()));
        let mut transaction = self.begin().await?;
        let removed = remove.execute(transaction.connection()?).await.map_err(failed)?;
        finish(transaction, removed.rows_affected() > 0, Some(audit)).await
    }

    async fn audit_frontier(&self) -> Result<AuditFrontier, StoreError> {
        let mut lease = Lease::begin(self.pool(), READ).await?;
        let last = query_scalar(FRONTIER).fetch_one(&mut *lease).await;
        let (last, lease): (i64, _) = lease.after(last)?;
        lease.commit().await?;
        let last = u64::try_from(last).map_err(|_| corrupt("column `id` of an event: negative"))?;
        Ok(AuditFrontier::new(last, Vec::new()))
    }

    async fn audit_after(
        &self,
        after: u64,
        until: u64,
        limit: usize,
    ) -> Result<Vec<AuditLine>, StoreError> {
        let number = |number| i64::try_from(number).unwrap_or(i64::MAX);
        let (mut last, until) = (number(after), number(until));
        let mut lines = Lines::new(limit);
        let mut lease = Lease::begin(self.pool(), READ).await?;
        loop {
            let after = query(AFTER).bind(last).bind(until).bind(bounded(limit.min(CHUNK)));
            let rows = after.fetch_all(&mut *lease).await.map_err(failed)?;
            let events = rows.iter().map(event).collect::<sqlx::Result<Vec<_>>>();
            match lines.add(events.map_err(failed)?)? {
                Some(id) if rows.len() >= CHUNK => last = id,
                _ => break,
            }
        }
        lease.commit().await?;
        Ok(lines.finish())
    }

    async fn write_notices(
        &self,
        notice: Notice,
        now: SystemTime,
        limit: usize,
    ) -> Result<usize, StoreError> {
        notices::write(self, notice, now, limit).await
    }
}

/// Commits a change that was made, with its line in the audit.
async fn finish(
    mut transaction: SqliteTransaction,
    is_made: bool,
    audit: Option<AuditEntry>,
) -> Result<bool, StoreError> {
    if is_made {
        transaction.write_audit(audit.as_slice()).await?;
        transaction.commit().await?;
    }
    Ok(is_made)
}

fn endpoint(row: &SqliteRow) -> sqlx::Result<Endpoint> {
    Ok(Endpoint {
        id: row.try_get::<Uuid, _>("id")?.into_bytes(),
        url: row.try_get("url")?,
        secret: row.try_get("secret")?,
        previous_secret: row.try_get("previous_secret")?,
        previous_until: row.try_get("previous_until")?,
        events: row.try_get("events")?,
        delivered_to: row.try_get("delivered_to")?,
        state: row.try_get("state")?,
        failures: row.try_get("failures")?,
        next_attempt_at: row.try_get("next_attempt_at")?,
        last_error: row.try_get("last_error")?,
        last_delivered_at: row.try_get("last_delivered_at")?,
        created_at: row.try_get("created_at")?,
        version: row.try_get("version")?,
    })
}
