mod batch;
mod builder;
mod doctor;
mod encryption;
mod error;
mod lease;
mod list;
mod listen;
mod lookup_pool;
mod management;
mod plans;
mod record;
mod schema;
mod sql;
mod timestamp;
mod transaction;
mod usage;
mod uuid;

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use sqlx::{PgConnection, PgPool, query, query_as, query_scalar, raw_sql};

use self::{
    batch::Batcher,
    error::{UNDEFINED_TABLE, failed, hidden},
    management::Management,
    record::{columns, read_time, record, uuid},
    schema::{Places, Schema, Statements, foreign},
};
pub use self::{builder::PgKeyStoreBuilder, listen::PgChangeFeed, transaction::PgTransaction};
use super::{
    EventPage, EventQuery, KeyPage, KeyQuery, KeyStore, ManageKeys, StoreError, Usage,
    migrate::{self, Applied},
    poll::{ChangeLog, Changes, LogPosition, Replica},
    row::{self, Polled, Uuid, corrupt},
};
#[cfg(doc)]
use crate::store::StoreErrorKind;
use crate::{
    key::KeyHash,
    record::{KeyId, KeyRecord},
};

/// Key store in PostgreSQL 14 or later.
///
/// # Schema
///
/// All tables are in one schema, which is determined once: the one set by
/// [`schema`](PgKeyStoreBuilder::schema), otherwise the one on the `search_path` that has the
/// migration history, `_api_key_migrations`. Nothing is created or read in other schemas.
///
/// # Connections
///
/// Authentication has connections that management cannot take. Per process with one store:
///
/// | for | at most |
/// |---|---|
/// | key look-ups and polling for changes | 3: two look-ups and one spare |
/// | changes, lists, audit, plans, last-use times | those of the pool: 5 with [`connect`](Self::connect) |
/// | a [`PgChangeFeed`], if used | 1, plus one briefly while connecting |
///
/// Unless set with [`lookup_pool`](PgKeyStoreBuilder::lookup_pool), the look-up pool is created
/// from the supplied pool, with its options and hooks. If that has a single connection, the look-up
/// pool has two.
///
/// Two look-ups at a time run as separate queries; those that arrive meanwhile are batched, up to
/// 64 in one query, as soon as one of the two has ended.
///
/// Management takes at most 8 connections, and at most one less than its pool has. If these stay
/// busy for a second, it fails as [`Overloaded`](StoreErrorKind::Overloaded). Its transactions wait
/// at most half a second for a lock, and a statement takes at most 5 seconds.
///
/// # Row-level security
///
/// Rows hidden by row-level security cause an error; the key never looks unknown. Look-ups answer
/// 503 while row-level security is active for the role on `api_keys` or, for keys with a plan, on
/// `api_key_plans`. The role needs BYPASSRLS or ownership of the tables.
///
/// # Poolers
///
/// Look-ups keep no session state; management keeps it within one transaction.
///
/// | PgBouncer | mode | |
/// |---|---|---|
/// | 1.18 | session | tested |
/// | 1.18 | transaction | fails when two connections share a server connection, because they prepare statements with the same name. `api-key doctor` reports a problem |
/// | 1.21 and later | transaction | tracks prepared statements if `max_prepared_statements` is above 0: tested with 1.24 |
///
/// Each connection prepares a small fixed set of statements. `statement_cache_capacity(0)`, the
/// usual advice for old poolers, leaks statements in sqlx 0.9.
///
/// # Cancellation
///
/// Every future may be dropped at any time, and a query ends when its last waiter is gone. A
/// connection in the middle of a query is then closed and replaced instead of being reused, so a
/// hanging database costs a query its connection but never the pool its capacity. A dropped
/// transaction is rolled back.
#[derive(Clone)]
pub struct PgKeyStore {
    batcher: Arc<Batcher>,
    management: Arc<Management>,
}

impl PgKeyStore {
    /// Builds a store with other settings, such as the schema of its tables.
    pub fn builder() -> PgKeyStoreBuilder {
        PgKeyStoreBuilder::new()
    }

    /// A store in the database behind `pool`, which management uses. Look-ups use a separate pool
    /// with the same options.
    ///
    /// When the database is gone, a look-up waits at most for the pool's `acquire_timeout` (30
    /// seconds by default), unless its caller gives up earlier.
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        Self::builder().around(pool, None)
    }

    /// A store in the database at `url`, with pools of its own. For applications that use another
    /// version of sqlx, or none.
    ///
    /// The management pool has
    ///
    /// 1. at most 5 connections, and the look-up pool at most 3: look-ups are cache misses and take
    ///    a millisecond, so that is thousands per second, and every node of a fleet takes its share
    ///    of the server;
    /// 2. an acquire timeout of 2 seconds;
    /// 3. a `statement_timeout` of 5 seconds, so that abandoned statements end on the server, too.
    ///
    /// TLS follows the URL, and is **optional by default**: on a network that you do not control,
    /// add `sslmode=verify-full`, see [the manual](crate::manual::deployment). It needs a feature
    /// `tls-…`; `tls-rustls-ring` is on by default. For a pooler that rejects startup options,
    /// create a pool yourself and use [`new`](Self::new).
    ///
    /// # Errors
    ///
    /// When the URL is invalid, or the database cannot be reached.
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        Self::builder().connect(url).await
    }

    /// Like [`connect`](Self::connect), but does not connect yet. For a service that has to start
    /// before its database; run [`migrate`](Self::migrate) when deploying instead.
    ///
    /// The store answers 503 until the database is reachable, and
    /// [`health`](crate::Authenticator::health) reports that it is not ready.
    ///
    /// # Errors
    ///
    /// When the URL is invalid.
    pub fn connect_lazy(url: &str) -> Result<Self, StoreError> {
        Self::builder().connect_lazy(url)
    }

    /// A feed of changes in this store's schema, over its own connection with the options of the
    /// store's [pool](Self::pool).
    #[must_use]
    pub fn change_feed(&self) -> PgChangeFeed {
        PgChangeFeed::of(self.pool().clone(), Arc::clone(self.management.schema()))
    }

    /// The management pool, for the application's own queries. Look-ups do not use its connections.
    #[must_use]
    pub fn pool(&self) -> &PgPool {
        self.management.pool()
    }

    /// Migrates the tables.
    ///
    /// Any number of processes may call this concurrently: one migrates, in one transaction under
    /// the advisory lock 7021227462866860403 ("api-keys"), and the others wait. A process that is
    /// killed or fails leaves neither changes nor the lock behind. If no migration is missing,
    /// nothing is locked, and the right to read the history, `_api_key_migrations`, is enough.
    ///
    /// Tables are created in the schema set by [`schema`](PgKeyStoreBuilder::schema), which is
    /// created if missing; otherwise in the schema that has the history; otherwise in the first
    /// schema of the `search_path`.
    ///
    /// A history newer than this release is accepted: releases only add, so an old node keeps
    /// working during a rolling upgrade.
    ///
    /// # Errors
    ///
    /// [`Migration`](StoreErrorKind::Migration) when a statement fails, when an applied migration
    /// was changed, when the tables are in a schema that neither the setting nor the `search_path`
    /// names, or when a table `api_keys` of the application is in the way;
    /// [`Unavailable`](StoreErrorKind::Unavailable) when the database is unavailable or read-only,
    /// or when another session keeps a table locked for 5 seconds. It may be retried.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        let mut lease = self.management.lease().await?;
        let setting = self.management.schema().setting();
        match bring_up_to_date(&mut lease, setting).await {
            Ok(()) => lease.release(),
            Err(error) => return Err(migrate::failed(error)),
        }
        Ok(())
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

const GET: &str = concat!("select ", columns!(), " from api_keys where id = $1");

const LAST_USED_AT: &str = "select last_used_at from api_key_usage where key_id = $1";

impl KeyStore for PgKeyStore {
    async fn find(&self, hash: &KeyHash) -> Result<Option<KeyRecord>, StoreError> {
        self.batcher.find(hash).await
    }

    async fn record_usage(&self, batch: &[Usage]) -> Result<(), StoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        usage::record(&self.management, batch).await
    }
}

impl ManageKeys for PgKeyStore {
    type Transaction = PgTransaction;

    async fn begin(&self) -> Result<PgTransaction, StoreError> {
        let mut lease = self.management.begin(|statements| &statements.begin).await?;
        let statements = self.management.schema().statements(&mut lease).await?;
        Ok(PgTransaction::new(lease, statements))
    }

    async fn get(&self, id: KeyId) -> Result<Option<KeyRecord>, StoreError> {
        let mut lease = self.management.begin(|statements| &statements.begin_read).await?;
        let record = get(&mut lease, id).await?;
        self.management.commit(lease).await?;
        Ok(record)
    }

    async fn list(&self, query: &KeyQuery) -> Result<KeyPage, StoreError> {
        let mut lease = self.management.begin(|statements| &statements.begin_list).await?;
        let page = list::keys(&mut lease, query).await?;
        self.management.commit(lease).await?;
        Ok(page)
    }

    async fn events(&self, query: &EventQuery) -> Result<EventPage, StoreError> {
        let mut lease = self.management.begin(|statements| &statements.begin_read).await?;
        let page = list::events(&mut lease, query).await?;
        self.management.commit(lease).await?;
        Ok(page)
    }

    async fn last_used_at(&self, id: KeyId) -> Result<Option<SystemTime>, StoreError> {
        let mut lease = self.management.begin(|statements| &statements.begin_read).await?;
        let at = last_used_at(&mut lease, id).await?;
        self.management.commit(lease).await?;
        Ok(at)
    }
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

/// [`Polled`], the role that rows are hidden from, and a standby's position.
type PolledBy = (
    i64,
    i64,
    Option<Uuid>,
    Option<i64>,
    Option<i64>,
    Option<String>,
    Option<i64>,
    Option<i64>,
    Option<i64>,
);

impl ChangeLog for PgKeyStore {
    /// Uses look-up connections, which management cannot take.
    async fn changes_since(&self, horizon: Option<LogPosition>) -> Result<Changes, StoreError> {
        let mut lease = self.batcher.pool().lease().await?;
        let statements = self.management.schema().statements(&mut lease).await;
        let statements = statements.map_err(migrate::failed)?;
        let changes = changes_since(&mut lease, &statements, horizon).await?;
        self.management.schema().confirm(&statements);
        lease.release();
        Ok(changes)
    }

    async fn end(&self) -> Result<u64, StoreError> {
        let mut lease = self.batcher.pool().lease().await?;
        let end: i64 = query_scalar(END).fetch_one(&mut *lease).await.map_err(failed)?;
        lease.release();
        u64::try_from(end).map_err(|_| corrupt("invalid write-ahead log position"))
    }
}

// Standbys are sent only what has been flushed.
const END: &str = "select (pg_current_wal_flush_lsn() - '0/0'::pg_lsn)::bigint";

async fn changes_since(
    connection: &mut PgConnection,
    statements: &Statements,
    horizon: Option<LogPosition>,
) -> Result<Changes, StoreError> {
    let changes = query_as(statements.changes.clone()).bind(row::from(horizon)?);
    let rows: Vec<PolledBy> = changes.fetch_all(connection).await.map_err(unlogged)?;
    if let Some((.., Some(role), _, _, _)) = rows.first() {
        return Err(hidden("api_key_changes", role));
    }
    let replica = rows.first().and_then(|(.., applied, known, age)| {
        let known = known.and_then(|known| u64::try_from(known).ok());
        // Measured by two clocks: a commit in the future has age zero.
        let age = age.map(|micros| Duration::from_micros(u64::try_from(micros).unwrap_or(0)));
        Some(Replica::new(u64::try_from((*applied)?).ok()?, known, age))
    });
    let rows: Vec<Polled> = rows
        .into_iter()
        .map(|(from, server, id, created, changed, ..)| (from, server, id, created, changed))
        .collect();
    Ok(Changes { replica, ..row::changes(&rows)? })
}

fn unlogged(error: sqlx::Error) -> StoreError {
    match error.as_database_error().and_then(|error| error.code()) {
        Some(code) if code == UNDEFINED_TABLE => migrate::no_changes(),
        _ => failed(error),
    }
}

async fn bring_up_to_date(
    connection: &mut PgConnection,
    setting: Option<&Schema>,
) -> Result<(), StoreError> {
    let (_, history) = history(connection, setting).await?;
    if migrate::missing(migrate::POSTGRES, &history)?.is_empty() {
        return Ok(());
    }
    // Later statements must see what earlier lock holders committed, whatever the default isolation
    // level.
    raw_sql("begin isolation level read committed")
        .execute(&mut *connection)
        .await
        .map_err(failed)?;
    raw_sql(LOCK).execute(&mut *connection).await.map_err(failed)?;
    let (places, history) = self::history(connection, setting).await?;
    let schema = match setting {
        Some(setting) => setting.clone(),
        None => match places.of_history()? {
            Some(schema) => schema,
            None => places.of_new_tables()?,
        },
    };
    if places.is_foreign(&schema) {
        return Err(foreign(&schema));
    }
    if setting.is_some() && !exists(connection, &schema).await? {
        let create = schema.fill("create schema if not exists {schema}");
        raw_sql(create).execute(&mut *connection).await.map_err(failed)?;
    }
    let path = schema.fill("set local search_path = {schema}, pg_temp");
    raw_sql(path).execute(&mut *connection).await.map_err(failed)?;
    raw_sql(CREATE_HISTORY).execute(&mut *connection).await.map_err(failed)?;
    for migration in migrate::missing(migrate::POSTGRES, &history)? {
        let applied = raw_sql(migration.sql).execute(&mut *connection).await;
        applied.map_err(|error| migration.blame(failed(error)))?;
        let record = query(RECORD_MIGRATION)
            .bind(migration.version)
            .bind(migration.description)
            .bind(migration.checksum());
        record.execute(&mut *connection).await.map_err(failed)?;
    }
    raw_sql("commit").execute(connection).await.map_err(failed)?;
    Ok(())
}

/// Where tables with our names are, and the migration history in the configured schema, or else on
/// the search path.
async fn history(
    connection: &mut PgConnection,
    setting: Option<&Schema>,
) -> Result<(Places, Vec<Applied>), StoreError> {
    let places = Places::on(connection).await?;
    let schema = match setting {
        Some(setting) => places.has_history(setting).then(|| setting.clone()),
        None => places.of_history()?,
    };
    let mut history = Vec::new();
    if let Some(schema) = schema {
        let applied = schema.fill("select version, checksum from {schema}._api_key_migrations");
        history = query_as(applied).fetch_all(connection).await.map_err(failed)?;
    }
    Ok((places, history))
}

async fn exists(connection: &mut PgConnection, schema: &Schema) -> Result<bool, StoreError> {
    let exists = query_scalar("select exists (select from pg_namespace where nspname = $1)");
    exists.bind(schema.name()).fetch_one(connection).await.map_err(failed)
}

// The first to migrate may take a while. Table locks have a short timeout, because look-ups queue
// up behind a waiting lock request.
const LOCK: &str = "
set local statement_timeout = 0;
set local lock_timeout = '5min';
select pg_advisory_xact_lock(7021227462866860403);
set local lock_timeout = '5s'";

const CREATE_HISTORY: &str = "
create table if not exists _api_key_migrations (
    version bigint primary key,
    description text not null,
    checksum bigint not null,
    applied_at timestamptz not null default clock_timestamp()
)";

const RECORD_MIGRATION: &str =
    "insert into _api_key_migrations (version, description, checksum) values ($1, $2, $3)";
