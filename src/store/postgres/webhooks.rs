//! Webhook endpoints, and the audit in the order in which they get it.

use std::time::{Duration, SystemTime};

use sqlx::{Row as _, postgres::PgRow, query, query_as, raw_sql};

use super::{PgKeyStore, PgTransaction, error::failed, list::event, notices, timestamp::Timestamp};
use crate::{
    record::{AuditEntry, WebhookEndpoint, WebhookId},
    store::{
        ManageKeys as _, StoreError,
        page::CHUNK,
        port::{AuditFrontier, AuditLine, KeyTransaction as _, Notice, WebhookStore},
        row::{Endpoint, Lines, Uuid, bounded, corrupt},
    },
};

const LEASE: &str = "
update api_key_webhook_lease
set holder = $1, expires_at = clock_timestamp() + $2 * interval '1 microsecond'
where holder = $1 or expires_at <= clock_timestamp()";

const RELEASE: &str = "update api_key_webhook_lease set expires_at = 'epoch' where holder = $1";

// Two at once must not both add the last one that is permitted.
const LOCK: &str = "lock table api_key_webhooks in share row exclusive mode";

const ADD: &str = "
insert into api_key_webhooks (id, url, secret, events, delivered_to)
select $1, $2, $3, $4, coalesce((select max(id) from api_key_events), 0)
where (select count(*) from api_key_webhooks) < $5";

const ALL: &str = "
select id, url, secret, previous_secret, previous_until, events, delivered_to, state, failures,
    next_attempt_at, last_error, last_delivered_at, created_at, version
from api_key_webhooks order by created_at, id";

const UPDATE: &str = "
update api_key_webhooks
set secret = $3, previous_secret = $4, previous_until = $5, delivered_to = $6, state = $7,
    failures = $8, next_attempt_at = $9, last_error = $10, last_delivered_at = $11,
    version = version + 1
where id = $1 and version = $2";

const REMOVE: &str = "delete from api_key_webhooks where id = $1";

// A transaction locks the table before it takes a number, until it ends. The events are read in the
// snapshot of the statement, the locks afterwards: a transaction with a lower number that the snapshot
// does not show is among them, or has ended and is seen by the next statement.
const FRONTIER: &str = "
select
    coalesce((select max(id) from api_key_events), 0),
    array(
        select distinct case when pid is null then 'prepared' else virtualtransaction end
        from pg_locks
        where locktype = 'relation' and mode = 'RowExclusiveLock' and granted
            and relation = to_regclass('api_key_events')
            and database = (select oid from pg_database where datname = current_database())
    )";

const AFTER: &str = "
select id, at, action, key_id, consumer_id, actor, origin, reason, changes::text as changes
from api_key_events where id > $1 and id <= $2 order by id limit $3";

impl WebhookStore for PgKeyStore {
    async fn lease_webhooks(
        &self,
        holder: [u8; 16],
        duration: Duration,
    ) -> Result<bool, StoreError> {
        let micros = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        let lease = query(LEASE).bind(Uuid::from_bytes(holder)).bind(micros);
        let mut connection = self.management.begin(|statements| &statements.begin).await?;
        let taken = lease.execute(&mut *connection).await.map_err(failed)?.rows_affected() > 0;
        self.management.commit(connection).await?;
        Ok(taken)
    }

    async fn release_webhooks(&self, holder: [u8; 16]) -> Result<(), StoreError> {
        let release = query(RELEASE).bind(Uuid::from_bytes(holder));
        let mut connection = self.management.begin(|statements| &statements.begin).await?;
        release.execute(&mut *connection).await.map_err(failed)?;
        self.management.commit(connection).await
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
        let (connection, _) = transaction.parts()?;
        raw_sql(LOCK).execute(&mut *connection).await.map_err(failed)?;
        let added = add.execute(connection).await.map_err(failed)?.rows_affected() > 0;
        finish(transaction, added, Some(audit)).await
    }

    async fn webhooks(&self) -> Result<Vec<WebhookEndpoint>, StoreError> {
        let mut lease = self.management.begin(|statements| &statements.begin_read).await?;
        let rows = query(ALL).fetch_all(&mut *lease).await.map_err(failed)?;
        self.management.commit(lease).await?;
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
            .bind(row.previous_until.map(Timestamp))
            .bind(row.delivered_to)
            .bind(row.state)
            .bind(i32::try_from(row.failures).unwrap_or(i32::MAX))
            .bind(row.next_attempt_at.map(Timestamp))
            .bind(row.last_error)
            .bind(row.last_delivered_at.map(Timestamp));
        let mut transaction = self.begin().await?;
        let (connection, _) = transaction.parts()?;
        let updated = update.execute(connection).await.map_err(failed)?.rows_affected() > 0;
        finish(transaction, updated, audit).await
    }

    async fn remove_webhook(&self, id: WebhookId, audit: AuditEntry) -> Result<bool, StoreError> {
        let remove = query(REMOVE).bind(Uuid::from_bytes(*id.as_bytes()));
        let mut transaction = self.begin().await?;
        let (connection, _) = transaction.parts()?;
        let removed = remove.execute(connection).await.map_err(failed)?.rows_affected() > 0;
        finish(transaction, removed, Some(audit)).await
    }

    async fn audit_frontier(&self) -> Result<AuditFrontier, StoreError> {
        let mut lease = self.management.begin(|statements| &statements.begin_read).await?;
        let frontier = query_as(FRONTIER).fetch_one(&mut *lease);
        let (last, writers): (i64, Vec<String>) = frontier.await.map_err(failed)?;
        self.management.commit(lease).await?;
        let last = u64::try_from(last).map_err(|_| corrupt("column `id` of an event: negative"))?;
        Ok(AuditFrontier::new(last, writers))
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
        let mut lease = self.management.begin(|statements| &statements.begin_read).await?;
        loop {
            let after = query(AFTER).bind(last).bind(until).bind(bounded(limit.min(CHUNK)));
            let rows = after.fetch_all(&mut *lease).await.map_err(failed)?;
            let events = rows.iter().map(event).collect::<sqlx::Result<Vec<_>>>();
            match lines.add(events.map_err(failed)?)? {
                Some(id) if rows.len() >= CHUNK => last = id,
                _ => break,
            }
        }
        self.management.commit(lease).await?;
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
    mut transaction: PgTransaction,
    is_made: bool,
    audit: Option<AuditEntry>,
) -> Result<bool, StoreError> {
    if is_made {
        transaction.write_audit(audit.as_slice()).await?;
        transaction.commit().await?;
    }
    Ok(is_made)
}

fn endpoint(row: &PgRow) -> sqlx::Result<Endpoint> {
    let micros = |column: &str| -> sqlx::Result<Option<i64>> {
        Ok(row.try_get::<Option<Timestamp>, _>(column)?.map(|at| at.0))
    };
    Ok(Endpoint {
        id: row.try_get::<Uuid, _>("id")?.into_bytes(),
        url: row.try_get("url")?,
        secret: row.try_get("secret")?,
        previous_secret: row.try_get("previous_secret")?,
        previous_until: micros("previous_until")?,
        events: row.try_get("events")?,
        delivered_to: row.try_get("delivered_to")?,
        state: row.try_get("state")?,
        failures: row.try_get::<i32, _>("failures")?.into(),
        next_attempt_at: micros("next_attempt_at")?,
        last_error: row.try_get("last_error")?,
        last_delivered_at: micros("last_delivered_at")?,
        created_at: row.try_get::<Timestamp, _>("created_at")?.0,
        version: row.try_get("version")?,
    })
}
