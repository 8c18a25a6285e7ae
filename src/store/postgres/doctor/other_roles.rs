//! The rights of other roles.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{PgConnection, query_as};

use super::search_path::tables;
use crate::store::doctor::Finding;

/// Roles other than the owner and this one that may write to the tables. A role that may write to
/// `api_keys` can give itself a key with every scope.
pub(super) async fn others(connection: &mut PgConnection, schema: &str) -> sqlx::Result<Finding> {
    const CHECK: &str = "grants";
    let asked = query_as(GRANTEES).bind(schema).bind(tables());
    let rows: Vec<(String, bool, String, String)> = asked.fetch_all(&mut *connection).await?;
    let asked = query_as(OWNERS).bind(schema).bind(tables());
    let owned: Vec<(String, String)> = asked.fetch_all(connection).await?;

    // Grantee and whether the right was granted directly; rights; tables.
    let mut granted = BTreeMap::<(String, bool), (BTreeSet<String>, BTreeSet<String>)>::new();
    let mut everybody = false;
    for (grantee, directly, table, right) in rows {
        everybody |= grantee == "public" && ["api_keys", "api_key_plans"].contains(&&*table);
        let (rights, tables) = granted.entry((grantee, directly)).or_default();
        rights.insert(right.to_ascii_lowercase());
        tables.insert(table);
    }
    if granted.is_empty() && owned.is_empty() {
        let detail = "only the owner and this role may write to the tables";
        return Ok(Finding::ok(CHECK, detail));
    }
    let list = |of: &BTreeSet<String>| of.iter().cloned().collect::<Vec<_>>().join(", ");
    let (mut said, mut revoke) = (Vec::new(), Vec::new());
    for ((grantee, directly), (rights, tables)) in &granted {
        let (rights, names) = (list(rights), list(tables));
        if *directly {
            let tables: Vec<_> = tables.iter().map(|table| format!("{schema}.{table}")).collect();
            said.push(format!("{grantee} may {rights} on {names}"));
            revoke.push(format!("revoke {rights} on {} from {grantee}", tables.join(", ")));
        } else {
            said.push(format!("{grantee}, through another role, may {rights} on {names}"));
            revoke.push(format!("revoke the membership of {grantee}"));
        }
    }
    for (owner, part) in &owned {
        said.push(format!("{owner} owns {part}"));
        revoke.push(format!("alter {part} owner to the owner of api_keys"));
    }
    let detail = format!("roles other than the owner and this role: {}", said.join("; "));
    let advice = format!(
        "a role that may write to the keys can give itself a key with every scope. Unless it is \
        your own service: {}",
        revoke.join("; ")
    );
    if everybody {
        return Ok(Finding::problem(CHECK, detail, advice));
    }
    Ok(Finding::warning(CHECK, detail, advice))
}

// Superusers are members of every role and may do everything, so they are left out. Grants to
// PUBLIC are not repeated for each role.
const GRANTEES: &str = "
with tables as (
    select oid, relname, relowner, coalesce(relacl, acldefault('r', relowner)) as acl
    from pg_class
    where relnamespace = (select oid from pg_namespace where nspname = $1) and relname = any($2)
), direct as (
    select oid, relname, relowner, grantee, privilege_type
    from tables cross join aclexplode(acl)
    union
    select tables.oid, relname, relowner, grantee, privilege_type
    from tables
    join pg_attribute on attrelid = tables.oid
    cross join aclexplode(attacl)
), writing as (
    select unnest(array['INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'TRIGGER']) as privilege_type
), granted as (
    select relname, relowner, grantee, true as directly, privilege_type
    from direct natural join writing
    union
    select relname, relowner, pg_roles.oid, false, privilege_type
    from tables cross join writing cross join pg_roles
    where rolcanlogin and not rolsuper and has_table_privilege(pg_roles.oid, tables.oid, privilege_type)
        and not exists (
            select from direct
            where direct.oid = tables.oid and direct.privilege_type = writing.privilege_type
                and grantee in (0, pg_roles.oid)
        )
)
select
    case grantee when 0 then 'public' else quote_ident(rolname) end, directly, relname::text,
    privilege_type
from granted
left join pg_roles on pg_roles.oid = grantee
where grantee = 0 or (
    not rolsuper and rolname <> current_user
    and not pg_has_role(grantee, relowner, 'USAGE')
    and not (
        pg_has_role(current_user, grantee, 'USAGE')
        and not (select rolsuper from pg_roles where rolname = current_user)
    )
)";

const OWNERS: &str = "
with home as (
    select relowner, relnamespace from pg_class
    where relnamespace = (select oid from pg_namespace where nspname = $1) and relname = 'api_keys'
), parts as (
    select pg_class.relowner as owner, 'table ' || relname as part
    from pg_class join home using (relnamespace)
    where relname = any($2)
    union
    select proowner, 'function ' || proname || '()'
    from pg_trigger
    join pg_class on pg_class.oid = tgrelid
    join pg_proc on pg_proc.oid = tgfoid
    join home using (relnamespace)
    where relname = any($2) and not tgisinternal
)
select quote_ident(rolname), part
from parts
join pg_roles on pg_roles.oid = owner
where owner <> (select relowner from home) and not rolsuper and rolname <> current_user
order by part";
