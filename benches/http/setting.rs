//! What all servers share: a PostgreSQL server with keys.

use std::{error::Error, io::Write, path::Path};

use sqlx::query_scalar;
use tempfile::NamedTempFile;
use tower_api_key::{
    key::ApiKey,
    manage::{Expiry, KeyImport, KeyIssuer, NewKey},
    record::Scopes,
    store::PgKeyStore,
};

use crate::{
    Result,
    harness::postgres::{Database, Server},
    process::{Cpu, parent},
    servers::key_format,
};

pub(crate) const KEYS: usize = 10_000;
const BATCH: usize = 1_000;

pub(crate) struct Setting {
    database: Database,
    /// The process id of PostgreSQL's postmaster.
    postmaster: u32,
    /// Files with the `Authorization` of one key, and of each key.
    one: NamedTempFile,
    many: NamedTempFile,
    pub(crate) key: ApiKey,
    /// Well-formed, but not in the database.
    pub(crate) unknown: ApiKey,
    pub(crate) postgres: String,
    // Dropped last.
    _server: Server,
}

impl Setting {
    pub(crate) fn new() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(Self::prepare())
    }

    async fn prepare() -> Result<Self> {
        let server = Server::start();
        let database = server.database().await;
        let store = PgKeyStore::connect(database.url()).await?;
        store.migrate().await?;
        let format = key_format()?;
        let keys: Vec<ApiKey> =
            (0..KEYS).map(|_| format.generate()).collect::<std::result::Result<_, _>>()?;
        let issuer = KeyIssuer::new(store.clone(), format.clone());
        let scopes = Scopes::parse(["orders:read", "orders:write"])?;
        for (at, batch) in keys.chunks(BATCH).enumerate() {
            let import = |(n, key): (usize, &ApiKey)| {
                let new = NewKey::new(format!("consumer-{}", at * BATCH + n), Expiry::Never)
                    .name("nightly export")
                    .scopes(scopes.clone());
                KeyImport::new(key.hash(), new)
            };
            issuer.import(batch.iter().enumerate().map(import).collect()).await?;
        }
        let backend: i32 = query_scalar("select pg_backend_pid()").fetch_one(store.pool()).await?;
        let postgres = query_scalar("show server_version").fetch_one(store.pool()).await?;
        sqlx::query("analyze").execute(store.pool()).await?;
        store.pool().close().await;
        let first = keys.first().ok_or("no keys")?;
        Ok(Self {
            postmaster: parent(backend.try_into()?).ok_or("no parent of a PostgreSQL process")?,
            one: authorizations([first])?,
            many: authorizations(&keys)?,
            key: keys.into_iter().next().ok_or("no keys")?,
            unknown: format.generate()?,
            postgres,
            database,
            _server: server,
        })
    }

    pub(crate) fn url(&self) -> &str {
        self.database.url()
    }

    pub(crate) fn authorizations(&self, keys: usize) -> &Path {
        if keys == 1 { self.one.path() } else { self.many.path() }
    }

    pub(crate) fn database_cpu(&self) -> Result<Cpu> {
        Cpu::of_tree(self.postmaster)
    }
}

fn authorizations<'a>(keys: impl IntoIterator<Item = &'a ApiKey>) -> Result<NamedTempFile> {
    let mut file = NamedTempFile::new()?;
    for key in keys {
        writeln!(file, "Bearer {}", key.expose_secret())?;
    }
    file.flush()?;
    Ok::<_, Box<dyn Error>>(file)
}
