//! The rights that this role lacks, and the `grant` statements that give them to it.

use std::collections::BTreeMap;

use sqlx::{PgConnection, query_as, query_scalar};

use crate::store::{
    StoreError, StoreErrorKind,
    doctor::{Finding, NO_EFFECT, UNREADABLE, database_refusal},
    trial::Need,
};

/// The privileges for managing keys that this role lacks, by table.
pub(super) struct MissingGrants {
    rights: BTreeMap<String, Vec<String>>,
    role: String,
    schema: String,
}

impl MissingGrants {
    pub(super) async fn find(connection: &mut PgConnection, schema: &str) -> sqlx::Result<Self> {
        let role =
            query_scalar("select quote_ident(current_user)").fetch_one(&mut *connection).await?;
        let rows: Vec<(String, String)> =
            query_as(RIGHTS).bind(schema).fetch_all(connection).await?;
        let mut rights = BTreeMap::<_, Vec<_>>::new();
        for (table, right) in rows {
            rights.entry(table).or_default().push(right);
        }
        Ok(Self { rights, role, schema: schema.to_owned() })
    }

    /// `matters`: whether something does not work.
    pub(super) fn findings(&self, matters: bool) -> Vec<Finding> {
        const CHECK: &str = "rights";
        if self.rights.is_empty() || !matters {
            let detail = "this role may look keys up, change them and prune them";
            return vec![Finding::ok(CHECK, detail)];
        }
        let mut findings = Vec::new();
        let select = "select".to_owned();
        let blind = ["api_keys", "api_key_plans"].into_iter();
        let blind = blind.filter(|it| self.rights.get(*it).is_some_and(|it| it.contains(&select)));
        let blind: Vec<_> = blind.collect();
        if !blind.is_empty() {
            let detail = format!("this role lacks: select on {}", blind.join(", select on "));
            let grants: Vec<_> =
                blind.iter().filter_map(|table| self.grant(table, Need::LookUps)).collect();
            let advice = format!("without it every key is rejected: {}", grants.join("; "));
            findings.push(Finding::problem(CHECK, detail, advice));
        }
        let lacking: Vec<_> = self
            .rights
            .iter()
            .flat_map(|(table, rights)| rights.iter().map(move |it| format!("{it} on {table}")))
            .collect();
        let detail = format!("this role lacks: {}", lacking.join(", "));
        let tables = self.rights.keys();
        let grants: Vec<_> =
            tables.filter_map(|table| self.grant(table, Need::Management)).collect();
        let advice = format!(
            "fine for a service that only looks keys up (it writes api_key_usage and the tables named after it). To manage keys: \
            {}",
            grants.join("; ")
        );
        findings.push(Finding::warning(CHECK, detail, advice));
        findings
    }

    /// The statement that grants the missing privileges. Look-ups and polling only read.
    fn grant(&self, table: &str, need: Need) -> Option<String> {
        let rights = self.rights.get(table)?;
        let rights = match need {
            Need::LookUps | Need::Feed => "select".to_owned(),
            Need::Management => rights.join(", "),
        };
        Some(format!("grant {rights} on {}.{table} to {}", self.schema, self.role))
    }

    /// How to fix an error of a statement.
    pub(super) fn advise(&self, need: Need, error: &StoreError) -> String {
        let Some(refusal) = database_refusal(error) else {
            return match error.kind() {
                StoreErrorKind::Corrupt => UNREADABLE,
                StoreErrorKind::Unavailable => {
                    "check that the database is running and answers in time"
                }
                _ => NO_EFFECT,
            }
            .to_owned();
        };
        let message = refusal.message.as_str();
        let denied = message.strip_prefix("permission denied for table ");
        match refusal.code.as_str() {
            "42501" if message.contains("row-level security") => {
                "disable row-level security for this table, or let the role see all rows \
                (`alter role … bypassrls`)"
                    .to_owned()
            }
            "42501" => denied.and_then(|table| self.grant(table, need)).unwrap_or_else(|| {
                format!(
                    "grant the privilege named in the message to {}, or to the owner of the \
                    trigger function that was denied",
                    self.role
                )
            }),
            "25006" => format!(
                "connect to the primary; if this is the primary, check \
                `default_transaction_read_only` (`alter role {} reset …`, `alter database … reset \
                …`, the URL's options, postgresql.conf)",
                self.role
            ),
            "42P01" | "42703" | "42883" | "42P10" => {
                "change the tables to match the library's migrations, in the first schema of the \
                search path: `api-key migrate`"
                    .to_owned()
            }
            code if code.starts_with("53") => {
                "free the exhausted resource: disk space, memory or connections".to_owned()
            }
            code if code.starts_with("55") || code.starts_with("57") => {
                "another session keeps rows or tables locked: see `pg_locks` and `pg_stat_activity`"
                    .to_owned()
            }
            code if code.starts_with("23") => {
                "a constraint of the application refuses what the library writes: drop it, or \
                change it"
                    .to_owned()
            }
            _ => "the database rejected a statement that the library needs: correct what its \
                message names"
                .to_owned(),
        }
    }
}

// Locking a row, as pruning does, requires the right to update it.
const RIGHTS: &str = "
select relname::text, needed
from (values
    ('_api_key_migrations', array['select']),
    ('api_keys', array['select', 'insert', 'update', 'delete']),
    ('api_key_plans', array['select', 'insert', 'update', 'delete']),
    ('api_key_usage', array['select', 'insert', 'update', 'delete']),
    ('api_key_usage_hourly', array['select', 'insert', 'update', 'delete']),
    ('api_key_usage_daily', array['select', 'insert', 'update']),
    ('api_key_usage_writers', array['select', 'insert', 'update', 'delete']),
    ('api_key_changes', array['select']),
    ('api_key_feed', array['select']),
    ('api_key_events', array['select', 'insert']),
    ('api_key_legacy_hashes', array['select', 'insert', 'update']),
    ('api_key_requests', array['select', 'insert', 'update', 'delete']),
    ('api_key_scopes', array['select']),
    ('api_key_tags', array['select'])
) as tables (name, rights)
cross join unnest(rights) as needed
join pg_class on relname = name
where relnamespace = (select oid from pg_namespace where nspname = $1)
    and not has_table_privilege(pg_class.oid, needed)";
