use sqlx::{PgConnection, query, query_as, query_scalar, raw_sql};

use super::{
    error::failed,
    schema::{Places, Schema, foreign},
};
use crate::store::{
    StoreError,
    migrate::{self, Applied, Migration},
};

pub(super) async fn bring_up_to_date(
    connection: &mut PgConnection,
    setting: Option<&Schema>,
) -> Result<(), StoreError> {
    let (_, applied) = history(connection, setting).await?;
    if migrate::missing(migrate::POSTGRES, &applied)?.is_empty() {
        return Ok(());
    }
    begin(connection).await?;
    let (places, applied) = history(connection, setting).await?;
    let schema = match setting {
        Some(setting) => setting.clone(),
        None => match places.of_history()? {
            Some(schema) => schema,
            None => places.of_new_tables()?,
        },
    };
    if places.has_keys(&schema) && applied.is_empty() {
        return Err(foreign(&schema));
    }
    if setting.is_some() && !exists(connection, &schema).await? {
        let create = schema.fill("create schema if not exists {schema}");
        raw_sql(create).execute(&mut *connection).await.map_err(failed)?;
    }
    begin_history(connection, &schema).await?;
    raw_sql(HOLD_USES).execute(&mut *connection).await.map_err(failed)?;
    for migration in migrate::missing(migrate::POSTGRES, &applied)? {
        let executed = raw_sql(migration.sql).execute(&mut *connection).await;
        executed.map_err(|error| migration.blame(failed(error)))?;
        record(connection, migration).await?;
    }
    raw_sql("commit").execute(connection).await.map_err(failed)?;
    Ok(())
}

/// The SQL of the migrations from version `from` on, into `schema`.
pub(super) fn script(schema: Option<&Schema>, from: i64) -> Result<String, StoreError> {
    let mut script = migrate::script(migrate::POSTGRES, from)?;
    let is_first = migrate::POSTGRES.first().is_some_and(|first| first.version >= from);
    if is_first {
        // Migrations refer to it.
        script = format!("{};\n\n{script}", CREATE_HISTORY.trim());
    }
    let Some(schema) = schema else { return Ok(script) };
    let create = if is_first { CREATE_SCHEMA } else { "" };
    let enter = schema.fill(&format!("{create}{ENTER}"));
    Ok(format!("{}\n{script}\n{LEAVE}", enter.as_str()))
}

/// Begins a transaction, and waits for others that migrate.
pub(super) async fn begin(connection: &mut PgConnection) -> Result<(), StoreError> {
    // Later statements must see what earlier lock holders committed, whatever the default isolation
    // level.
    raw_sql("begin isolation level read committed")
        .execute(&mut *connection)
        .await
        .map_err(failed)?;
    raw_sql(LOCK).execute(connection).await.map_err(failed)?;
    Ok(())
}

/// Creates the history if it is missing. Unqualified names are in `schema` from then on.
pub(super) async fn begin_history(
    connection: &mut PgConnection,
    schema: &Schema,
) -> Result<(), StoreError> {
    let path = schema.fill("set local search_path = {schema}, pg_temp");
    raw_sql(path).execute(&mut *connection).await.map_err(failed)?;
    raw_sql(CREATE_HISTORY).execute(connection).await.map_err(failed)?;
    Ok(())
}

/// Records a migration as applied.
pub(super) async fn record(
    connection: &mut PgConnection,
    migration: &Migration,
) -> Result<(), StoreError> {
    let record = query(RECORD_MIGRATION)
        .bind(migration.version)
        .bind(migration.description)
        .bind(migration.checksum());
    record.execute(connection).await.map_err(failed)?;
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

// The statement that writes last uses locks this table before `api_keys`. Migrations that lock them the
// other way round would end in a deadlock with it.
const HOLD_USES: &str = "
do $$ begin
    if to_regclass('api_key_usage') is not null then
        lock table api_key_usage in share row exclusive mode;
    end if;
end $$";

const CREATE_HISTORY: &str = "
create table if not exists _api_key_migrations (
    version bigint primary key,
    description text not null,
    checksum bigint not null,
    applied_at timestamptz not null default clock_timestamp()
)";

const RECORD_MIGRATION: &str =
    "insert into _api_key_migrations (version, description, checksum) values ($1, $2, $3)";

const CREATE_SCHEMA: &str = "create schema if not exists {schema};\n";

// The tool's own statements in the same session need its search path again.
const ENTER: &str = "\
do $$ begin
    perform set_config('tower_api_key.search_path', current_setting('search_path'), false);
end $$;
set search_path = {schema}, pg_temp;
";

const LEAVE: &str = "\
do $$ begin
    perform set_config('search_path', current_setting('tower_api_key.search_path'), false);
end $$;
";
