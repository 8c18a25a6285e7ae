//! The tables: created here, or by another migration tool.

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use tower_api_key::store::{PgKeyStore, SqliteKeyStore};

use super::{
    failure::Failure,
    global::Global,
    output,
    session::{Session, Store},
};

/// Create the database's tables or bring them up to date
///
/// Any number of processes may do so at once. If the tables are up to date, nothing is locked.
/// Only this command creates a missing SQLite file.
///
/// A service that keeps all SQL in a migration tool of its own lets that tool create the tables:
///
///   api-key migrate --print --schema keys > migrations/0012_api_keys.sql
///   (the tool applies it)
///   api-key migrate --adopt --schema keys
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub(crate) struct Migrate {
    /// Print the SQL, and change nothing: for another migration tool. Needs no database
    #[arg(long)]
    print: bool,

    /// Print the migrations from this version on [default: 1]
    #[arg(long, value_name = "VERSION", requires = "print")]
    from: Option<i64>,

    /// The database to print the SQL for [default: that of --database-url]
    #[arg(long, value_enum, requires = "print")]
    dialect: Option<Dialect>,

    /// Record the migrations as applied, if the tables are exactly as they make them: after another
    /// tool has applied what --print prints
    #[arg(long, conflicts_with = "print")]
    adopt: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Dialect {
    Postgres,
    Sqlite,
}

pub(crate) async fn run(migrate: Migrate, global: Global) -> Result<ExitCode, Failure> {
    if migrate.print {
        print(&migrate, &global)?;
        return Ok(ExitCode::SUCCESS);
    }
    let session = Session::begin(global, !migrate.adopt).await?;
    if migrate.adopt { adopt(&session).await } else { up_to_date(&session).await }
        .map(|()| ExitCode::SUCCESS)
}

fn print(migrate: &Migrate, global: &Global) -> Result<(), Failure> {
    let schema = global.schema.as_deref().filter(|schema| !schema.is_empty());
    let from = migrate.from.unwrap_or(1);
    let script = match dialect(migrate, global)? {
        Dialect::Postgres => {
            let builder = PgKeyStore::builder();
            let builder = match schema {
                Some(schema) => builder.schema(schema),
                None => builder,
            };
            builder.migration_sql(from)
        }
        Dialect::Sqlite => SqliteKeyStore::migration_sql(from),
    };
    let script = script.map_err(|error| Failure::usage("--print").because(&error))?;
    output::line(script.trim_end())
}

fn dialect(migrate: &Migrate, global: &Global) -> Result<Dialect, Failure> {
    if let Some(dialect) = migrate.dialect {
        return Ok(dialect);
    }
    match global.database_url.as_deref() {
        Some(url) if url.starts_with("sqlite:") => Ok(Dialect::Sqlite),
        Some(url) if url.starts_with("postgres:") || url.starts_with("postgresql:") => {
            Ok(Dialect::Postgres)
        }
        _ => Err(Failure::usage("--dialect: give postgres or sqlite, or set DATABASE_URL")),
    }
}

async fn up_to_date(session: &Session) -> Result<(), Failure> {
    match &session.store {
        Store::Postgres(store) => store.migrate().await?,
        Store::Sqlite(store) => store.migrate().await?,
    }
    if session.global.json {
        return output::line(r#"{"up_to_date":true}"#);
    }
    output::note("the tables are up to date");
    Ok(())
}

async fn adopt(session: &Session) -> Result<(), Failure> {
    let adopted = match &session.store {
        Store::Postgres(store) => store.adopt().await,
        Store::Sqlite(store) => store.adopt().await,
    };
    adopted.map_err(|error| {
        Failure::new("the tables").because(&error).advise(
            "Nothing was recorded. Apply what `api-key migrate --print` prints for the missing \
            parts, and adopt again",
        )
    })?;
    if session.global.json {
        return output::line(r#"{"adopted":true}"#);
    }
    output::note("the migrations are recorded as applied");
    Ok(())
}
