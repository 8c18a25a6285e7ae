mod adopt;
mod batch;
mod builder;
mod change_feed;
mod change_log;
mod doctor;
mod encryption;
mod error;
mod lease;
mod legacy_hashes;
mod list;
mod lookup_pool;
mod management;
mod migrate;
#[cfg(feature = "webhooks")]
mod notices;
mod plans;
mod read_usage;
mod record;
mod schema;
mod sql;
mod timestamp;
mod transaction;
mod usage;
mod uuid;
#[cfg(feature = "webhooks")]
mod webhooks;

use std::{fmt, sync::Arc, time::SystemTime};

use sqlx::{PgConnection, PgPool, query, query_scalar};

use self::{
    batch::Batcher,
    error::failed,
    management::Management,
    migrate::bring_up_to_date,
    record::{columns, read_time, record, records, uuid},
};
pub use self::{builder::PgKeyStoreBuilder, change_feed::PgChangeFeed, transaction::PgTransaction};
#[cfg(doc)]
use crate::store::StoreErrorKind;
use crate::{
    key::KeyHash,
    record::{AuditEntry, KeyId, KeyRecord},
    store::{
        self, EventPage, EventQuery, KeyPage, KeyQuery, KeyStore, ManageKeys, StoreError,
        UsageBucket, UsageCursor, UsageQuery,
        port::{Backend, HourlyUse, KeyTransaction as _, UsageBatch},
    },
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

    /// A store in the database at `url`, for a short-lived program such as a command line.
    ///
    /// Like [`connect`](Self::connect), but with at most 2 connections, and without startup options
    /// and statement timeouts: it works through poolers that reject those, and statements may take
    /// long.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect).
    pub async fn connect_briefly(url: &str) -> Result<Self, StoreError> {
        Self::builder().connect_briefly(url).await
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
            Err(error) => return Err(store::migrate::failed(error)),
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

// Inside a subselect, the planner does not see the array's length: one plan serves every batch.
const FIND_MANY: &str =
    concat!("select ", columns!(), " from api_keys where key_hash = any((select $1)::bytea[])");

const LAST_USED_AT: &str = "select last_used_at from api_key_usage where key_id = $1";

impl KeyStore for PgKeyStore {
    async fn find(&self, hash: &KeyHash) -> Result<Option<KeyRecord>, StoreError> {
        self.batcher.find(hash).await
    }

    async fn record_usage(&self, batch: &UsageBatch) -> Result<(), StoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        usage::record(&self.management, batch).await
    }

    async fn append_audit(&self, entries: &[AuditEntry]) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        transaction.write_audit(entries).await?;
        transaction.commit().await
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

    async fn find_many(&self, hashes: &[KeyHash]) -> Result<Vec<KeyRecord>, StoreError> {
        let mut lease = self.management.begin(|statements| &statements.begin_read).await?;
        let found = find_many(&mut lease, hashes).await?;
        self.management.commit(lease).await?;
        Ok(found)
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

    async fn usage(&self, query: &UsageQuery) -> Result<Vec<UsageBucket>, StoreError> {
        let mut lease = self.management.begin(|statements| &statements.begin_read).await?;
        let buckets = read_usage::buckets(&mut lease, query).await?;
        self.management.commit(lease).await?;
        Ok(buckets)
    }

    async fn usage_hours(
        &self,
        after: UsageCursor,
        end: SystemTime,
        limit: usize,
    ) -> Result<Vec<HourlyUse>, StoreError> {
        let mut lease = self.management.begin(|statements| &statements.begin_read).await?;
        let hours = read_usage::hours(&mut lease, after, end, limit).await?;
        self.management.commit(lease).await?;
        Ok(hours)
    }
}

impl Backend for PgKeyStore {
    type Feed = PgChangeFeed;

    async fn migrate(&self) -> Result<(), StoreError> {
        Self::migrate(self).await
    }

    fn change_feed(&self) -> Option<PgChangeFeed> {
        Some(Self::change_feed(self))
    }
}

async fn get(connection: &mut PgConnection, id: KeyId) -> Result<Option<KeyRecord>, StoreError> {
    record(query(GET).bind(uuid(id)).fetch_optional(connection).await.map_err(failed)?)
}

async fn find_many(
    connection: &mut PgConnection,
    hashes: &[KeyHash],
) -> Result<Vec<KeyRecord>, StoreError> {
    let hashes: Vec<_> = hashes.iter().map(|hash| *hash.as_bytes()).collect();
    records(&query(FIND_MANY).bind(hashes).fetch_all(connection).await.map_err(failed)?)
}

async fn last_used_at(
    connection: &mut PgConnection,
    id: KeyId,
) -> Result<Option<SystemTime>, StoreError> {
    let last_used_at = query_scalar(LAST_USED_AT).bind(uuid(id));
    let at = last_used_at.fetch_optional(connection).await.map_err(failed)?;
    at.map(|at| read_time("last_used_at", at)).transpose()
}
