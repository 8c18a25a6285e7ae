//! The search path: which tables with our names an unqualified name resolves to.

use std::collections::BTreeSet;

use sqlx::{PgConnection, query_as, query_scalar};

use crate::store::{
    doctor::Finding, migrate::POSTGRES, postgres::schema::Schema, structure::made_by,
};

/// Where unqualified names of our tables resolve to.
pub(super) struct Place {
    /// All tables in the database with our names.
    pub(super) tables: Vec<Table>,
    pub(super) role: String,
}

pub(super) struct Table {
    pub(super) name: String,
    pub(super) schema: String,
    /// Whether its unqualified name resolves to this table.
    pub(super) is_visible: bool,
    /// Whether its schema is on the search path.
    pub(super) is_on_path: bool,
}

pub(in crate::store::postgres) const HISTORY: &str = "_api_key_migrations";

impl Place {
    /// With a `setting`, only that schema matters.
    pub(super) async fn find(
        connection: &mut PgConnection,
        setting: Option<&Schema>,
    ) -> sqlx::Result<Self> {
        let role = query_scalar("select current_user::text").fetch_one(&mut *connection).await?;
        let rows: Vec<(String, String, bool, bool)> =
            query_as(TABLES).bind(tables()).fetch_all(connection).await?;
        let table = |(name, schema, is_visible, is_on_path): (String, String, bool, bool)| {
            let is_ours = setting.map(|setting| schema == setting.name());
            let (is_visible, is_on_path) =
                is_ours.map_or((is_visible, is_on_path), |is_ours| (is_ours, is_ours));
            Table { name, schema, is_visible, is_on_path }
        };
        Ok(Self { tables: rows.into_iter().map(table).collect(), role })
    }

    /// The schema to examine: the one of the history, otherwise the one of the keys.
    pub(super) fn schema(&self) -> Option<&str> {
        let of = |name| self.tables.iter().find(|it| it.is_visible && it.name == name);
        of(HISTORY).or_else(|| of("api_keys")).map(|table| table.schema.as_str())
    }

    pub(super) fn has_keys(&self) -> bool {
        self.tables.iter().any(|table| table.is_visible && table.name == "api_keys")
    }

    /// Several sets of tables are fine only if the search path distinguishes them.
    pub(super) fn findings(&self) -> Option<Finding> {
        const CHECK: &str = "search path";
        let schemas = |keep: fn(&Table) -> bool| {
            let kept = self.tables.iter().filter(|table| keep(table));
            kept.map(|table| table.schema.as_str()).collect::<BTreeSet<_>>()
        };
        let visible = schemas(|table| table.is_visible);
        let on_path = schemas(|table| table.is_on_path);
        let list =
            |schemas: &BTreeSet<&str>| schemas.iter().copied().collect::<Vec<_>>().join(", ");
        let advice = "set the schema (`--schema`, `API_KEY_SCHEMA`, or `schema` of the store's \
            builder), and move the tables there or drop those that are not used: `alter table … set \
            schema …`";
        let is_whole = |schema: &str| {
            let has = |name| self.tables.iter().any(|it| it.schema == schema && it.name == name);
            tables().into_iter().all(has)
        };
        if let Some(used) = self.schema().filter(|used| visible.len() > 1 && is_whole(used)) {
            let tables = self.tables.iter().filter(|it| it.is_visible && it.schema != used);
            let tables: Vec<_> = tables.map(|it| format!("{}.{}", it.schema, it.name)).collect();
            let detail = format!(
                "the tables in {used} are used; tables of other schemas come first on the search \
                path: {}",
                tables.join(", ")
            );
            return Some(Finding::warning(CHECK, detail, advice));
        }
        if visible.len() > 1 {
            let tables = self.tables.iter().filter(|table| table.is_visible);
            let tables: Vec<_> =
                tables.map(|table| format!("{}.{}", table.schema, table.name)).collect();
            let detail = format!("the tables are in several schemas: {}", tables.join(", "));
            return Some(Finding::problem(CHECK, detail, advice));
        }
        if on_path.len() > 1 {
            let used = list(&visible);
            let hidden: BTreeSet<_> = on_path.difference(&visible).copied().collect();
            let detail = format!(
                "there are two sets of tables: {used} is in front on the search path and hides {}",
                list(&hidden)
            );
            return Some(Finding::problem(CHECK, detail, advice));
        }
        let Some(schema) = visible.first() else {
            let elsewhere = schemas(|_| true);
            if elsewhere.is_empty() {
                return None;
            }
            let elsewhere = list(&elsewhere);
            let detail = format!("there are tables in {elsewhere}, not visible to this role");
            let advice = format!(
                "set that schema (`--schema`, `API_KEY_SCHEMA`, or `schema` of the store's \
                builder), and grant usage on it: `grant usage on schema {elsewhere} to {}`",
                self.role
            );
            return Some(Finding::problem(CHECK, detail, advice));
        };
        Some(Finding::ok(CHECK, format!("one set of tables, in schema {schema}")))
    }
}

const TABLES: &str = "
select
    relname::text, nspname::text, pg_table_is_visible(pg_class.oid),
    nspname = any(current_schemas(false))
from pg_class
join pg_namespace on pg_namespace.oid = relnamespace
where relname = any($1) and relkind in ('r', 'p', 'v', 'm', 'f')
    and not starts_with(nspname, 'pg_temp_')
order by nspname, relname";

/// Our tables, and the migration history.
pub(super) fn tables() -> Vec<&'static str> {
    made_by(POSTGRES, "table").into_iter().chain([HISTORY]).collect()
}
