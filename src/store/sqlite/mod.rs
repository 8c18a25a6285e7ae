mod adopt;
mod change_log;
mod doctor;
mod error;
mod file;
mod lease;
mod legacy_hashes;
mod list;
mod lookup_pool;
mod migrate;
#[cfg(feature = "webhooks")]
mod notices;
mod plans;
mod pragmas;
mod read_usage;
mod record;
mod transaction;
mod usage;
mod uuid;
#[cfg(feature = "webhooks")]
mod webhooks;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use sqlx::{
    ConnectOptions, SqliteConnection, SqlitePool, query, query_scalar,
    sqlite::{SqliteConnectOptions, SqlitePoolOptions},
};
use tokio::{
    sync::{Mutex, OwnedMutexGuard},
    time::timeout,
};

pub use self::transaction::SqliteTransaction;
use self::{
    error::failed,
    file::File,
    lease::{Lease, READ, WRITE},
    lookup_pool::LookupPool,
    migrate::bring_up_to_date,
    pragmas::BUSY_TIMEOUT,
    record::{columns, hex, now, read_time, record, records, uuid},
};
use super::{
    EventPage, EventQuery, KeyPage, KeyQuery, KeyStore, ManageKeys, PollingChangeFeed, StoreError,
    StoreErrorKind, UsageBucket, UsageCursor, UsageQuery,
    migrate::failed as migration_failed,
    port::{Backend, HourlyUse, KeyTransaction as _, UsageBatch},
    row::{answering, json},
};
use crate::{
    key::KeyHash,
    record::{AuditEntry, KeyId, KeyRecord},
};

/// Key store in an embedded SQLite database: one file, for services on one machine.
///
/// Any number of processes may share the file. Clones share their pools. Look-ups and polling have
/// at most 3 connections of their own, which management cannot take. Every future may be dropped at
/// any time: a running statement ends by itself, and a dropped transaction is rolled back.
#[derive(Clone)]
pub struct SqliteKeyStore {
    pool: SqlitePool,
    lookups: Arc<LookupPool>,
    /// Transactions are serialised before they take a connection: otherwise those waiting for the
    /// file would leave none for other operations.
    writer: Arc<Mutex<()>>,
    file: Arc<File>,
    /// Keeps a database in memory alive, which would end with its last connection. The pool's own
    /// connections come and go.
    anchor: Option<Arc<SqliteConnection>>,
}

impl SqliteKeyStore {
    /// A store in the database behind `pool`.
    ///
    /// A pool of `sqlite::memory:` loses its keys with its connections: use
    /// [`in_memory`](Self::in_memory) instead.
    #[must_use]
    pub fn new(pool: SqlitePool) -> Self {
        let lookups = Arc::new(LookupPool::new(pool.clone()));
        let file = Arc::new(File::at(pool.connect_options().get_filename()));
        Self { pool, lookups, writer: Arc::default(), file, anchor: None }
    }

    /// A store in the file at `url`, for example `sqlite:keys.db` or
    /// `sqlite:///var/lib/app/keys.db`, with a pool of its own. The file is created if missing,
    /// unless the URL has a `mode` other than `rwc`. On Unix only its owner can read and write a
    /// file created here (mode 0600), with its log (`-wal`, `-shm`): it holds hashes of keys and the
    /// audit. An existing file keeps its permissions. `sqlite::memory:` is the same as
    /// [`in_memory`](Self::in_memory).
    ///
    /// The pool has
    ///
    /// 1. a write-ahead log, so that look-ups do not wait for writers;
    /// 2. a busy timeout of 5 seconds: writers of several processes take turns instead of failing;
    /// 3. `synchronous = full`: committed changes survive a power cut. With `normal`, which is
    ///    usual with a write-ahead log, a key revoked just before a power cut would work again
    ///    after it;
    /// 4. at most 4 connections, each a thread, and an acquire timeout of 2 seconds; look-ups have
    ///    a pool of their own with at most 3.
    ///
    /// # Errors
    ///
    /// When the URL is invalid, or the file cannot be opened.
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        if !url.starts_with("sqlite:") {
            let problem = "a SQLite URL must begin with `sqlite:`";
            return Err(StoreError::new(StoreErrorKind::Other).because(problem));
        }
        let (path, parameters) = url.split_once('?').unwrap_or((url, ""));
        if path.trim_start_matches("sqlite:").trim_start_matches('/').is_empty() {
            // SQLite treats an empty name as a temporary database, separate for each connection.
            let problem = "a SQLite URL must name a file, or be `sqlite::memory:`";
            return Err(StoreError::new(StoreErrorKind::Other).because(problem));
        }
        let mode = parameters.split('&').find_map(|parameter| parameter.strip_prefix("mode="));
        if path.ends_with(":memory:") || mode == Some("memory") {
            return Self::in_memory().await;
        }
        let options: SqliteConnectOptions = url.parse().map_err(failed)?;
        let creates = matches!(mode, None | Some("rwc"));
        let options = pragmas::of_a_file(options).create_if_missing(creates);
        if creates && !parameters.contains("vfs=") {
            file::create(options.get_filename());
        }
        if mode != Some("ro") {
            pragmas::write_ahead(&options).await?;
        }
        Ok(Self::new(pool_options().connect_with(options).await.map_err(failed)?))
    }

    /// A store in memory, lost with its last clone. For tests that need SQL, and for
    /// demonstrations.
    ///
    /// # Errors
    ///
    /// When SQLite cannot be started.
    pub async fn in_memory() -> Result<Self, StoreError> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        // Connections share a database of this VFS by its name and wait for each other as on a
        // file. The shared cache of `sqlite::memory:` would return SQLITE_LOCKED instead of
        // waiting.
        let name = format!("/tower-api-key-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let options = SqliteConnectOptions::new()
            .filename(name)
            .vfs("memdb")
            .create_if_missing(true)
            .busy_timeout(BUSY_TIMEOUT);
        let anchor = options.connect().await.map_err(failed)?;
        let pool = pool_options().connect_with(options).await.map_err(failed)?;
        Ok(Self { anchor: Some(Arc::new(anchor)), ..Self::new(pool) })
    }

    /// The management pool, for the application's own queries. Look-ups do not use its connections,
    /// unless it is a pool of `sqlite::memory:`.
    #[must_use]
    pub fn pool(&self) -> &SqlitePool {
        &self.pool
    }

    /// Migrates the tables.
    ///
    /// Any number of processes may call this concurrently: one writes, in one transaction, and the
    /// others wait. A process that is killed or fails leaves no changes behind. If no migration is
    /// missing from the history, `_api_key_migrations`, nothing is written.
    ///
    /// A history newer than this release is accepted: releases only add.
    ///
    /// # Errors
    ///
    /// [`Migration`](StoreErrorKind::Migration) when a statement fails, or when an applied
    /// migration was changed; [`Unavailable`](StoreErrorKind::Unavailable) when the file stays
    /// locked. It may be retried.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        bring_up_to_date(&self.pool).await.map_err(migration_failed)
    }

    /// The SQL of the migrations from version `from` on, for a service that keeps all SQL in a
    /// migration tool of its own: put it into one migration of that tool, and
    /// [adopt](Self::adopt) the tables. A comment line names each migration.
    ///
    /// # Errors
    ///
    /// When there is no migration from `from` on.
    pub fn migration_sql(from: i64) -> Result<String, StoreError> {
        super::migrate::script(super::migrate::SQLITE, from)
    }

    async fn writer(&self) -> Result<OwnedMutexGuard<()>, StoreError> {
        let turn = timeout(BUSY_TIMEOUT, Arc::clone(&self.writer).lock_owned()).await;
        turn.map_err(|late| StoreError::new(StoreErrorKind::Overloaded).because(late))
    }
}

fn pool_options() -> SqlitePoolOptions {
    SqlitePoolOptions::new().max_connections(4).acquire_timeout(Duration::from_secs(2))
}

impl fmt::Debug for SqliteKeyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteKeyStore")
            .field("connections", &self.pool.size())
            .field("idle", &self.pool.num_idle())
            .finish_non_exhaustive()
    }
}

const FIND: &str = concat!("select ", columns!(), " from api_keys where key_hash = ?1");

const GET: &str = concat!("select ", columns!(), " from api_keys where id = ?1");

// The batch is one parameter, in JSON, however large it is.
const FIND_MANY: &str = concat!(
    "select ",
    columns!(),
    " from api_keys where key_hash in (select unhex(value) from json_each(?1))"
);

const LAST_USED_AT: &str = "select last_used_at from api_key_usage where key_id = ?1";

impl KeyStore for SqliteKeyStore {
    async fn find(&self, hash: &KeyHash) -> Result<Option<KeyRecord>, StoreError> {
        let mut connection = self.lookups.pool()?.acquire().await.map_err(failed)?;
        find(&mut connection, hash).await
    }

    async fn record_usage(&self, batch: &UsageBatch) -> Result<(), StoreError> {
        usage::record(&self.pool, batch).await
    }

    async fn append_audit(&self, entries: &[AuditEntry]) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        transaction.write_audit(entries).await?;
        transaction.commit().await
    }
}

impl ManageKeys for SqliteKeyStore {
    type Transaction = SqliteTransaction;

    async fn begin(&self) -> Result<SqliteTransaction, StoreError> {
        let turn = self.writer().await?;
        let lease = Lease::begin(&self.pool, WRITE).await?;
        SqliteTransaction::new(lease, turn).await
    }

    async fn get(&self, id: KeyId) -> Result<Option<KeyRecord>, StoreError> {
        let mut lease = Lease::begin(&self.pool, READ).await?;
        let record = get(&mut lease, id).await?;
        lease.commit().await?;
        Ok(record)
    }

    async fn find_many(&self, hashes: &[KeyHash]) -> Result<Vec<KeyRecord>, StoreError> {
        let mut lease = Lease::begin(&self.pool, READ).await?;
        let found = find_many(&mut lease, hashes).await?;
        lease.commit().await?;
        Ok(found)
    }

    async fn list(&self, query: &KeyQuery) -> Result<KeyPage, StoreError> {
        let mut lease = Lease::begin(&self.pool, READ).await?;
        let page = list::keys(&mut lease, query).await?;
        lease.commit().await?;
        Ok(page)
    }

    async fn events(&self, query: &EventQuery) -> Result<EventPage, StoreError> {
        let mut lease = Lease::begin(&self.pool, READ).await?;
        let page = list::events(&mut lease, query).await?;
        lease.commit().await?;
        Ok(page)
    }

    async fn last_used_at(&self, id: KeyId) -> Result<Option<SystemTime>, StoreError> {
        let mut lease = Lease::begin(&self.pool, READ).await?;
        let at = last_used_at(&mut lease, id).await?;
        lease.commit().await?;
        Ok(at)
    }

    async fn usage(&self, query: &UsageQuery) -> Result<Vec<UsageBucket>, StoreError> {
        let mut lease = Lease::begin(&self.pool, READ).await?;
        let buckets = read_usage::buckets(&mut lease, query).await?;
        lease.commit().await?;
        Ok(buckets)
    }

    async fn usage_hours(
        &self,
        after: UsageCursor,
        end: SystemTime,
        limit: usize,
    ) -> Result<Vec<HourlyUse>, StoreError> {
        let mut lease = Lease::begin(&self.pool, READ).await?;
        let hours = read_usage::hours(&mut lease, after, end, limit).await?;
        lease.commit().await?;
        Ok(hours)
    }
}

impl Backend for SqliteKeyStore {
    type Feed = PollingChangeFeed<Self>;

    async fn migrate(&self) -> Result<(), StoreError> {
        Self::migrate(self).await
    }

    /// A file may be shared with other processes, if only with the command line.
    fn change_feed(&self) -> Option<PollingChangeFeed<Self>> {
        self.anchor.is_none().then(|| PollingChangeFeed::new(self.clone()))
    }
}

async fn find(
    connection: &mut SqliteConnection,
    hash: &KeyHash,
) -> Result<Option<KeyRecord>, StoreError> {
    let find = query(FIND).bind(hash.as_bytes().to_vec());
    answering(hash, record(find.fetch_optional(connection).await.map_err(failed)?)?)
}

async fn get(
    connection: &mut SqliteConnection,
    id: KeyId,
) -> Result<Option<KeyRecord>, StoreError> {
    record(query(GET).bind(uuid(id)).fetch_optional(connection).await.map_err(failed)?)
}

async fn find_many(
    connection: &mut SqliteConnection,
    hashes: &[KeyHash],
) -> Result<Vec<KeyRecord>, StoreError> {
    let hashes: Vec<_> = hashes.iter().map(|hash| hex(hash.as_bytes())).collect();
    let find = query(FIND_MANY).bind(json(&hashes)?);
    records(&find.fetch_all(connection).await.map_err(failed)?)
}

async fn last_used_at(
    connection: &mut SqliteConnection,
    id: KeyId,
) -> Result<Option<SystemTime>, StoreError> {
    let last_used_at = query_scalar(LAST_USED_AT).bind(uuid(id));
    let at = last_used_at.fetch_optional(connection).await.map_err(failed)?;
    at.map(|at| read_time("last_used_at", at)).transpose()
}
