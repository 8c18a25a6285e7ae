use std::time::SystemTime;

use sqlx::{
    SqliteConnection, query_as, query_scalar, raw_sql,
    sqlite::{SqliteConnectOptions, SqlitePoolOptions},
};
use tokio::time::timeout;

use super::{
    SqliteKeyStore, SqliteTransaction, change_log::changes_since, error::failed, find, get,
    last_used_at, list, plans, usage,
};
#[cfg(feature = "webhooks")]
use crate::store::port::WebhookStore as _;
use crate::{
    key::KeyHash,
    rate_limit::RateLimits,
    record::{KeyId, KeyRecord},
    store::{
        EventPage, EventQuery, KeyPage, KeyQuery, StoreError, StoreErrorKind,
        doctor::{Finding, History, NO_EFFECT, PATIENCE, UNREADABLE, database_refusal},
        migrate::{Applied, SQLITE},
        port::{Changes, LegacyHashes as _, LogPosition, UsageBatch},
        structure::{Difference, Part, TABLES_DIFFER, compare, made_by},
        trial::{Rehearse, rehearse},
    },
};

impl SqliteKeyStore {
    /// Performs every operation of a service in transactions that are rolled back, and checks
    /// everything else that look-ups, changes and the feed depend on: the file, the tables, their
    /// triggers and indexes, and free space. It changes nothing. A check that cannot be made is a
    /// finding, too.
    ///
    /// Without a [`Problem`](crate::store::Severity::Problem), keys can be looked up and changes to them are
    /// noticed; without a [`Warning`](crate::store::Severity::Warning) either, keys can be managed.
    pub async fn diagnose(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        match timeout(PATIENCE, self.examine(&mut findings)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => findings.push(Finding::blocked("database", &error)),
            Err(_) => findings.push(Finding::late()),
        }
        findings
    }

    async fn examine(&self, findings: &mut Vec<Finding>) -> sqlx::Result<()> {
        findings.push(self.soundness().await?);
        findings.push(self.journal().await?);
        let history = self.history(findings).await?;
        if matches!(history, History::Missing | History::Broken) {
            return Ok(());
        }
        let differences = self.structure(history, findings).await?;
        if differences.iter().any(Difference::is_of_a_table) {
            return Ok(());
        }
        let failures = rehearse(self, false).await;
        findings.extend(Finding::of_trial(&failures, false, |_, error| advise(error)));
        findings.push(Finding::of_legacy_keys(self.count_legacy_keys().await));
        #[cfg(feature = "webhooks")]
        findings.push(Finding::of_webhooks(self.webhooks().await));
        if failures.is_empty() {
            findings.push(self.room().await);
        }
        Ok(())
    }

    async fn soundness(&self) -> sqlx::Result<Finding> {
        let said: String = query_scalar("pragma quick_check(1)").fetch_one(self.pool()).await?;
        if said == "ok" {
            return Ok(Finding::ok("file", "the file is intact"));
        }
        Ok(Finding::problem("file", said, "restore the file from a backup"))
    }

    async fn journal(&self) -> sqlx::Result<Finding> {
        let mode: String = query_scalar("pragma journal_mode").fetch_one(self.pool()).await?;
        if mode == "wal" {
            return Ok(Finding::ok(
                "journal",
                "a write-ahead log: look-ups do not wait for writers",
            ));
        }
        let detail = format!("the journal is `{mode}`: look-ups wait for writers");
        let advice = "`pragma journal_mode = wal`, as `SqliteKeyStore::connect` does";
        Ok(Finding::warning("journal", detail, advice))
    }

    async fn history(&self, findings: &mut Vec<Finding>) -> sqlx::Result<History> {
        let begun = query_scalar(super::migrate::HAS_HISTORY).fetch_one(self.pool()).await?;
        let mut applied: Vec<Applied> = Vec::new();
        if begun {
            let history = query_as("select version, checksum from _api_key_migrations");
            applied = history.fetch_all(self.pool()).await?;
        }
        let has_keys = query_scalar(HAS_KEYS).fetch_one(self.pool()).await?;
        let (history, finding) = History::of(SQLITE, &applied, has_keys);
        findings.push(finding);
        Ok(history)
    }

    /// Compares the tables and their triggers and indexes with those of a new database.
    async fn structure(
        &self,
        history: History,
        findings: &mut Vec<Finding>,
    ) -> sqlx::Result<Vec<Difference>> {
        let found = parts(&mut *self.pool().acquire().await?).await?;
        Ok(compare(&parts_made().await?, &found, history, findings))
    }

    /// Checks for free space. A transaction that is rolled back reaches the disk only if it exceeds
    /// the cache, so this one has a minimal cache.
    async fn room(&self) -> Finding {
        const CHECK: &str = "rights";
        match self.fill().await {
            Ok(()) => Finding::ok(CHECK, "the file can be written"),
            Err(error) => {
                let error = failed(error);
                let advice = advise(&error);
                let cause =
                    database_refusal(&error).map_or_else(|| error.to_string(), ToString::to_string);
                Finding::warning(CHECK, format!("the file cannot be written: {cause}"), advice)
            }
        }
    }

    async fn fill(&self) -> sqlx::Result<()> {
        let options = self.pool().connect_options();
        if options.get_filename().as_os_str().is_empty() {
            return Ok(());
        }
        let options = SqliteConnectOptions::clone(&options).pragma("cache_size", "1");
        let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await?;
        let mut transaction = pool.begin_with("begin immediate").await?;
        raw_sql(FILL).execute(&mut *transaction).await?;
        transaction.rollback().await?;
        pool.close().await;
        Ok(())
    }
}

const HAS_KEYS: &str =
    "select exists (select 1 from sqlite_schema where type = 'table' and name = 'api_keys')";

// More pages than the minimal cache holds.
const FILL: &str = "
create table _api_key_room (filling blob);
with recursive counter (n) as (select 1 union all select n + 1 from counter where n < 100)
insert into _api_key_room select zeroblob(4000) from counter";

/// The parts that the migrations create in an in-memory database.
pub(super) async fn parts_made() -> sqlx::Result<Vec<Part>> {
    let options = SqliteConnectOptions::new().in_memory(true);
    let mut connection = sqlx::ConnectOptions::connect(&options).await?;
    for migration in SQLITE {
        raw_sql(migration.sql).execute(&mut connection).await?;
    }
    parts(&mut connection).await
}

pub(super) async fn parts(connection: &mut SqliteConnection) -> sqlx::Result<Vec<Part>> {
    let rows: Vec<(String, String, String, String)> = query_as(PARTS).fetch_all(connection).await?;
    let tables = made_by(SQLITE, "table");
    let part = |(kind, relation, name, definition): (String, String, String, String)| {
        let definition = match kind.as_str() {
            "index" | "trigger" => plain(&definition),
            _ => definition,
        };
        Part { kind, relation, name, definition }
    };
    let ours = |part: &Part| tables.contains(part.relation.as_str());
    Ok(rows.into_iter().map(part).filter(ours).collect())
}

/// Removes comments and quotes, and normalises spaces and case.
fn plain(sql: &str) -> String {
    let lines = sql.lines().map(|line| line.split_once("--").map_or(line, |(code, _)| code));
    let words: Vec<_> = lines.flat_map(str::split_whitespace).collect();
    words.join(" ").to_lowercase().replace(['"', '`'], "")
}

const PARTS: &str = "
select
    'column', tables.name, columns.name,
    lower(columns.type) || iif(columns.\"notnull\" or columns.pk, ' not null', '')
        || coalesce(' default ' || columns.dflt_value, '')
from sqlite_schema as tables
join pragma_table_info(tables.name) as columns
where tables.type in ('table', 'view')
union all
select
    'constraint', tables.name, indexes.name,
    'unique (' || (select group_concat(name, ', ') from pragma_index_info(indexes.name)) || ')'
from sqlite_schema as tables
join pragma_index_list(tables.name) as indexes
where tables.type = 'table' and indexes.\"unique\" and not indexes.partial
union all
select type, tbl_name, name, sql from sqlite_schema
where type in ('index', 'trigger') and sql is not null";

/// How to fix an error of a statement.
fn advise(error: &StoreError) -> String {
    let Some(refusal) = database_refusal(error) else {
        return match error.kind() {
            StoreErrorKind::Corrupt => UNREADABLE,
            StoreErrorKind::Unavailable => "another program keeps the file locked",
            _ => NO_EFFECT,
        }
        .to_owned();
    };
    let message = refusal.message.as_str();
    if message.contains("readonly") || message.contains("unable to open") {
        "give this user write access to the file, to the files beside it that end in -wal and -shm, \
        and to their folder; a URL with `mode=ro` is read-only"
    } else if message.contains("full") || message.contains("I/O error") {
        "make room on the disk; `pragma max_page_count` may also limit the file"
    } else if message.contains("locked") || message.contains("busy") {
        "another program keeps the file locked"
    } else if message.contains("no such") {
        TABLES_DIFFER
    } else {
        "check that this user may write to the file and its folder; a trigger of the application \
        may also have refused the statement"
    }
    .to_owned()
}

/// Performs look-ups and changes in one transaction.
impl Rehearse for SqliteTransaction {
    async fn find(&mut self, hash: &KeyHash) -> Result<Option<KeyRecord>, StoreError> {
        find(self.connection()?, hash).await
    }

    async fn get(&mut self, id: KeyId) -> Result<Option<KeyRecord>, StoreError> {
        get(self.connection()?, id).await
    }

    async fn list(&mut self, query: &KeyQuery) -> Result<KeyPage, StoreError> {
        list::keys(self.connection()?, query).await
    }

    async fn events(&mut self, query: &EventQuery) -> Result<EventPage, StoreError> {
        list::events(self.connection()?, query).await
    }

    async fn flush_usage(&mut self, batch: &UsageBatch) -> Result<(), StoreError> {
        usage::record_on(self.connection()?, batch).await
    }

    async fn last_used_at(&mut self, id: KeyId) -> Result<Option<SystemTime>, StoreError> {
        last_used_at(self.connection()?, id).await
    }

    async fn plans(&mut self) -> Result<Vec<(String, RateLimits)>, StoreError> {
        plans::all(self.connection()?).await
    }

    async fn changes_since(&mut self, horizon: Option<LogPosition>) -> Result<Changes, StoreError> {
        changes_since(self.connection()?, horizon).await
    }

    async fn settle(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
}
