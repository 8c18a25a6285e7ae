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

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use sqlx::{PgConnection, PgPool, query, query_as, query_scalar, raw_sql};
use uuid::Uuid;

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
    poll::{ChangeLog, Changes, Horizon, Replica},
    row::{self, Polled, corrupt},
};
#[cfg(doc)]
use crate::store::StoreErrorKind;
use crate::{
    key::KeyHash,
    record::{KeyId, KeyRecord},
};

/// Keys in PostgreSQL 14 or later.
///
/// # Schema
///
/// All tables are in one schema, which is decided once: the one that
/// [`schema`](PgKeyStoreBuilder::schema) names, else where the history of the tables,
/// `_api_key_migrations`, is found along the `search_path`. Nothing is created or read anywhere
/// else, whatever else is on the path.
///
/// # Connections
///
/// Authentication has connections that management cannot take. Of each process that has one store:
///
/// | for | at most |
/// |---|---|
/// | look-ups of keys and polls for changes | 3: two look-ups and one to spare |
/// | changes, lists, the audit, plans, times of last use | those of the pool: 5 by [`connect`](Self::connect) |
/// | a [`PgChangeFeed`], where there is one | 1, and one more for a moment while it connects |
///
/// The pool of the look-ups is made after the one that is handed in, with its options and hooks,
/// unless [`lookup_pool`](PgKeyStoreBuilder::lookup_pool) says which. After a pool of a single
/// connection, it has two.
///
/// Two look-ups at a time are queries of their own; those that come meanwhile are asked for
/// together, up to 64 in one query, as soon as one of the two has ended.
///
/// Management takes at most one connection less than its pool has, and at most 8. Where these are
/// busy for a second, it is [`Overloaded`](StoreErrorKind::Overloaded). Its transactions wait
/// at most half a second for a lock, and a statement takes at most 5 seconds.
///
/// # Row-level security
///
/// Rows that row-level security hides are an error, never a key that is unknown: look-ups answer
/// 503 while it is active for the role on `api_keys` or, for keys with a plan, on `api_key_plans`.
/// The role takes BYPASSRLS, or to be the owner of the tables.
///
/// # Poolers
///
/// Look-ups keep no state in a session, and management keeps it for one transaction.
///
/// | PgBouncer | mode | |
/// |---|---|---|
/// | 1.18 | session | tested |
/// | 1.18 | transaction | fails where two connections share one to the server: they prepare statements of the same name. `api-key doctor` calls it a problem |
/// | 1.21 and later | transaction | keeps track of prepared statements, with `max_prepared_statements` above 0: tested at 1.24 |
///
/// A connection keeps the same few statements prepared, however much is asked.
/// `statement_cache_capacity(0)`, the advice for old poolers, leaks statements in sqlx 0.9.
///
/// # Cancellation
///
/// Every future may be dropped at any time, and a query ends when nobody waits for it. A connection in the middle of a query is then closed
/// and replaced rather than handed to somebody else, so a database that hangs costs a query its
/// connection, and never the pool its capacity. A transaction that is dropped is rolled back.
#[derive(Clone)]
pub struct PgKeyStore {
    batcher: Arc<Batcher>,
    management: Arc<Management>,
}

impl PgKeyStore {
    /// A store with other than default settings, such as the schema of its tables.
    pub fn builder() -> PgKeyStoreBuilder {
        PgKeyStoreBuilder::new()
    }

    /// Keys in the database behind `pool`, which management takes connections of. Look-ups have a
    /// pool of their own with the same options.
    ///
    /// The pool's `acquire_timeout` (30 seconds by default) is what a look-up waits at most when
    /// the database is gone, unless its caller has less patience.
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        Self::builder().around(pool, None)
    }

    /// Keys in the database at `url`, over pools of its own. For applications that use another
    /// version of sqlx, or none.
    ///
    /// The pool that management uses has
    ///
    /// 1. at most 5 connections, and that of look-ups at most 3: look-ups are the misses of a cache
    ///    and take a millisecond, so that is thousands a second, and every node of a fleet takes
    ///    its share of the server;
    /// 2. an acquire timeout of 2 seconds: nobody waits longer for an answer;
    /// 3. a `statement_timeout` of 5 seconds: what nobody waits for any more ends on the server, too.
    ///
    /// TLS is as the URL says, and **optional where it says nothing**: a network that is not yours
    /// takes `sslmode=verify-full`, see [the manual](crate::manual::deployment). A pooler that rejects startup options wants a pool
    /// of your own and [`new`](Self::new).
    ///
    /// # Errors
    ///
    /// When the URL makes no sense, or the database cannot be reached.
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        Self::builder().connect(url).await
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
        Self::builder().connect_lazy(url)
    }

    /// A feed of the changes in this store's database and schema, over a connection of its own with
    /// the options of its [pool](Self::pool).
    #[must_use]
    pub fn change_feed(&self) -> PgChangeFeed {
        PgChangeFeed::of(self.pool().clone(), Arc::clone(self.management.schema()))
    }

    /// The pool that management uses, for the application's own queries. Look-ups take none of its
    /// connections.
    #[must_use]
    pub fn pool(&self) -> &PgPool {
        self.management.pool()
    }

    /// Brings the tables up to date.
    ///
    /// Any number of processes may do so at once: one works, in one transaction and under the
    /// advisory lock 7021227462866860403 ("api-keys"), and the others wait for it. A process that
    /// is killed or fails leaves neither changes nor the lock behind. When nothing is missing,
    /// nothing is locked, and the right to read the history, `_api_key_migrations`, is enough.
    ///
    /// Tables are created in the schema that the [setting](PgKeyStoreBuilder::schema) names, which
    /// is created where it is missing; else where the history is; else in the first schema of the
    /// `search_path`.
    ///
    /// A history newer than this release is fine: releases only add, so an old node goes on working
    /// through a rolling upgrade.
    ///
    /// # Errors
    ///
    /// [`Migration`](StoreErrorKind::Migration) when a statement fails, when a migration was
    /// changed after it had been applied, when the tables are in a schema that neither the setting
    /// nor the `search_path` names, or when a table `api_keys` of the application is in the way;
    /// [`Unavailable`](StoreErrorKind::Unavailable) when the database is, when it may only be read,
    /// or when others keep a table locked for 5 seconds. It may be tried again.
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

/// [`Polled`], the role that rows are hidden from, and how far a standby is.
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
    /// Over the connections of look-ups, which management cannot take.
    async fn changes_since(&self, horizon: Option<Horizon>) -> Result<Changes, StoreError> {
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
        u64::try_from(end).map_err(|_| corrupt("the position of the write-ahead log"))
    }
}

// What is flushed is what standbys are sent.
const END: &str = "select (pg_current_wal_flush_lsn() - '0/0'::pg_lsn)::bigint";

async fn changes_since(
    connection: &mut PgConnection,
    statements: &Statements,
    horizon: Option<Horizon>,
) -> Result<Changes, StoreError> {
    let changes = query_as(statements.changes.clone()).bind(row::from(horizon)?);
    let rows: Vec<PolledBy> = changes.fetch_all(connection).await.map_err(unlogged)?;
    if let Some((.., Some(role), _, _, _)) = rows.first() {
        return Err(hidden("api_key_changes", role));
    }
    let replica = rows.first().and_then(|(.., applied, known, age)| {
        let known = known.and_then(|known| u64::try_from(known).ok());
        // By two clocks: what was committed in the future is not old.
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
    // What those did who had the lock before us must be seen, whatever isolation is the default.
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

/// Where tables of our names are, and the history of those in the schema of the setting, else of
/// those along the search path.
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

// Whoever migrates first may take a while. A table is waited for briefly only: until this
// transaction gets it, all look-ups queue up behind.
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
