use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use sqlx::{
    ConnectOptions as _, Connection as _, PgConnection, Row as _, postgres::PgConnectOptions,
    query_as, query_scalar, raw_sql,
};
use tokio::time::timeout;

use super::{
    PgKeyStore, PgTransaction, batch, changes_since, encryption::encryption, error::failed, get,
    last_used_at, list, plans, schema::Schema, usage,
};
use crate::{
    clock::Clock,
    key::KeyHash,
    rate_limit::RateLimits,
    record::{KeyId, KeyRecord},
    store::{
        ChangeFeed as _, Changes, EventPage, EventQuery, KeyPage, KeyQuery, LogPosition,
        StoreError, StoreErrorKind, Usage,
        doctor::{
            Difference, Finding, History, INDEXES_GONE, NO_EFFECT, PATIENCE, Part, Severity,
            TABLES_DIFFER, TRIGGERS_GONE, UNREADABLE, database_refusal, differences, made_by,
        },
        migrate::{Applied, POSTGRES},
        trial::{Need, Rehearse, rehearse},
    },
};

/// With a larger skew, `not_before` takes effect noticeably late, and logs are hard to compare.
const SKEW: Duration = Duration::from_secs(1);

impl PgKeyStore {
    /// A store in the database at `url`, for a short-lived program such as a command line.
    ///
    /// Like [`connect`](Self::connect), but with at most 2 connections, and without startup options
    /// and statement timeouts: it works through poolers that reject those, and statements may take
    /// long.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect).
    pub async fn connect_briefly(url: &str) -> Result<Self, StoreError> {
        Self::builder().connect_briefly(url).await
    }

    /// Performs every operation of a service in transactions that are rolled back, and checks
    /// everything else that look-ups, changes and the feed depend on: the tables, their triggers
    /// and indexes, the rights of this role and of others, row-level security, the search path, the
    /// clocks, poolers, and unencrypted connections to other machines. It changes nothing and sends
    /// no notification; the sequence of `api_key_events` has a gap afterwards. A check that cannot
    /// be made is a finding, too.
    ///
    /// Without a [`Problem`](Severity::Problem), keys can be looked up and changes to them are
    /// noticed; without a [`Warning`](Severity::Warning) either, keys can be managed.
    ///
    /// `clock` is this machine's clock, to compare with the database's.
    pub async fn diagnose(&self, clock: &impl Clock) -> Vec<Finding> {
        let mut findings = Vec::new();
        match timeout(PATIENCE, self.examine(clock, &mut findings)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => findings.push(Finding::blocked("database", &error)),
            Err(_) => findings.push(Finding::late()),
        }
        findings
    }

    async fn examine(&self, clock: &impl Clock, findings: &mut Vec<Finding>) -> sqlx::Result<()> {
        let options = self.pool().connect_options();
        let connection = &mut options.connect().await?;
        findings.push(encryption(&options).await?);
        let is_standby = server(connection, findings).await?;
        findings.push(skew(connection, clock).await?);
        let pooler = pooler(connection, &options).await?;
        let mixes_statements = pooler.severity == Severity::Problem;
        findings.push(pooler);
        if mixes_statements {
            findings.push(self.listener().await);
            return Ok(());
        }

        let setting = self.management.schema().setting();
        let place = Place::find(connection, setting).await?;
        findings.extend(place.findings());
        let history = history(connection, &place, findings).await?;
        let Some(schema) = place.schema() else { return Ok(()) };
        if matches!(history, History::Missing | History::Broken) {
            return Ok(());
        }
        let differences = structure(connection, schema, history, findings).await?;
        findings.push(row_security(connection, schema).await?);
        let lacking = Lacking::find(connection, schema).await?;
        findings.push(others(connection, schema).await?);

        let listener = self.listener().await;
        let hears = listener.severity == Severity::Ok;
        findings.push(listener);
        // On tables that are not ours, every operation would fail.
        let is_unusable = differences.iter().any(Difference::is_of_a_table);
        if is_unusable {
            findings.extend(lacking.findings(true));
            return Ok(());
        }
        let failures = rehearse(self, is_standby).await;
        findings.extend(lacking.findings(!failures.is_empty() || !hears));
        let advise = |need, error: &StoreError| lacking.advise(need, error);
        findings.extend(Finding::of_trial(&failures, hears, advise));
        Ok(())
    }

    async fn listener(&self) -> Finding {
        match self.change_feed().connect().await {
            Ok(()) => Finding::ok("listener", "notifications arrive"),
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                let detail = cause.unwrap_or_else(|| error.to_string());
                let advice = "services that connect like this need a `PollingChangeFeed`, or a pool \
                    that connects directly to the primary for their `PgChangeFeed`";
                let detail = format!("notifications do not arrive: {detail}");
                Finding::warning("listener", detail, advice)
            }
        }
    }
}

/// Whether the server is a standby.
async fn server(connection: &mut PgConnection, findings: &mut Vec<Finding>) -> sqlx::Result<bool> {
    let asked = "select current_setting('server_version_num')::int, pg_is_in_recovery()";
    let row = raw_sql(asked).fetch_one(connection).await?;
    let (version, standby): (i32, bool) = (row.try_get(0)?, row.try_get(1)?);
    let (major, minor) = (version / 10_000, version % 10_000);
    findings.push(if major < 14 {
        let detail = format!("PostgreSQL {major}.{minor}");
        Finding::problem("server", detail, "upgrade to PostgreSQL 14 or later")
    } else if standby {
        let advice = "a standby serves only look-ups: change keys on the primary, and use a \
            `PollingChangeFeed` to learn of changes";
        Finding::warning("server", "this is a standby", advice)
    } else {
        Finding::ok("server", format!("PostgreSQL {major}.{minor}"))
    });
    Ok(standby)
}

async fn skew(connection: &mut PgConnection, clock: &impl Clock) -> sqlx::Result<Finding> {
    let before = clock.now();
    let asked = "select (extract(epoch from clock_timestamp()) * 1000000)::bigint";
    let micros: i64 = raw_sql(asked).fetch_one(connection).await?.try_get(0)?;
    let after = clock.now();
    let theirs =
        SystemTime::UNIX_EPOCH + Duration::from_micros(u64::try_from(micros).unwrap_or_default());
    // The database's clock was read at some time in between.
    let behind = before.duration_since(theirs).unwrap_or_default();
    let ahead = theirs.duration_since(after).unwrap_or_default();
    let (skew, which) = if behind > ahead { (behind, "behind") } else { (ahead, "ahead of") };
    let detail = format!("the database's clock is {skew:.1?} {which} this machine's");
    if skew <= SKEW {
        return Ok(Finding::ok("clock", "the database's clock agrees with this machine's"));
    }
    let advice = "synchronise both with NTP: the service's clock dates new keys, and the \
        database's clock decides whether they are valid";
    Ok(Finding::warning("clock", detail, advice))
}

/// Two open client connections with the same backend prove that a pooler shares its server
/// connections.
async fn pooler(
    connection: &mut PgConnection,
    options: &PgConnectOptions,
) -> sqlx::Result<Finding> {
    const CHECK: &str = "pooler";
    let mut second = options.connect().await?;
    let mut shared = false;
    for _ in 0..3 {
        shared |= backend(connection).await? == backend(&mut second).await?;
    }
    if !shared {
        second.close().await?;
        return Ok(Finding::ok(CHECK, "each connection has its own session"));
    }
    // The first statement of each connection has the same name.
    let first: sqlx::Result<i32> = query_scalar("select 1").fetch_one(&mut *connection).await;
    let other: sqlx::Result<i32> = query_scalar("select 2").fetch_one(&mut second).await;
    if let Err(error) = first.and(other) {
        let detail = format!("a pooler in transaction mode mixes up statements: {error}");
        let advice = "use PgBouncer 1.21 or later with `max_prepared_statements` above 0, or its \
            session mode";
        return Ok(Finding::problem(CHECK, detail, advice));
    }
    second.close().await?;
    let advice = "fine with PgBouncer 1.21 or later, except that LISTEN does not work";
    Ok(Finding::warning(CHECK, "a pooler reassigns connections after each transaction", advice))
}

async fn backend(connection: &mut PgConnection) -> sqlx::Result<i32> {
    raw_sql("select pg_backend_pid()").fetch_one(connection).await?.try_get(0)
}

/// Where unqualified names of our tables resolve to.
struct Place {
    /// All tables in the database with our names.
    tables: Vec<Table>,
    role: String,
}

struct Table {
    name: String,
    schema: String,
    /// Whether its unqualified name resolves to this table.
    is_visible: bool,
    /// Whether its schema is on the search path.
    is_on_path: bool,
}

const HISTORY: &str = "_api_key_migrations";

impl Place {
    /// With a `setting`, only that schema matters.
    async fn find(connection: &mut PgConnection, setting: Option<&Schema>) -> sqlx::Result<Self> {
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
    fn schema(&self) -> Option<&str> {
        let of = |name| self.tables.iter().find(|it| it.is_visible && it.name == name);
        of(HISTORY).or_else(|| of("api_keys")).map(|table| table.schema.as_str())
    }

    fn has_keys(&self) -> bool {
        self.tables.iter().any(|table| table.is_visible && table.name == "api_keys")
    }

    /// Several sets of tables are fine only if the search path distinguishes them.
    fn findings(&self) -> Option<Finding> {
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
fn tables() -> Vec<&'static str> {
    made_by(POSTGRES, "table").into_iter().chain([HISTORY]).collect()
}

async fn history(
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
async fn structure(
    connection: &mut PgConnection,
    schema: &str,
    history: History,
    findings: &mut Vec<Finding>,
) -> sqlx::Result<Vec<Difference>> {
    let rows = match parts(connection, schema).await {
        Ok(rows) => rows,
        Err(error) if error.as_database_error().is_some() => {
            let detail = format!("the tables could not be compared with the migrations: {error}");
            let advice = "another session keeps rows or tables locked: see `pg_locks` and \
                `pg_stat_activity`";
            findings.push(Finding::warning("tables", detail, advice));
            return Ok(Vec::new());
        }
        Err(error) => return Err(error),
    };
    let part = |(kind, relation, name, definition)| Part { kind, relation, name, definition };
    let found: Vec<_> = rows.into_iter().map(part).collect();
    let mut expected = expected();
    if history == History::Foreign {
        // Reported by another finding.
        expected.retain(|part| part.relation != HISTORY);
    }
    let mut differences = differences(&expected, &found);
    if history == History::Newer {
        // A newer release may have replaced it.
        differences.iter_mut().for_each(|it| it.severity = Severity::Warning);
    }
    for (check, kinds, advice) in [
        ("tables", ["column", "constraint"].as_slice(), TABLES_DIFFER),
        ("triggers", &["trigger"], TRIGGERS_GONE),
        ("functions", &["function"], TRIGGERS_GONE),
        ("indexes", &["index"], INDEXES_GONE),
    ] {
        findings.push(Finding::of_parts(check, kinds, &expected, &differences, advice));
    }
    Ok(differences)
}

type Parts = Vec<(String, String, String, String)>;

async fn parts(connection: &mut PgConnection, schema: &str) -> sqlx::Result<Parts> {
    let mut transaction = connection.begin().await?;
    // Reading definitions takes locks, too.
    let settings = "set local search_path = pg_catalog; set local lock_timeout = '2s'";
    raw_sql(settings).execute(&mut *transaction).await?;
    let parts = query_as(include_str!("catalog.sql")).bind(schema);
    let parts = parts.fetch_all(&mut *transaction).await?;
    transaction.rollback().await?;
    Ok(parts)
}

/// The parts that the migrations create.
fn expected() -> Vec<Part> {
    let part = |line: &str| {
        let mut fields = line.splitn(4, '\t').map(str::to_owned);
        Some(Part {
            kind: fields.next()?,
            relation: fields.next()?,
            name: fields.next()?,
            definition: fields.next()?,
        })
    };
    include_str!("catalog.txt").lines().filter_map(part).collect()
}

/// Row-level security hides rows without an error, which makes a hidden key look unknown.
async fn row_security(connection: &mut PgConnection, schema: &str) -> sqlx::Result<Finding> {
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

/// The privileges for managing keys that this role lacks, by table.
struct Lacking {
    rights: BTreeMap<String, Vec<String>>,
    role: String,
    schema: String,
}

impl Lacking {
    async fn find(connection: &mut PgConnection, schema: &str) -> sqlx::Result<Self> {
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
    fn findings(&self, matters: bool) -> Vec<Finding> {
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
            "fine for a service that only looks keys up (it writes api_key_usage). To manage keys: \
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
    fn advise(&self, need: Need, error: &StoreError) -> String {
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
            _ => "the message comes from the database, for a statement that the library needs: \
                correct what it names"
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
    ('api_key_changes', array['select']),
    ('api_key_feed', array['select']),
    ('api_key_events', array['select', 'insert']),
    ('api_key_requests', array['select', 'insert', 'update', 'delete']),
    ('api_key_scopes', array['select'])
) as tables (name, rights)
cross join unnest(rights) as needed
join pg_class on relname = name
where relnamespace = (select oid from pg_namespace where nspname = $1)
    and not has_table_privilege(pg_class.oid, needed)";

/// Roles other than the owner and this one that may write to the tables. A role that may write to
/// `api_keys` can create itself a key with every scope.
async fn others(connection: &mut PgConnection, schema: &str) -> sqlx::Result<Finding> {
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
        "a role that may write to the keys can create itself a key with every scope. Unless it is \
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

/// Performs look-ups and changes in one transaction.
impl Rehearse for PgTransaction {
    async fn find(&mut self, hash: &KeyHash) -> Result<Option<KeyRecord>, StoreError> {
        let (connection, statements) = self.parts()?;
        // Also runs the statement for several keys. No key has the second hash.
        let other = KeyHash::from_bytes([0; 32]);
        batch::find_on(connection, &statements, &[*hash, other]).await?;
        let mut found = batch::find_on(connection, &statements, &[*hash]).await?;
        found.remove(hash).unwrap_or(Ok(None))
    }

    async fn get(&mut self, id: KeyId) -> Result<Option<KeyRecord>, StoreError> {
        get(self.parts()?.0, id).await
    }

    async fn list(&mut self, query: &KeyQuery) -> Result<KeyPage, StoreError> {
        let page = list::keys(self.parts()?.0, query).await?;
        // The cursor of a list otherwise ends with its transaction.
        raw_sql("close all").execute(self.parts()?.0).await.map_err(failed)?;
        Ok(page)
    }

    async fn events(&mut self, query: &EventQuery) -> Result<EventPage, StoreError> {
        list::events(self.parts()?.0, query).await
    }

    async fn flush_usage(&mut self, batch: &[Usage]) -> Result<(), StoreError> {
        usage::record_on(self.parts()?.0, batch).await
    }

    async fn last_used_at(&mut self, id: KeyId) -> Result<Option<SystemTime>, StoreError> {
        last_used_at(self.parts()?.0, id).await
    }

    async fn plans(&mut self) -> Result<Vec<(String, RateLimits)>, StoreError> {
        plans::all(self.parts()?.0).await
    }

    async fn changes_since(&mut self, horizon: Option<LogPosition>) -> Result<Changes, StoreError> {
        let (connection, statements) = self.parts()?;
        changes_since(connection, &statements, horizon).await
    }

    async fn settle(&mut self) -> Result<(), StoreError> {
        let settle = raw_sql("set constraints all immediate");
        settle.execute(self.parts()?.0).await.map_err(failed)?;
        Ok(())
    }
}
