mod batch;
mod doctor;
mod error;
mod lease;
mod list;
mod listen;
mod plans;
mod record;
mod timestamp;
mod transaction;

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use sqlx::{
    ConnectOptions as _, Connection, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
    query, query_as, query_scalar, raw_sql,
};
use tokio::time::timeout;

use self::{
    batch::Batcher,
    error::{UNDEFINED_TABLE, failed},
    lease::Lease,
    record::{columns, read_time, record, uuid},
    timestamp::Timestamp,
};
pub use self::{listen::PgChangeFeed, transaction::PgTransaction};
use super::{
    EventPage, EventQuery, KeyPage, KeyQuery, KeyStore, ManageKeys, StoreError, StoreErrorKind,
    Usage,
    migrate::{self, Applied, Migration},
    poll::{ChangeLog, Changes, Horizon},
    row::{self, Polled, micros},
};
use crate::{
    key::KeyHash,
    record::{KeyId, KeyRecord},
};

/// Keys in PostgreSQL 14 or later.
///
/// Tables have unqualified names: the `search_path` of the connections decides their schema.
/// Clones share one pool.
///
/// Two look-ups at a time are queries of their own; those that come meanwhile are asked for
/// together, up to 64 in one query, as soon as one of the two has ended.
///
/// Behind PgBouncer in transaction mode it takes version 1.21 or later, which keeps track of
/// prepared statements. `statement_cache_capacity(0)`, the advice for older ones, leaks statements
/// in sqlx 0.9.
///
/// # Cancellation
///
/// Every future may be dropped at any time, and a query ends when nobody waits for it. A connection in the middle of a query is then closed
/// and replaced rather than handed to somebody else, so a database that hangs costs a query its
/// connection, and never the pool its capacity. A transaction that is dropped is rolled back.
#[derive(Clone)]
pub struct PgKeyStore {
    batcher: Arc<Batcher>,
}

impl PgKeyStore {
    /// Keys in the database behind `pool`.
    ///
    /// The pool's `acquire_timeout` (30 seconds by default) is what a look-up waits at most when
    /// the database is gone, unless its caller has less patience.
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        Self { batcher: Arc::new(Batcher::new(pool)) }
    }

    /// Keys in the database at `url`, over a pool of its own. For applications that use another
    /// version of sqlx, or none.
    ///
    /// The pool has
    ///
    /// 1. at most 5 connections: look-ups are the misses of a cache and take a millisecond, so
    ///    that is thousands a second, and every node of a fleet takes its share of the server;
    /// 2. an acquire timeout of 2 seconds: nobody waits longer for an answer;
    /// 3. a `statement_timeout` of 5 seconds: what nobody waits for any more ends on the server, too.
    ///
    /// TLS is as the URL says, and **optional where it says nothing**: `sslmode=verify-full` is
    /// what a network that is not yours takes. A pooler that rejects startup options wants a pool
    /// of your own and [`new`](Self::new).
    ///
    /// # Errors
    ///
    /// When the URL makes no sense, or the database cannot be reached.
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        let store = Self::connect_lazy(url)?;
        // By itself first: all that a pool says of a failure is that time was up.
        let options = store.pool().connect_options();
        let attempt = timeout(ACQUIRE_TIMEOUT, options.connect()).await;
        let connection =
            attempt.map_err(|late| StoreError::new(StoreErrorKind::Unavailable).because(late))?;
        connection.map_err(failed)?.close().await.map_err(failed)?;
        Ok(store)
    }

    /// As [`connect`](Self::connect), without trying to. For a service that has to start before its
    /// database; [`migrate`](Self::migrate) then belongs to whatever deploys it.
    ///
    /// It answers 503 until the database is there, and
    /// [`health`](crate::Authenticator::health) says that it is not ready.
    ///
    /// # Errors
    ///
    /// When the URL makes no sense.
    pub fn connect_lazy(url: &str) -> Result<Self, StoreError> {
        if !["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme)) {
            let problem = "a PostgreSQL URL begins with `postgres://`";
            return Err(StoreError::new(StoreErrorKind::Other).because(problem));
        }
        let options: PgConnectOptions = url.parse().map_err(failed)?;
        let options = options.options([("statement_timeout", "5s")]);
        let pool = PgPoolOptions::new().max_connections(5).acquire_timeout(ACQUIRE_TIMEOUT);
        Ok(Self::new(pool.connect_lazy_with(options)))
    }

    /// The pool, for the application's own queries.
    #[must_use]
    pub fn pool(&self) -> &PgPool {
        self.batcher.pool()
    }

    /// Brings the tables up to date.
    ///
    /// Any number of processes may do so at once: one works, in one transaction and under the
    /// advisory lock 7021227462866860403 ("api-keys"), and the others wait for it. A process that
    /// is killed or fails leaves neither changes nor the lock behind. When nothing is missing,
    /// nothing is locked, and the right to read the history, `_api_key_migrations`, is enough.
    ///
    /// A history newer than this release is fine: releases only add, so an old node goes on working
    /// through a rolling upgrade.
    ///
    /// # Errors
    ///
    /// [`Migration`](StoreErrorKind::Migration) when a statement fails, or when a migration was
    /// changed after it had been applied; [`Unavailable`](StoreErrorKind::Unavailable) when the
    /// database is, when it may only be read, or when others keep a table locked for 5 seconds.
    /// It may be tried again.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        let mut lease = self.lease().await?;
        bring_up_to_date(&mut lease).await.map_err(migrate::failed)?;
        lease.release();
        Ok(())
    }

    async fn lease(&self) -> Result<Lease, StoreError> {
        Ok(Lease::new(self.pool().acquire().await.map_err(failed)?))
    }
}

impl fmt::Debug for PgKeyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The pool's options may hold a password.
        f.debug_struct("PgKeyStore")
            .field("connections", &self.pool().size())
            .field("idle", &self.pool().num_idle())
            .finish_non_exhaustive()
    }
}

const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);

const GET: &str = concat!("select ", columns!(), " from api_keys where id = $1");

// Rows are locked in the order of their ids, so two nodes that record the same keys queue up
// instead of waiting for each other. A time that is not news is not written.
const RECORD_USAGE: &str = "
insert into api_key_usage as stored (key_id, last_used_at)
select used.id, used.at
from unnest($1, $2) as used (id, at)
where exists (select from api_keys where api_keys.id = used.id)
order by used.id
on conflict (key_id) do update set last_used_at = excluded.last_used_at
where stored.last_used_at < excluded.last_used_at";

const LAST_USED_AT: &str = "select last_used_at from api_key_usage where key_id = $1";

impl KeyStore for PgKeyStore {
    async fn find(&self, hash: &KeyHash) -> Result<Option<KeyRecord>, StoreError> {
        self.batcher.find(hash).await
    }

    async fn record_usage(&self, batch: &[Usage]) -> Result<(), StoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        let mut lease = self.lease().await?;
        flush_usage(&mut lease, batch).await?;
        lease.release();
        Ok(())
    }
}

async fn flush_usage(connection: &mut PgConnection, batch: &[Usage]) -> Result<(), StoreError> {
    let mut ids = Vec::with_capacity(batch.len());
    let mut times = Vec::with_capacity(batch.len());
    for usage in batch {
        ids.push(uuid(usage.key_id));
        times.push(Timestamp(micros(usage.last_used_at)?));
    }
    let record = query(RECORD_USAGE).bind(ids).bind(times);
    record.execute(connection).await.map_err(failed)?;
    Ok(())
}

async fn get(connection: &mut PgConnection, id: KeyId) -> Result<Option<KeyRecord>, StoreError> {
    record(query(GET).bind(uuid(id)).fetch_optional(connection).await.map_err(failed)?)
}

async fn last_used_at(
    connection: &mut PgConnection,
    id: KeyId,
) -> Result<Option<SystemTime>, StoreError> {
    let last_used_at = query_scalar(LAST_USED_AT).bind(uuid(id));
    let at = last_used_at.fetch_optional(connection).await.map_err(failed)?;
    at.map(|at| read_time("last_used_at", at)).transpose()
}

async fn changes_since(
    connection: &mut PgConnection,
    horizon: Option<Horizon>,
) -> Result<Changes, StoreError> {
    let changes = query_as(CHANGES).bind(row::from(horizon)?);
    let rows: Vec<Polled> = changes.fetch_all(connection).await.map_err(unlogged)?;
    row::changes(&rows)
}

impl ManageKeys for PgKeyStore {
    type Transaction = PgTransaction;

    async fn begin(&self) -> Result<PgTransaction, StoreError> {
        PgTransaction::begin(self.lease().await?).await
    }

    async fn get(&self, id: KeyId) -> Result<Option<KeyRecord>, StoreError> {
        let mut lease = self.lease().await?;
        let record = get(&mut lease, id).await?;
        lease.release();
        Ok(record)
    }

    async fn list(&self, query: &KeyQuery) -> Result<KeyPage, StoreError> {
        let mut lease = self.lease().await?;
        let page = list::keys(&mut lease, query).await?;
        lease.release();
        Ok(page)
    }

    async fn events(&self, query: &EventQuery) -> Result<EventPage, StoreError> {
        let mut lease = self.lease().await?;
        let page = list::events(&mut lease, query).await?;
        lease.release();
        Ok(page)
    }

    async fn last_used_at(&self, id: KeyId) -> Result<Option<SystemTime>, StoreError> {
        let mut lease = self.lease().await?;
        let at = last_used_at(&mut lease, id).await?;
        lease.release();
        Ok(at)
    }
}

// One statement, so that the horizon is that of the snapshot that the rows were read in. Nothing
// lies beyond its end but what another server has numbered, before its tables were restored here.
//
// A standby does not know which transactions are running, but where they begin.
//
// Numbers that no disk has seen are drawn again once a server has recovered from a crash. It may do so
// without ending, as when one of its processes was killed; its statistics begin anew then.
const CHANGES: &str = "
select
    pg_snapshot_xmin(snapshot)::text::bigint,
    (extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint
        # coalesce((extract(epoch from recovered.stats_reset) * 1000000)::bigint, 0),
    key_id,
    created_in::text::bigint,
    changed_in::text::bigint
from pg_current_snapshot() as snapshot
cross join pg_stat_get_wal() as recovered
left join api_key_changes
    on changed_in >= coalesce($1::bigint::text::xid8, pg_snapshot_xmin(snapshot))
    and changed_in < pg_snapshot_xmax(snapshot)";

impl ChangeLog for PgKeyStore {
    async fn changes_since(&self, horizon: Option<Horizon>) -> Result<Changes, StoreError> {
        let mut lease = self.lease().await?;
        let changes = changes_since(&mut lease, horizon).await?;
        lease.release();
        Ok(changes)
    }
}

fn unlogged(error: sqlx::Error) -> StoreError {
    match error.as_database_error().and_then(|error| error.code()) {
        Some(code) if code == UNDEFINED_TABLE => migrate::no_changes(),
        _ => failed(error),
    }
}

async fn bring_up_to_date(connection: &mut PgConnection) -> Result<(), StoreError> {
    if missing(connection).await?.is_empty() {
        return Ok(());
    }
    // What those did who had the lock before us must be seen, whatever isolation is the default.
    let begin = "begin isolation level read committed";
    let mut transaction = connection.begin_with(begin).await.map_err(failed)?;
    raw_sql(LOCK).execute(&mut *transaction).await.map_err(failed)?;
    for migration in missing(&mut transaction).await? {
        let applied = raw_sql(migration.sql).execute(&mut *transaction).await;
        applied.map_err(|error| migration.blame(failed(error)))?;
        let record = query(RECORD_MIGRATION)
            .bind(migration.version)
            .bind(migration.description)
            .bind(migration.checksum());
        record.execute(&mut *transaction).await.map_err(failed)?;
    }
    transaction.commit().await.map_err(failed)
}

async fn missing(connection: &mut PgConnection) -> Result<Vec<&'static Migration>, StoreError> {
    let begun = query_scalar("select to_regclass('_api_key_migrations') is not null");
    let mut history: Vec<Applied> = Vec::new();
    if begun.fetch_one(&mut *connection).await.map_err(failed)? {
        let applied = query_as("select version, checksum from _api_key_migrations");
        history = applied.fetch_all(connection).await.map_err(failed)?;
    }
    migrate::missing(migrate::POSTGRES, &history)
}

// Whoever migrates first may take a while. A table is waited for briefly only: until this
// transaction gets it, all look-ups queue up behind.
const LOCK: &str = "
set local statement_timeout = 0;
set local lock_timeout = '5min';
select pg_advisory_xact_lock(7021227462866860403);
set local lock_timeout = '5s';
create table if not exists _api_key_migrations (
    version bigint primary key,
    description text not null,
    checksum bigint not null,
    applied_at timestamptz not null default clock_timestamp()
)";

const RECORD_MIGRATION: &str =
    "insert into _api_key_migrations (version, description, checksum) values ($1, $2, $3)";
