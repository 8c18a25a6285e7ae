use std::time::{Duration, SystemTime};

use sqlx::{
    ConnectOptions as _, Connection as _, PgConnection, Row as _, postgres::PgConnectOptions,
    query_scalar, raw_sql,
};

use super::{PgChangeFeed, PgKeyStore};
use crate::{
    clock::Clock,
    store::{
        ChangeFeed as _, StoreError,
        doctor::{Finding, INDEXES_GONE, Severity, TRIGGERS_GONE, made_by},
        migrate::{Applied, POSTGRES},
    },
};

/// Beyond this, keys that begin at once do so late, and people who compare logs are led astray.
const SKEW: Duration = Duration::from_secs(1);

impl PgKeyStore {
    /// Keys in the database at `url`, for a program that comes and goes, such as a command line.
    ///
    /// As [`connect`](Self::connect), but with at most 2 connections, and without startup options
    /// and statement timeouts: it works through poolers that reject those, and a long piece of work
    /// may be long.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect).
    pub async fn connect_briefly(url: &str) -> Result<Self, StoreError> {
        Self::builder().connect_briefly(url).await
    }

    /// Looks at everything that looking keys up, changing them and hearing of changes depends on,
    /// and changes nothing. What cannot be looked at is a finding, too.
    ///
    /// `clock` is this machine's, to be compared with the database's.
    pub async fn diagnose(&self, clock: &impl Clock) -> Vec<Finding> {
        let mut findings = Vec::new();
        if let Err(error) = self.examine(clock, &mut findings).await {
            let advice = "is the database running, and may this role look at its tables? What \
                was not looked at may be wrong, too";
            findings.push(Finding::problem("database", error.to_string(), advice));
        }
        findings
    }

    async fn examine(&self, clock: &impl Clock, findings: &mut Vec<Finding>) -> sqlx::Result<()> {
        let options = self.pool().connect_options();
        let connection = &mut options.connect().await?;
        findings.push(server(connection).await?);
        findings.push(skew(connection, clock).await?);
        findings.push(pooler(connection, &options).await?);
        let schema = schema(connection).await?;
        let migrated = schema.severity == Severity::Ok;
        findings.push(schema);
        if !migrated {
            return Ok(());
        }
        let triggers = names(connection, TRIGGERS).await?;
        let expected = made_by(POSTGRES, "trigger");
        findings.push(Finding::of_parts("triggers", &expected, &triggers, TRIGGERS_GONE));
        let indexes = names(connection, INDEXES).await?;
        let mut expected = made_by(POSTGRES, "index");
        expected.extend(["api_keys_pkey", "api_keys_key_hash_key", "api_key_plans_pkey"]);
        findings.push(Finding::of_parts("indexes", &expected, &indexes, INDEXES_GONE));
        findings.push(rights(connection).await?);
        findings.push(self.listener().await);
        Ok(())
    }

    async fn listener(&self) -> Finding {
        match PgChangeFeed::new(self.pool().clone()).connect().await {
            Ok(()) => Finding::ok("listener", "notifications arrive"),
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                let detail = cause.unwrap_or_else(|| error.to_string());
                let advice = "a service that connects like this takes a `PollingChangeFeed`, or for \
                    its `PgChangeFeed` a pool that goes straight to the primary";
                let detail = format!("notifications do not arrive: {detail}");
                Finding::warning("listener", detail, advice)
            }
        }
    }
}

async fn server(connection: &mut PgConnection) -> sqlx::Result<Finding> {
    let asked = "select current_setting('server_version_num')::int, pg_is_in_recovery()";
    let row = raw_sql(asked).fetch_one(connection).await?;
    let (version, standby): (i32, bool) = (row.try_get(0)?, row.try_get(1)?);
    let (major, minor) = (version / 10_000, version % 10_000);
    if major < 14 {
        let detail = format!("PostgreSQL {major}.{minor}");
        return Ok(Finding::problem("server", detail, "PostgreSQL 14 or later is needed"));
    }
    if standby {
        let advice = "a standby serves look-ups; keys are changed on the primary, and changes are \
            heard by a `PollingChangeFeed`";
        return Ok(Finding::warning("server", "this is a standby", advice));
    }
    Ok(Finding::ok("server", format!("PostgreSQL {major}.{minor}")))
}

async fn skew(connection: &mut PgConnection, clock: &impl Clock) -> sqlx::Result<Finding> {
    let before = clock.now();
    let asked = "select (extract(epoch from clock_timestamp()) * 1000000)::bigint";
    let micros: i64 = raw_sql(asked).fetch_one(connection).await?.try_get(0)?;
    let after = clock.now();
    let theirs =
        SystemTime::UNIX_EPOCH + Duration::from_micros(u64::try_from(micros).unwrap_or_default());
    // It was read at some time in between.
    let behind = before.duration_since(theirs).unwrap_or_default();
    let ahead = theirs.duration_since(after).unwrap_or_default();
    let (skew, which) = if behind > ahead { (behind, "behind") } else { (ahead, "ahead of") };
    let detail = format!("the database's clock is {skew:.1?} {which} this machine's");
    if skew <= SKEW {
        return Ok(Finding::ok("clock", "the database's clock agrees with this machine's"));
    }
    let advice = "synchronise both with NTP. Keys are judged by the database's clock, but issued \
        by the one of the service";
    Ok(Finding::warning("clock", detail, advice))
}

/// Two connections of ours that are open at once and one to the server are proof of a pooler that
/// hands its own round.
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
        return Ok(Finding::ok(CHECK, "connections are sessions of their own"));
    }
    // Of one name, as the first of each connection.
    let first: sqlx::Result<i32> = query_scalar("select 1").fetch_one(&mut *connection).await;
    let other: sqlx::Result<i32> = query_scalar("select 2").fetch_one(&mut second).await;
    if let Err(error) = first.and(other) {
        let detail = format!("a pooler in transaction mode mixes statements up: {error}");
        let advice = "take PgBouncer 1.21 or later with `max_prepared_statements` above 0, or its \
            session mode";
        return Ok(Finding::problem(CHECK, detail, advice));
    }
    second.close().await?;
    let advice = "fine with PgBouncer 1.21 or later, except that LISTEN does not work";
    Ok(Finding::warning(CHECK, "connections are handed round after each transaction", advice))
}

async fn backend(connection: &mut PgConnection) -> sqlx::Result<i32> {
    raw_sql("select pg_backend_pid()").fetch_one(connection).await?.try_get(0)
}

/// Without a prepared statement, which an old pooler may have mixed up.
async fn names(connection: &mut PgConnection, asked: &'static str) -> sqlx::Result<Vec<String>> {
    let rows = raw_sql(asked).fetch_all(connection).await?;
    rows.iter().map(|row| row.try_get(0)).collect()
}

async fn schema(connection: &mut PgConnection) -> sqlx::Result<Finding> {
    let begun = raw_sql("select to_regclass('_api_key_migrations') is not null");
    let mut history: Vec<Applied> = Vec::new();
    if begun.fetch_one(&mut *connection).await?.try_get(0)? {
        let applied = raw_sql("select version, checksum from _api_key_migrations");
        for row in applied.fetch_all(connection).await? {
            history.push((row.try_get(0)?, row.try_get(1)?));
        }
    }
    Ok(Finding::of_history(POSTGRES, &history))
}

const TRIGGERS: &str = "
select tgname::text from pg_trigger
join pg_class on pg_class.oid = tgrelid
where tgenabled in ('O', 'A') and not tgisinternal
and relnamespace = (select relnamespace from pg_class where oid = to_regclass('api_keys'))";

const INDEXES: &str = "
select relname::text from pg_index
join pg_class on pg_class.oid = indexrelid
where indisvalid and indisready
and relnamespace = (select relnamespace from pg_class where oid = to_regclass('api_keys'))";

async fn rights(connection: &mut PgConnection) -> sqlx::Result<Finding> {
    let lacking = names(connection, RIGHTS).await?;
    if lacking.is_empty() {
        return Ok(Finding::ok("rights", "this role may look keys up, change them and prune them"));
    }
    let detail = format!("this role lacks: {}", lacking.join(", "));
    let needed = ["select on api_keys", "select on api_key_plans"];
    if lacking.iter().any(|right| needed.contains(&right.as_str())) {
        let advice = "without it no key is let in: grant select on api_keys and api_key_plans";
        return Ok(Finding::problem("rights", detail, advice));
    }
    let advice = "fine for a service that only looks keys up (it writes api_key_usage); who \
        manages keys needs all of them";
    Ok(Finding::warning("rights", detail, advice))
}

const RIGHTS: &str = "
select needed || ' on ' || name
from (values
    ('api_keys', array['select', 'insert', 'update', 'delete']),
    ('api_key_plans', array['select', 'insert', 'update', 'delete']),
    ('api_key_usage', array['select', 'insert', 'update']),
    ('api_key_changes', array['select']),
    ('api_key_events', array['select', 'insert'])
) as tables (name, rights), unnest(rights) as needed
where to_regclass(name) is not null and not has_table_privilege(to_regclass(name), needed)";
