//! The structure: the migration history, and the tables compared with it.

use sqlx::{Connection as _, PgConnection, query_as, raw_sql};

use super::search_path::{HISTORY, Place};
use crate::store::{
    doctor::{Finding, History},
    migrate::{Applied, POSTGRES},
    postgres::schema::Schema,
    structure::{Difference, Part, compare},
};

pub(super) async fn history(
    connection: &mut PgConnection,
    place: &Place,
    findings: &mut Vec<Finding>,
) -> sqlx::Result<History> {
    let mut applied: Vec<Applied> = Vec::new();
    if place.tables.iter().any(|table| table.is_visible && table.name == HISTORY) {
        let schema = place.schema().and_then(|schema| Schema::new(schema).ok());
        let asked = "select version, checksum from {schema}._api_key_migrations";
        let Some(asked) = schema.map(|schema| schema.fill(asked)) else {
            return Ok(History::Missing);
        };
        match query_as(asked).fetch_all(&mut *connection).await {
            Ok(rows) => applied = rows,
            Err(error) if error.as_database_error().is_some() => {
                let detail = format!("the migration history is not readable: {error}");
                let advice = format!("grant select on {HISTORY} to {}", place.role);
                findings.push(Finding::warning("schema", detail, advice));
                return Ok(History::Foreign);
            }
            Err(error) => return Err(error),
        }
    }
    let (history, finding) = History::of(POSTGRES, &applied, place.has_keys());
    findings.push(finding);
    Ok(history)
}

/// Compares the tables and their triggers, indexes and functions with those of the migrations.
///
/// The expected parts were read from a database, and a test checks them against the migrations:
/// most roles may not create a schema to compare with.
pub(super) async fn structure(
    connection: &mut PgConnection,
    schema: &str,
    history: History,
    findings: &mut Vec<Finding>,
) -> sqlx::Result<Vec<Difference>> {
    let found = match parts(connection, schema).await {
        Ok(found) => found,
        Err(error) if error.as_database_error().is_some() => {
            let detail = format!("the tables could not be compared with the migrations: {error}");
            let advice = "another session keeps rows or tables locked: see `pg_locks` and \
                `pg_stat_activity`";
            findings.push(Finding::warning("tables", detail, advice));
            return Ok(Vec::new());
        }
        Err(error) => return Err(error),
    };
    let mut expected = expected();
    if history == History::Foreign {
        // Reported by another finding.
        expected.retain(|part| part.relation != HISTORY);
    }
    Ok(compare(&expected, &found, history, findings))
}

/// The parts of a schema.
pub(in crate::store::postgres) async fn parts(
    connection: &mut PgConnection,
    schema: &str,
) -> sqlx::Result<Vec<Part>> {
    let mut transaction = connection.begin().await?;
    // Reading definitions takes locks, too.
    let settings = "set local search_path = pg_catalog; set local lock_timeout = '2s'";
    raw_sql(settings).execute(&mut *transaction).await?;
    let parts = query_as(include_str!("../catalog.sql")).bind(schema);
    let parts: Vec<(String, String, String, String)> = parts.fetch_all(&mut *transaction).await?;
    transaction.rollback().await?;
    let part = |(kind, relation, name, definition)| Part { kind, relation, name, definition };
    Ok(parts.into_iter().map(part).collect())
}

/// The parts that the migrations create.
pub(in crate::store::postgres) fn expected() -> Vec<Part> {
    let part = |line: &str| {
        let mut fields = line.splitn(4, '\t').map(str::to_owned);
        Some(Part {
            kind: fields.next()?,
            relation: fields.next()?,
            name: fields.next()?,
            definition: fields.next()?,
        })
    };
    include_str!("../catalog.txt").lines().filter_map(part).collect()
}
