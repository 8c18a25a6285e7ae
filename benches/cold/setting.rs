//! A PostgreSQL server with many keys, some of which this benchmark knows.

use sqlx::{AssertSqlSafe, PgPool, postgres::PgPoolOptions, query, query_scalar, raw_sql};
use tower_api_key::{
    key::{ApiKey, KeyFormat},
    store::PgKeyStore,
};

use crate::{
    Result,
    harness::postgres::{Database, Server},
};

/// Enough that no two look-ups of a round use the same key.
pub(crate) const KNOWN: usize = 50_000;
/// sqlx's default.
pub(crate) const CONNECTIONS: u32 = 10;

pub(crate) struct Setting {
    pub(crate) store: PgKeyStore,
    pub(crate) format: KeyFormat,
    pub(crate) known: Vec<ApiKey>,
    pub(crate) postgres: String,
    database: Database,
    // Dropped last.
    _server: Server,
}

/// PostgreSQL's defaults. The server of the tests has them off.
const DURABLE: [&str; 4] = [
    "alter system set fsync = on",
    "alter system set full_page_writes = on",
    "alter system set max_wal_size = '1GB'",
    "select pg_reload_conf()",
];

/// Known keys are spread among the others, over all pages.
const FILL: &str = "
    insert into api_keys (id, key_hash, key_prefix, key_last4, consumer_id, name, scopes, metadata,
                          is_active, created_at, root_id, version)
    select id, hash, 'sk_live_', 'abcd', 'consumer-' || n, 'nightly export',
           '{orders:read,orders:write}', '{}', true, now(), id, 1
    from (
        select gen_random_uuid() as id, hash, row_number() over () as n
        from (
            select sha256(n::text::bytea) as hash from generate_series(1, $1::bigint) as n
            union all
            select unnest($2::bytea[])
        ) as made
        order by random()
    ) as shuffled";

impl Setting {
    pub(crate) async fn new(keys: usize) -> Result<Self> {
        let server = Server::start();
        let database = server.database().await;
        let pool = PgPoolOptions::new()
            .min_connections(CONNECTIONS)
            .max_connections(CONNECTIONS)
            .connect(database.url())
            .await?;
        for setting in DURABLE {
            query(setting).execute(&pool).await?;
        }
        let store = PgKeyStore::new(pool.clone());
        store.migrate().await?;
        let format = KeyFormat::new("sk_live_")?;
        let known = (0..KNOWN).map(|_| format.generate());
        let known = known.collect::<std::result::Result<Vec<_>, _>>()?;
        eprintln!("making {keys} keys");
        fill(&pool, keys, &known).await?;
        let postgres = query_scalar("show server_version").fetch_one(&pool).await?;
        Ok(Self { store, format, known, postgres, database, _server: server })
    }
}

impl Setting {
    pub(crate) fn url(&self) -> &str {
        self.database.url()
    }
}

async fn fill(pool: &PgPool, keys: usize, known: &[ApiKey]) -> Result<()> {
    let hashes: Vec<_> = known.iter().map(|key| key.hash().as_bytes().to_vec()).collect();
    let mut transaction = pool.begin().await?;
    // Nothing listens, and a million notifications take minutes.
    raw_sql("alter table api_keys disable trigger user").execute(&mut *transaction).await?;
    let others = i64::try_from(keys - known.len())?;
    query(FILL).bind(others).bind(hashes).execute(&mut *transaction).await?;
    raw_sql("alter table api_keys enable trigger user").execute(&mut *transaction).await?;
    transaction.commit().await?;
    for upkeep in ["vacuum analyze api_keys", "checkpoint"] {
        raw_sql(AssertSqlSafe(upkeep)).execute(pool).await?;
    }
    Ok(())
}
