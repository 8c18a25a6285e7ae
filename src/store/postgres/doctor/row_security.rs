use std::collections::BTreeSet;

use sqlx::{PgConnection, query_as};

use super::search_path::tables;
use crate::store::doctor::Finding;

/// Row-level security hides rows without an error, which makes a hidden key look unknown.
pub(super) async fn row_security(
    connection: &mut PgConnection,
    schema: &str,
) -> sqlx::Result<Finding> {
    const CHECK: &str = "row security";
    let asked = query_as(ROW_SECURITY).bind(schema).bind(tables());
    let hidden: Vec<(String, String)> = asked.fetch_all(connection).await?;
    if hidden.is_empty() {
        return Ok(Finding::ok(CHECK, "no policy hides rows from this role"));
    }
    let said: Vec<_> = hidden.iter().map(|(table, role)| format!("{table} from {role}")).collect();
    let detail = format!("row-level security may hide rows of {}", said.join(", "));
    let tables: BTreeSet<_> = hidden.iter().map(|(table, _)| table).collect();
    let disable: Vec<_> = tables
        .iter()
        .map(|table| {
            format!(
                "`alter table {schema}.{table} disable row level security, no force row level \
                security`"
            )
        })
        .collect();
    let advice = format!(
        "a hidden key is rejected as unknown. Disable row-level security: {}. Or let the role see all \
        rows: `alter role … bypassrls`",
        disable.join("; ")
    );
    Ok(Finding::problem(CHECK, detail, advice))
}

// Triggers read and write with the rights of their functions' owner.
const ROW_SECURITY: &str = "
select relname::text, rolname::text
from pg_class
cross join (
    select rolname, pg_roles.oid, rolsuper or rolbypassrls as sees_all
    from pg_roles
    where rolname = current_user or pg_roles.oid in (
        select proowner from pg_trigger
        join pg_class on pg_class.oid = tgrelid
        join pg_proc on pg_proc.oid = tgfoid
        where prosecdef and not tgisinternal and relname = any($2)
            and relnamespace = (select oid from pg_namespace where nspname = $1)
    )
) as reader
where relnamespace = (select oid from pg_namespace where nspname = $1) and relname = any($2)
    and relrowsecurity and not sees_all
    and (relforcerowsecurity or not pg_has_role(reader.oid, relowner, 'USAGE'))
order by relname, rolname";
