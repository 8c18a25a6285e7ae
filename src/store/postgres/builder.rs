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
    migrate,
    schema::{Schema, SchemaCell, Timeouts},
};
use crate::store::{StoreError, StoreErrorKind};

const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a short-lived program waits for a connection.
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

    /// The schema of the tables, independent of the `search_path`. [`migrate`](PgKeyStore::migrate)
    /// creates it if missing.
    ///
    /// Default: the schema on the `search_path` that has the tables, determined once. A dedicated
    /// schema keeps the tables apart from the application's own.
    pub fn schema(self, name: impl Into<String>) -> Self {
        Self { schema: Some(name.into()), ..self }
    }

    /// The pool for key look-ups and polling. Other uses of this pool can delay look-ups.
    ///
    /// Default: a pool of at most 3 connections with the options of the store's pool.
    pub fn lookup_pool(self, pool: PgPool) -> Self {
        Self { lookup_pool: Some(pool), ..self }
    }

    /// Maximum concurrent management operations (changes, lists and other queries), each of which
    /// takes a connection of the pool; at least one. Further ones wait for a second and then fail
    /// as [`Overloaded`](StoreErrorKind::Overloaded).
    ///
    /// Default: one less than the pool's connections, at most 8.
    pub fn max_management(self, max: usize) -> Self {
        Self { max_management: Some(max), ..self }
    }

    /// How long a management statement waits for a lock, in whole milliseconds; 0 means no limit.
    ///
    /// Default: 500 ms. Otherwise a row that a person at the database prompt has locked keeps every
    /// operation on it waiting, each with a connection.
    pub fn lock_timeout(self, timeout: Duration) -> Self {
        Self { timeouts: Timeouts { lock: timeout, ..self.timeouts }, ..self }
    }

    /// How long a management statement may take, in whole milliseconds; 0 means no limit.
    ///
    /// Default: 5 s.
    pub fn statement_timeout(self, timeout: Duration) -> Self {
        Self { timeouts: Timeouts { statement: timeout, ..self.timeouts }, ..self }
    }

    /// The SQL of the migrations from version `from` on, for a service that keeps all SQL in a
    /// migration tool of its own: put it into one migration of that tool, and
    /// [adopt](PgKeyStore::adopt) the tables. A comment line names each migration.
    ///
    /// With a [`schema`](Self::schema), the SQL creates it, if version 1 is among them, and sets the
    /// search path for its own statements; otherwise the tables go to the first schema on the
    /// search path.
    ///
    /// # Errors
    ///
    /// When there is no migration from `from` on, or the schema name is invalid.
    pub fn migration_sql(&self, from: i64) -> Result<String, StoreError> {
        let schema = self.schema.as_deref().map(Schema::new).transpose()?;
        migrate::script(schema.as_ref(), from)
    }

    /// A store in the database behind `pool`, like [`PgKeyStore::new`].
    ///
    /// # Errors
    ///
    /// When the schema name is invalid.
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

    /// A store in the database at `url`, like [`PgKeyStore::connect`].
    ///
    /// # Errors
    ///
    /// As [`PgKeyStore::connect`], and when the schema name is invalid.
    pub async fn connect(self, url: &str) -> Result<PgKeyStore, StoreError> {
        let store = self.connect_lazy(url)?;
        // Connect without the pool first: a pool reports any failure as a timeout.
        try_to_connect(&store.pool().connect_options(), ACQUIRE_TIMEOUT).await?;
        Ok(store)
    }

    /// Like [`connect`](Self::connect), but does not connect yet: see [`PgKeyStore::connect_lazy`].
    ///
    /// # Errors
    ///
    /// When the URL or the schema name is invalid.
    pub fn connect_lazy(self, url: &str) -> Result<PgKeyStore, StoreError> {
        let options = options(url)?.options([("statement_timeout", "5s")]);
        let pool = PgPoolOptions::new().max_connections(5).acquire_timeout(ACQUIRE_TIMEOUT);
        self.build(pool.connect_lazy_with(options))
    }

    /// Like [`PgKeyStore::connect_briefly`]. Statements have no time limit and wait 5 s for a lock.
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
        let problem = "a PostgreSQL URL must begin with `postgres://`";
        return Err(StoreError::new(StoreErrorKind::Other).because(problem));
    }
    let options: PgConnectOptions = url.parse().map_err(failed)?;
    // In this mode alone, sqlx asks rustls for the provider of the process.
    #[cfg(any(feature = "tls-rustls-ring", feature = "tls-rustls-aws-lc-rs"))]
    if matches!(options.get_ssl_mode(), sqlx::postgres::PgSslMode::VerifyCa) {
        crate::tls::install_provider();
    }
    Ok(options)
}

async fn try_to_connect(options: &PgConnectOptions, deadline: Duration) -> Result<(), StoreError> {
    let attempt = timeout(deadline, options.connect()).await;
    let late = |late| StoreError::new(StoreErrorKind::Unavailable).because(late);
    attempt.map_err(late)?.map_err(failed)?.close().await.map_err(failed)
}
