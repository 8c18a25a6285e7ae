use std::{fmt, sync::Arc, time::Duration};

use sqlx::{
    ConnectOptions as _, Connection as _, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::time::timeout;

use super::{
    PgKeyStore,
    batch::Batcher,
    error::failed,
    lookup_pool::LookupPool,
    management::Management,
    schema::{Schema, SchemaCell, Timeouts},
};
use crate::store::{StoreError, StoreErrorKind};

const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a program that comes and goes waits for a connection.
const BRIEF_DEADLINE: Duration = Duration::from_secs(5);

/// Settings of a [`PgKeyStore`].
///
/// ```no_run
/// # use tower_api_key::store::{PgKeyStore, StoreError};
/// # async fn example() -> Result<(), StoreError> {
/// let store =
///     PgKeyStore::builder().schema("keys").connect("postgres://app@localhost/app").await?;
/// store.migrate().await?;
/// # Ok(())
/// # }
/// ```
#[must_use = "it is finished by `build`, `connect` or `connect_lazy`"]
pub struct PgKeyStoreBuilder {
    schema: Option<String>,
    lookup_pool: Option<PgPool>,
    max_management: Option<usize>,
    timeouts: Timeouts,
}

impl PgKeyStoreBuilder {
    pub(super) fn new() -> Self {
        let timeouts = Timeouts::default();
        Self { schema: None, lookup_pool: None, max_management: None, timeouts }
    }

    /// The schema of the tables, whatever the `search_path` is. [`migrate`](PgKeyStore::migrate)
    /// creates it where it is missing.
    ///
    /// Default: where the tables are found along the `search_path`, which is decided once. A
    /// schema that nothing else uses keeps the tables apart from the application's own.
    pub fn schema(self, name: impl Into<String>) -> Self {
        Self { schema: Some(name.into()), ..self }
    }

    /// The pool that keys are looked up and changes are polled on. What else uses it can keep keys
    /// from being looked up.
    ///
    /// Default: a pool of at most 3 connections with the options of the store's pool.
    pub fn lookup_pool(self, pool: PgPool) -> Self {
        Self { lookup_pool: Some(pool), ..self }
    }

    /// How many changes, lists and questions of management may be under way at once, each of which
    /// takes a connection of the pool; at least one. More wait for a second, and are then
    /// [`Overloaded`](StoreErrorKind::Overloaded).
    ///
    /// Default: one less than the pool has connections, and at most 8.
    pub fn max_management(self, max: usize) -> Self {
        Self { max_management: Some(max), ..self }
    }

    /// How long a statement of management waits for a lock, in whole milliseconds; 0 is without
    /// end.
    ///
    /// Default: 500 ms, as a row that a person at the database's prompt has locked otherwise keeps
    /// all who want it waiting, each with a connection.
    pub fn lock_timeout(self, timeout: Duration) -> Self {
        Self { timeouts: Timeouts { lock: timeout, ..self.timeouts }, ..self }
    }

    /// How long a statement of management may take, in whole milliseconds; 0 is without end.
    ///
    /// Default: 5 s.
    pub fn statement_timeout(self, timeout: Duration) -> Self {
        Self { timeouts: Timeouts { statement: timeout, ..self.timeouts }, ..self }
    }

    /// Keys in the database behind `pool`, as [`PgKeyStore::new`] has it.
    ///
    /// # Errors
    ///
    /// When the name of the schema is one that no schema can have.
    pub fn build(self, pool: PgPool) -> Result<PgKeyStore, StoreError> {
        let schema = self.schema.as_deref().map(Schema::new).transpose()?;
        Ok(self.around(pool, schema))
    }

    pub(super) fn around(self, pool: PgPool, schema: Option<Schema>) -> PgKeyStore {
        let schema = Arc::new(SchemaCell::new(schema, self.timeouts));
        let lookups = LookupPool::new(pool.clone(), self.lookup_pool);
        PgKeyStore {
            batcher: Arc::new(Batcher::new(lookups, Arc::clone(&schema))),
            management: Arc::new(Management::new(pool, self.max_management, schema)),
        }
    }

    /// Keys in the database at `url`, as [`PgKeyStore::connect`] has it.
    ///
    /// # Errors
    ///
    /// As [`PgKeyStore::connect`], and when the name of the schema is one that no schema can have.
    pub async fn connect(self, url: &str) -> Result<PgKeyStore, StoreError> {
        let store = self.connect_lazy(url)?;
        // By itself first: all that a pool says of a failure is that time was up.
        try_to_connect(&store.pool().connect_options(), ACQUIRE_TIMEOUT).await?;
        Ok(store)
    }

    /// As [`connect`](Self::connect), without trying to: see [`PgKeyStore::connect_lazy`].
    ///
    /// # Errors
    ///
    /// When the URL makes no sense, or the name of the schema is one that no schema can have.
    pub fn connect_lazy(self, url: &str) -> Result<PgKeyStore, StoreError> {
        let options = options(url)?.options([("statement_timeout", "5s")]);
        let pool = PgPoolOptions::new().max_connections(5).acquire_timeout(ACQUIRE_TIMEOUT);
        self.build(pool.connect_lazy_with(options))
    }

    /// As [`PgKeyStore::connect_briefly`]. Statements may take as long as they do, and wait 5 s for
    /// a lock.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect).
    pub async fn connect_briefly(self, url: &str) -> Result<PgKeyStore, StoreError> {
        let options = options(url)?;
        try_to_connect(&options, BRIEF_DEADLINE).await?;
        let pool = PgPoolOptions::new().max_connections(2).acquire_timeout(BRIEF_DEADLINE);
        let brief = self.lock_timeout(BRIEF_DEADLINE).statement_timeout(Duration::ZERO);
        brief.build(pool.connect_lazy_with(options))
    }
}

impl fmt::Debug for PgKeyStoreBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A pool's options may hold a password.
        f.debug_struct("PgKeyStoreBuilder")
            .field("schema", &self.schema)
            .field("max_management", &self.max_management)
            .field("timeouts", &self.timeouts)
            .finish_non_exhaustive()
    }
}

fn options(url: &str) -> Result<PgConnectOptions, StoreError> {
    if !["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme)) {
        let problem = "a PostgreSQL URL begins with `postgres://`";
        return Err(StoreError::new(StoreErrorKind::Other).because(problem));
    }
    url.parse().map_err(failed)
}

async fn try_to_connect(options: &PgConnectOptions, deadline: Duration) -> Result<(), StoreError> {
    let attempt = timeout(deadline, options.connect()).await;
    let late = |late| StoreError::new(StoreErrorKind::Unavailable).because(late);
    attempt.map_err(late)?.map_err(failed)?.close().await.map_err(failed)
}
