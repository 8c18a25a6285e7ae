//! The schema of the tables: determined once per store, and named in every statement.
//!
//! Look-ups keep no session state, so that they work through poolers in transaction mode: their
//! statements name the schema. Management sets the search path for each transaction.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use sqlx::{AssertSqlSafe, PgConnection, Row as _, SqlSafeStr as _, SqlStr, raw_sql};

use super::{error::failed, sql};
use crate::store::{StoreError, StoreErrorKind};

/// A schema name, validated and quoted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Schema {
    name: String,
    quoted: String,
}

impl Schema {
    pub(super) fn new(name: &str) -> Result<Self, StoreError> {
        const MAX_LEN: usize = 63;
        let problem = if name.is_empty() {
            "must not be empty"
        } else if name.len() > MAX_LEN {
            "must not be longer than 63 bytes"
        } else if name.contains('\0') {
            "must not contain a NUL character"
        } else if name.starts_with("pg_") || name == "information_schema" {
            "must not be one of PostgreSQL's own schemas"
        } else {
            let quoted = format!("\"{}\"", name.replace('"', "\"\""));
            return Ok(Self { name: name.to_owned(), quoted });
        };
        Err(StoreError::new(StoreErrorKind::Other).because(format!("the schema name {problem}")))
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Replaces `{schema}` in `template` by the identifier, and `{literal}`, inside of `E''`, by
    /// the identifier as text.
    pub(super) fn fill(&self, template: &str) -> SqlStr {
        let literal = self.quoted.replace('\\', "\\\\").replace('\'', "''");
        let mut sql = String::with_capacity(template.len() + 4 * literal.len());
        for (place, part) in template.split('{').enumerate() {
            if let Some(rest) = part.strip_prefix("schema}") {
                sql.push_str(&self.quoted);
                sql.push_str(rest);
            } else if let Some(rest) = part.strip_prefix("literal}") {
                sql.push_str(&literal);
                sql.push_str(rest);
            } else {
                sql.push_str(if place == 0 { "" } else { "{" });
                sql.push_str(part);
            }
        }
        AssertSqlSafe(sql).into_sql_str()
    }
}

/// Timeouts of management transactions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    pub(super) lock: Duration,
    pub(super) statement: Duration,
    pub(super) idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            lock: Duration::from_millis(500),
            statement: Duration::from_secs(5),
            idle: Duration::from_secs(10),
        }
    }
}

/// Statements that name the schema, built once.
pub(super) struct Statements {
    pub(super) find: SqlStr,
    pub(super) find_many: SqlStr,
    pub(super) changes: SqlStr,
    /// Checks what the feed depends on.
    pub(super) guard: SqlStr,
    /// Announces that the feed is listening.
    pub(super) hello: SqlStr,
    /// Begins a management transaction in one round trip.
    pub(super) begin: SqlStr,
    /// Begins one in which the triggers write the audit, as for changes made in SQL.
    pub(super) begin_unaudited: SqlStr,
    /// Begins a read-only one.
    pub(super) begin_read: SqlStr,
    /// Begins one that reads a page of keys.
    pub(super) begin_list: SqlStr,
    /// Begins one that writes last-use times.
    pub(super) begin_usage: SqlStr,
}

/// Marks a transaction in which the library writes the audit, so that the triggers that audit
/// changes made in SQL stay silent. The mark has no effect outside of this transaction.
const AUDITED: &str = ";
    select set_config(
        'tower_api_key.audited', extract(epoch from transaction_timestamp())::text, true
    )";

impl Statements {
    fn new(schema: &Schema, timeouts: Timeouts) -> Self {
        // With `row_security` off, hidden rows cause an error (42501). The schema precedes pg_temp,
        // so that another role's temporary table cannot replace one of ours.
        let begin = |mode: &str, Timeouts { lock, statement, idle }: Timeouts, rest: &str| {
            let text = format!(
                "begin {mode};
                set local search_path = {{schema}}, pg_temp;
                set local row_security = off;
                set local lock_timeout = {};
                set local statement_timeout = {};
                set local idle_in_transaction_session_timeout = {}{rest}",
                lock.as_millis(),
                statement.as_millis(),
                idle.as_millis(),
            );
            schema.fill(&text)
        };
        // Each statement sees what was committed before it, whatever the default isolation level.
        let write = begin("isolation level read committed", timeouts, AUDITED);
        let unaudited = begin("isolation level read committed", timeouts, "");
        let read = begin("isolation level read committed read only", timeouts, "");
        let list = begin("isolation level repeatable read read only", timeouts, sql::LIST_SETTINGS);
        let patient = Timeouts { lock: sql::USAGE_LOCK_TIMEOUT, ..timeouts };
        let usage = begin("isolation level read committed", patient, "");
        Self {
            find: schema.fill(sql::FIND),
            find_many: schema.fill(sql::FIND_MANY),
            changes: schema.fill(sql::CHANGES),
            guard: schema.fill(sql::GUARD),
            hello: schema.fill(sql::SAY_HELLO),
            begin: write,
            begin_unaudited: unaudited,
            begin_read: read,
            begin_list: list,
            begin_usage: usage,
        }
    }
}

/// The schema of a store: the configured one, or where its tables are found.
pub(super) struct SchemaCell {
    setting: Option<Schema>,
    timeouts: Timeouts,
    statements: OnceLock<Arc<Statements>>,
}

impl SchemaCell {
    pub(super) fn new(setting: Option<Schema>, timeouts: Timeouts) -> Self {
        Self { setting, timeouts, statements: OnceLock::new() }
    }

    pub(super) fn setting(&self) -> Option<&Schema> {
        self.setting.as_ref()
    }

    /// The statements to use on `connection`. Queries the tables' location if it is not known yet.
    pub(super) async fn statements(
        &self,
        connection: &mut PgConnection,
    ) -> Result<Arc<Statements>, StoreError> {
        if let Some(known) = self.statements.get() {
            return Ok(Arc::clone(known));
        }
        if let Some(setting) = &self.setting {
            let statements = Arc::new(Statements::new(setting, self.timeouts));
            return Ok(Arc::clone(self.statements.get_or_init(|| statements)));
        }
        let schema = Places::on(connection).await?.of_tables()?;
        Ok(Arc::new(Statements::new(&schema, self.timeouts)))
    }

    /// Fixes the schema after one of `statements` succeeded.
    ///
    /// Not before: an answer mixed up by a broken network must not fix it.
    pub(super) fn confirm(&self, statements: &Arc<Statements>) {
        if self.statements.get().is_none() {
            let _ = self.statements.set(Arc::clone(statements));
        }
    }
}

/// The schemas of a database that have tables with our names.
pub(super) struct Places {
    /// The first existing schema on the search path, where new tables are created.
    current: Option<String>,
    path: Vec<String>,
    found: Vec<Place>,
}

struct Place {
    schema: String,
    is_history: bool,
    /// Position in the search path.
    position: Option<i32>,
}

// A simple query, because an old pooler mixes up prepared statements. Temporary tables of other
// sessions are ignored.
const PLACES: &str = "
select
    current_schema()::text as current,
    current_schemas(false)::text[] as path,
    nspname::text as schema,
    relname::text as name,
    array_position(current_schemas(false), nspname) as position
from (select) as one
left join (
    pg_catalog.pg_class join pg_catalog.pg_namespace on pg_namespace.oid = relnamespace
) on relname in ('_api_key_migrations', 'api_keys')
    and relkind in ('r', 'p', 'v', 'm', 'f') and nspname not like 'pg\\_%'";

impl Places {
    pub(super) async fn on(connection: &mut PgConnection) -> Result<Self, StoreError> {
        let rows = raw_sql(PLACES).fetch_all(connection).await.map_err(failed)?;
        let mut places = Self { current: None, path: Vec::new(), found: Vec::new() };
        for row in &rows {
            places.current = row.try_get("current").map_err(failed)?;
            places.path = row.try_get("path").map_err(failed)?;
            let schema: Option<String> = row.try_get("schema").map_err(failed)?;
            let name: Option<String> = row.try_get("name").map_err(failed)?;
            let position = row.try_get("position").map_err(failed)?;
            if let (Some(schema), Some(name)) = (schema, name) {
                let is_history = name == "_api_key_migrations";
                places.found.push(Place { schema, is_history, position });
            }
        }
        places.found.sort_by(|a, b| (a.position, &a.schema).cmp(&(b.position, &b.schema)));
        Ok(places)
    }

    fn on_path(&self, is_history: bool) -> Option<&Place> {
        let mut found = self.found.iter();
        found.find(|place| place.is_history == is_history && place.position.is_some())
    }

    /// A schema outside the search path that has a history and tables.
    fn elsewhere(&self) -> Option<&str> {
        let has_tables = |schema: &str| {
            self.found.iter().any(|place| !place.is_history && place.schema == schema)
        };
        let mut histories =
            self.found.iter().filter(|place| place.is_history && place.position.is_none());
        histories.find(|place| has_tables(&place.schema)).map(|place| &*place.schema)
    }

    fn has(&self, schema: &Schema, is_history: bool) -> bool {
        let mut found = self.found.iter();
        found.any(|place| place.is_history == is_history && place.schema == schema.name)
    }

    /// Whether `schema` has the history.
    pub(super) fn has_history(&self, schema: &Schema) -> bool {
        self.has(schema, true)
    }

    /// Whether `schema` has a table `api_keys`.
    pub(super) fn has_keys(&self, schema: &Schema) -> bool {
        self.has(schema, false)
    }

    /// The schema on the search path that has the history.
    pub(super) fn of_history(&self) -> Result<Option<Schema>, StoreError> {
        self.on_path(true).map(|place| Schema::new(&place.schema)).transpose()
    }

    /// The schema on the search path that has the history, or else `api_keys`.
    pub(super) fn of_tables(&self) -> Result<Schema, StoreError> {
        if let Some(place) = self.on_path(true).or_else(|| self.on_path(false)) {
            return Schema::new(&place.schema);
        }
        let path = self.path.join(", ");
        let problem = match self.elsewhere() {
            Some(schema) => format!(
                "table \"api_keys\" is not on the search path ({path}), but in schema \
                 \"{schema}\": {}",
                setting(schema)
            ),
            None => format!(
                "table \"api_keys\" is not on the search path ({path}): run `migrate`, or set the \
                 schema that has it"
            ),
        };
        Err(StoreError::new(StoreErrorKind::Other).because(problem))
    }

    /// The schema for new tables when none are on the search path.
    pub(super) fn of_new_tables(&self) -> Result<Schema, StoreError> {
        let refused = |problem| Err(StoreError::new(StoreErrorKind::Migration).because(problem));
        let Some(current) = &self.current else {
            return refused(format!(
                "no schema on the search path ({}) exists: {}",
                self.path.join(", "),
                setting("api_keys")
            ));
        };
        if let Some(schema) = self.elsewhere() {
            return refused(format!(
                "the tables are in schema \"{schema}\", which is not on the search path; another \
                 set in schema \"{current}\" would hide them: {}. To create another set on \
                 purpose, set \"{current}\" instead",
                setting(schema)
            ));
        }
        Schema::new(current)
    }
}

/// How to set `schema`.
fn setting(schema: &str) -> String {
    format!(
        "set the schema with `PgKeyStore::builder().schema(\"{schema}\")`, `--schema {schema}` or \
         API_KEY_SCHEMA={schema}"
    )
}

/// An application's table occupies the name of ours.
pub(super) fn foreign(schema: &Schema) -> StoreError {
    let problem = format!(
        "schema \"{}\" has a table \"api_keys\" that these migrations did not create: give this \
         library a schema of its own, such as \"keys\": {}. If another tool applied them, \
         `api-key migrate --adopt` records that",
        schema.name,
        setting("keys")
    );
    StoreError::new(StoreErrorKind::Migration).because(problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_quoted_wherever_it_stands() {
        let schema = Schema::new(r#"the "other" o'\{schema}"#).unwrap();
        let sql = schema.fill("select '{}' from {schema}.a where E'{literal}.b' = '{1}'");
        assert_eq!(
            sql.as_str(),
            r#"select '{}' from "the ""other"" o'\{schema}".a where "#.to_owned()
                + r#"E'"the ""other"" o''\\{schema}".b' = '{1}'"#
        );
    }

    #[test]
    fn a_name_that_no_schema_of_ours_can_have_is_refused() {
        for name in ["", "a\0b", "pg_temp", "pg_catalog", "information_schema", &"x".repeat(64)] {
            let error = Schema::new(name).unwrap_err();
            assert_eq!(error.kind(), StoreErrorKind::Other, "{name:?}");
            assert!(format!("{error:?}").contains("the schema name must not"), "{error:?}");
        }
    }
}
