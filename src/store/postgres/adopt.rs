//! Migrations in the hands of another tool: their SQL, and their history.

use sqlx::{PgConnection, query_as, raw_sql};

use super::{
    doctor::{HISTORY, expected, parts},
    error::failed,
    migrate::{CREATE_HISTORY, begin, begin_history, record},
    schema::{Places, Schema},
};
use crate::store::{
    StoreError,
    migrate::{self, Applied},
    structure,
};

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

/// Records all migrations as applied, if the tables are as they make them.
pub(super) async fn adopt(
    connection: &mut PgConnection,
    setting: Option<&Schema>,
) -> Result<(), StoreError> {
    let places = Places::on(connection).await?;
    let schema = match setting {
        Some(setting) => setting.clone(),
        None => places.of_tables()?,
    };
    let mut expected = expected();
    expected.retain(|part| part.relation != HISTORY);
    let found = parts(connection, schema.name()).await.map_err(failed)?;
    structure::require(&expected, &found)?;
    begin(connection).await?;
    begin_history(connection, &schema).await?;
    let applied = query_as("select version, checksum from _api_key_migrations");
    let applied: Vec<Applied> = applied.fetch_all(&mut *connection).await.map_err(failed)?;
    for migration in migrate::missing(migrate::POSTGRES, &applied)? {
        record(connection, migration).await?;
    }
    raw_sql("commit").execute(connection).await.map_err(failed)?;
    Ok(())
}

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
