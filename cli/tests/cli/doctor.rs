//! `diagnose` on databases with faults: its report is compared with what works.
//!
//! In each state every operation is also performed through the public API. A report without a
//! warning means that all of them succeed, one without a problem that keys are looked up.

use std::{
    fmt, fs,
    process::{Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use sqlx::{AssertSqlSafe, Connection as _, PgConnection, SqliteConnection, query_scalar, raw_sql};
use tower_api_key::{
    clock::SystemClock,
    key::{KeyFormat, KeyHash, LegacyHash},
    manage::{Expiry, KeyImport, KeyIssuer, KeyUpdate, NewKey, Rotation},
    rate_limit::{Quota, RateLimits},
    record::{KeyId, KeyRecord, Scope, Scopes, Tags},
    store::{
        EventQuery, Finding, KeyQuery, ManageKeys, PgKeyStore, Severity, SqliteKeyStore,
        StoreError,
        port::{
            ChangeLog, CountedUses, HourlyUse, KeyTransaction as _, Usage, UsageBatch, UseCounts,
        },
    },
};

use crate::servers::postgres::Server;
use crate::wait::within;

const SCOPE: &str = "reports:read";
const TAG: &str = "mobile";

/// Every table, by the migrations' own names.
const TABLES: [&str; 19] = [
    "_api_key_migrations",
    "api_key_changes",
    "api_key_events",
    "api_key_feed",
    "api_key_first_uses",
    "api_key_legacy_hashes",
    "api_key_notice_positions",
    "api_key_notices",
    "api_key_plans",
    "api_key_requests",
    "api_key_scopes",
    "api_key_tags",
    "api_key_usage",
    "api_key_usage_daily",
    "api_key_usage_hourly",
    "api_key_usage_writers",
    "api_key_webhook_lease",
    "api_key_webhooks",
    "api_keys",
];

// -- Reports ---------------------------------------------------------------------------------------

struct Report(Vec<Finding>);

impl Report {
    fn worst(&self) -> Severity {
        self.0.iter().map(|finding| finding.severity).max().unwrap()
    }

    /// Whether a finding of this severity contains `words`, in detail or advice.
    fn says(&self, severity: Severity, words: &str) -> bool {
        self.0.iter().filter(|finding| finding.severity == severity).any(|finding| {
            let advice = finding.advice.as_deref().unwrap_or_default();
            finding.check.contains(words)
                || finding.detail.contains(words)
                || advice.contains(words)
        })
    }

    /// Whether any finding that is not fine contains `words`.
    fn complains_of(&self, words: &str) -> bool {
        self.says(Severity::Problem, words) || self.says(Severity::Warning, words)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Finding { check, severity, detail, advice, .. } in &self.0 {
            writeln!(f, "{}: {check}: {detail} [{advice:?}]", severity.as_str())?;
        }
        Ok(())
    }
}

// -- What works ------------------------------------------------------------------------------------

/// Keys for the operations of one run.
struct Seeds {
    live: KeyRecord,
    rotated: KeyRecord,
    revoked: KeyRecord,
}

fn record() -> KeyRecord {
    let (number, unique) = (COUNT.fetch_add(1, Ordering::Relaxed), crate::servers::unique());
    let id = (u128::from(unique) << 64) | u128::from(number);
    let id = id.to_be_bytes();
    let mut hash = [1; 32];
    hash[..16].copy_from_slice(&id);
    let mut record =
        KeyRecord::new(KeyId::from_bytes(id), KeyHash::from_bytes(hash), "acme", now());
    record.scopes = Scopes::parse([SCOPE]).unwrap();
    record.tags = Tags::parse([TAG]).unwrap();
    record
}

static COUNT: AtomicU64 = AtomicU64::new(0);

#[expect(clippy::disallowed_methods, reason = "the issuer's clock is the system's")]
fn now() -> SystemTime {
    SystemTime::now()
}

/// An ended key that prune must find.
fn long_ago(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

async fn seed<S: ManageKeys>(store: &S) -> Seeds {
    let seeds = Seeds { live: record(), rotated: record(), revoked: record() };
    let mut ended = record();
    ended.expires_at = Some(long_ago(1_000_000));
    let mut transaction = store.begin().await.unwrap();
    let all = [seeds.live.clone(), seeds.rotated.clone(), seeds.revoked.clone(), ended];
    assert_eq!(transaction.insert(&all).await.unwrap().len(), 4);
    transaction.commit().await.unwrap();
    seeds
}

type Outcome = Result<(), String>;

fn said<T, E: std::error::Error>(outcome: Result<T, E>) -> Result<T, String> {
    outcome.map_err(|error| {
        let source = error.source().and_then(|error| error.source().or(Some(error)));
        format!("{error}: {source:?}")
    })
}

fn ensure(holds: bool, otherwise: &str) -> Outcome {
    if holds { Ok(()) } else { Err(otherwise.to_owned()) }
}

/// Performs each operation, and commits it.
async fn operations<S>(store: &S, seeds: &Seeds) -> Vec<(&'static str, Outcome)>
where
    S: ManageKeys + ChangeLog + Clone,
{
    let issuer = KeyIssuer::new(store.clone(), KeyFormat::new("sk_test_").unwrap());
    let new = || {
        NewKey::new("acme", Expiry::Never).scopes(Scopes::parse([SCOPE]).unwrap()).plan("missing")
    };
    let by_scope = KeyQuery::new().scope(Scope::new(SCOPE).unwrap()).limit(1000);
    let by_tag = KeyQuery::new().tag(TAG).limit(1000);
    let all = KeyQuery::new().limit(1000);
    let live = &seeds.live;
    let has_live = |page: tower_api_key::store::KeyPage| {
        ensure(page.keys.iter().any(|key| key.record.id == live.id), "the list lacks a key")
    };
    let idempotency_key = format!("request-{}", record().id);
    let plan = format!("plan-{}", record().id);
    vec![
        ("look-up", {
            let found = said(store.find(&live.key_hash).await);
            found.and_then(|found| ensure(found.is_some(), "the key is unknown"))
        }),
        ("polling", said(store.changes_since(None).await).map(drop)),
        ("issue", said(issuer.issue(new()).await).map(drop)),
        ("idempotency key", {
            let once = issuer.issue(new().idempotency_key(idempotency_key.clone())).await;
            let again = issuer.issue(new().idempotency_key(idempotency_key)).await;
            said(once).and_then(|_| ensure(again.is_err(), "it was carried out twice"))
        }),
        ("list", said(issuer.list(&all).await).and_then(has_live)),
        ("list by scope", said(issuer.list(&by_scope).await).and_then(has_live)),
        ("list by tag", said(issuer.list(&by_tag).await).and_then(has_live)),
        ("events", said(issuer.events(&EventQuery::new()).await).map(drop)),
        ("get", said(issuer.get(live.id).await).map(drop)),
        ("update", {
            let update = KeyUpdate::new().scopes(Scopes::default());
            said(issuer.update(seeds.rotated.id, update).await).map(drop)
        }),
        ("rotate", said(issuer.rotate(seeds.rotated.id, Rotation::new()).await).map(drop)),
        ("revoke", said(issuer.revoke(seeds.revoked.id, None).await).map(drop)),
        ("prune", {
            let pruned = said(issuer.prune(long_ago(2_000_000), 100).await);
            let hours = said(issuer.prune_usage(long_ago(2_000_000), 100).await).map(drop);
            pruned.and_then(|pruned| ensure(pruned.keys > 0, "an ended key is kept")).and(hours)
        }),
        ("import", {
            let (legacy, digest) = legacy_import(new());
            let batch = vec![KeyImport::new(record().key_hash, new()), legacy];
            match said(issuer.import(batch).await) {
                Ok(imported) => said(move_key(store, imported.keys[1], digest).await)
                    .and_then(|moved| ensure(moved, "it is not moved")),
                Err(error) => Err(error),
            }
        }),
        ("usage", {
            let hour = HourlyUse::new(live.id, "acme".into(), now(), UseCounts::new(1, 0, 0, 0, 1));
            let counted = CountedUses::new(*record().id.as_bytes(), 1, vec![hour]);
            let batch = UsageBatch::new(vec![Usage::new(live.id, now())]);
            said(store.record_usage(&batch.counted(counted)).await)
        }),
        ("plans", {
            let limits = RateLimits::from(Quota::per_minute(60).unwrap());
            let set = said(issuer.set_plan(&plan, &RateLimits::unlimited()).await);
            let changed = said(issuer.set_plan(&plan, &limits).await);
            let removed = said(issuer.remove_plan(&plan).await).map(drop);
            set.and(changed).and(removed)
        }),
    ]
}

/// A key with a legacy hash of its own, and the digest of that.
fn legacy_import(new: NewKey) -> (KeyImport, [u8; 32]) {
    let salt = record().id.to_string().replace('-', "");
    let hash: LegacyHash = format!("pbkdf2_sha256$1${salt}${salt}").parse().unwrap();
    let digest = hash.digest();
    (KeyImport::of_legacy_hash(hash, new).legacy_hint(&salt[16..]), digest)
}

/// Moves the key as a service does at its first use. Whether it had not been.
async fn move_key<S: ManageKeys>(
    store: &S,
    id: KeyId,
    digest: [u8; 32],
) -> Result<bool, StoreError> {
    let mut transaction = store.begin().await?;
    transaction.lock(&[id]).await?;
    let moved = transaction.replace_legacy_hash(id, &digest, &record().key_hash).await?;
    transaction.commit().await?;
    Ok(moved.is_some())
}

/// Checks that the promises of a report hold.
fn hold(state: &str, report: &Report, operations: &[(&'static str, Outcome)]) {
    let failed: Vec<_> = operations.iter().filter(|(_, outcome)| outcome.is_err()).collect();
    assert!(
        failed.is_empty() || report.worst() > Severity::Ok,
        "{state}: the report is clean, and these fail: {failed:#?}\n{report}"
    );
    assert!(
        report.worst() == Severity::Problem || !failed.iter().any(|(name, _)| *name == "look-up"),
        "{state}: no problem is reported, and keys are not let in: {failed:#?}\n{report}"
    );
}

// -- PostgreSQL ------------------------------------------------------------------------------------

/// A server for these tests alone: the states need roles, which belong to a server.
async fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    static READY: tokio::sync::OnceCell<()> = tokio::sync::OnceCell::const_new();
    let server = SERVER.get_or_init(Server::start);
    let ready = READY.get_or_init(|| async {
        execute(
            &server.url("postgres"),
            "create role svc login; create role reader login; create role anon login;
            create role writers; create role ann login in role writers; create role keeper",
        )
        .await;
        execute(&server.url("postgres"), "create database keys").await;
        let store = PgKeyStore::connect(&server.url("keys")).await.unwrap();
        store.migrate().await.unwrap();
        store.pool().close().await;
    });
    ready.await;
    server
}

async fn execute(url: &str, sql: &str) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let executed = raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await;
    executed.unwrap_or_else(|error| panic!("{sql}: {error}"));
    connection.close().await.unwrap();
}

/// A database with tables, and a role `svc` with exactly the rights it needs.
struct Place {
    url: String,
    /// Connections as superuser.
    admin: PgKeyStore,
}

impl Place {
    async fn new() -> Self {
        let place = Self::without_grants("keys").await;
        place.execute(GRANTS).await;
        place
    }

    async fn without_grants(template: &str) -> Self {
        let server = server().await;
        // A template must have no connections: one copy at a time.
        static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
        let _turn = TURN.lock().await;
        let name = format!("keys_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let create = format!("create database {name} template {template}");
        execute(&server.url("postgres"), &create).await;
        Self::at(server.url(&name))
    }

    fn at(url: String) -> Self {
        let admin = PgKeyStore::connect_lazy(&url).unwrap();
        Self { url, admin }
    }

    async fn execute(&self, sql: &str) {
        let executed = raw_sql(AssertSqlSafe(sql.to_owned())).execute(self.admin.pool()).await;
        executed.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    async fn ask(&self, sql: &str) -> Vec<String> {
        query_scalar(AssertSqlSafe(sql.to_owned())).fetch_all(self.admin.pool()).await.unwrap()
    }

    fn url_of(&self, role: &str) -> String {
        self.url.replace("//postgres@", &format!("//{role}@"))
    }

    async fn store(&self, role: &str) -> PgKeyStore {
        PgKeyStore::connect_briefly(&self.url_of(role)).await.unwrap()
    }

    async fn seeds(&self) -> Seeds {
        seed(&self.admin).await
    }

    async fn report(&self, role: &str) -> Report {
        let store = self.store(role).await;
        let report = Report(store.diagnose(&SystemClock::new()).await);
        store.pool().close().await;
        report
    }

    /// The report, compared with what works.
    async fn examine(&self, state: &str, role: &str, seeds: &Seeds) -> (Report, Vec<&'static str>) {
        let store = self.store(role).await;
        let outcome = examine(&store, state, seeds).await;
        store.pool().close().await;
        outcome
    }
}

async fn examine(store: &PgKeyStore, state: &str, seeds: &Seeds) -> (Report, Vec<&'static str>) {
    let report = Report(store.diagnose(&SystemClock::new()).await);
    let operations = operations(store, seeds).await;
    hold(state, &report, &operations);
    let failed = operations.iter().filter(|(_, outcome)| outcome.is_err());
    (report, failed.map(|(name, _)| *name).collect())
}

/// The rights of a service that manages keys.
const GRANTS: &str = "
grant select on _api_key_migrations, api_key_changes, api_key_feed, api_key_scopes, api_key_tags
    to svc;
grant select, insert on api_key_events to svc;
grant select, insert, update on api_key_legacy_hashes, api_key_usage_daily to svc;
grant select, insert, update, delete on api_keys, api_key_plans, api_key_usage, api_key_requests,
    api_key_usage_hourly, api_key_usage_writers to svc";

/// The preparation of a database, and the expected report.
struct State {
    name: &'static str,
    brought_about_by: &'static str,
    severity: Severity,
    /// The expected text at this severity.
    says: &'static [&'static str],
    /// Whether every operation works, as far as tests can tell.
    works: bool,
}

const fn problem(
    name: &'static str,
    brought_about_by: &'static str,
    says: &'static [&'static str],
) -> State {
    State { name, brought_about_by, severity: Severity::Problem, says, works: true }
}

const fn warning(
    name: &'static str,
    brought_about_by: &'static str,
    says: &'static [&'static str],
) -> State {
    State { name, brought_about_by, severity: Severity::Warning, says, works: true }
}

impl State {
    /// Differences between the report and the expectation.
    fn mistakes(&self, (report, failed): (Report, Vec<&'static str>)) -> Vec<String> {
        let Self { name, severity, says, works, .. } = self;
        let mut mistakes = Vec::new();
        if report.worst() != *severity {
            mistakes.push(format!("{name}: the worst is {:?}\n{report}", report.worst()));
        }
        for words in *says {
            if !report.says(*severity, words) {
                mistakes.push(format!("{name}: {words:?} is not said\n{report}"));
            }
        }
        if failed.is_empty() != *works {
            mistakes.push(format!("{name}: these fail: {failed:?}\n{report}"));
        }
        mistakes
    }

    const fn that_breaks(self) -> Self {
        Self { works: false, ..self }
    }
}

const STATES: &[State] = &[
    State {
        name: "a service with the rights it needs",
        brought_about_by: "select 1",
        severity: Severity::Ok,
        says: &["all work", "may look keys up", "one set of tables"],
        works: true,
    },
    State {
        name: "columns, indexes and triggers of the application's own",
        brought_about_by: "
            alter table api_keys add column tenant text, add column region text not null default '';
            create index by_tenant on api_keys (tenant);
            create function note() returns trigger language plpgsql as 'begin return new; end';
            create trigger note before insert on api_keys for each row execute function note();
            alter table api_keys validate constraint api_keys_plan_is_plain",
        severity: Severity::Ok,
        says: &["all work"],
        works: true,
    },
    warning(
        "a role that only looks keys up",
        "revoke all on all tables in schema public from svc;
        grant select on _api_key_migrations, api_keys, api_key_plans, api_key_feed to svc;
        grant select, insert, update on api_key_usage to svc",
        &["permission denied for table api_key", "grant insert", "only looks keys up"],
    )
    .that_breaks(),
    warning(
        "transactions that only read by default",
        "do $$ begin
            execute format('alter role svc in database %I set default_transaction_read_only = on',
                current_database());
        end $$",
        &["read-only", "default_transaction_read_only"],
    )
    .that_breaks(),
    warning(
        "a history that the role may not read",
        "revoke select on _api_key_migrations from svc",
        &["history", "grant select on _api_key_migrations to svc"],
    ),
    problem(
        "a history that ends early",
        "delete from _api_key_migrations where version > 2",
        &["these are missing: migration 3", "api-key migrate"],
    ),
    warning(
        "a history of a newer release",
        "insert into _api_key_migrations (version, description, checksum) values (99, 'new', 1);
        drop index api_keys_live",
        &["at version 99", "upgrade this program", "api_keys_live"],
    ),
    warning(
        "tables made by another migration tool",
        "drop table _api_key_migrations",
        &["another program made them", "run `api-key migrate --adopt`"],
    ),
    problem(
        "a dropped trigger",
        "drop trigger api_keys_tell_update on api_keys",
        &["api_keys_tell_update of api_keys is missing"],
    ),
    problem(
        "a trigger of the same name on another table",
        "drop trigger api_keys_tell_update on api_keys;
        create table elsewhere (id uuid);
        create trigger api_keys_tell_update after update on elsewhere
        for each row execute function api_keys_tell()",
        &["api_keys_tell_update of api_keys is missing"],
    ),
    problem(
        "a trigger with the function of another schema",
        "create schema other;
        create function other.api_keys_tell() returns trigger language plpgsql
            as 'begin return null; end';
        drop trigger api_keys_tell_truncate on api_keys;
        create trigger api_keys_tell_truncate after truncate on api_keys
        for each statement execute function other.api_keys_tell()",
        &["api_keys_tell_truncate of api_keys is not as"],
    ),
    problem(
        "a trigger with a narrower condition",
        "drop trigger api_keys_tell_update on api_keys;
        create trigger api_keys_tell_update after update on api_keys for each row
        when (old.revoked_at is distinct from new.revoked_at) execute function api_keys_tell()",
        &["api_keys_tell_update of api_keys is not as"],
    ),
    problem(
        "a trigger that fires on replicas only",
        "alter table api_keys enable replica trigger api_keys_tell",
        &["api_keys_tell of api_keys is on replicas only"],
    ),
    problem(
        "a trigger's function that does nothing",
        "create or replace function api_keys_tell() returns trigger language plpgsql
        security definer set search_path = pg_catalog, pg_temp as 'begin return null; end'",
        &["function api_keys_tell() is not as"],
    ),
    problem(
        "a trigger's function with the rights of the caller",
        "alter function api_keys_follow() security invoker",
        &["function api_keys_follow() is not as"],
    )
    .that_breaks(),
    problem(
        "an index that was left half-built",
        "update pg_index set indisvalid = false
        where indexrelid = 'api_keys_by_expiry'::regclass",
        &["api_keys_by_expiry of api_keys is invalid"],
    ),
    warning(
        "an index of other columns",
        "drop index api_keys_live;
        create index api_keys_live on api_keys (created_at) where revoked_at is null",
        &["api_keys_live of api_keys is not as"],
    ),
    problem(
        "hashes that need not be unique",
        "alter table api_keys drop constraint api_keys_key_hash_key",
        &["api_keys_key_hash_key of api_keys is missing"],
    ),
    State {
        name: "a constraint of another name",
        brought_about_by: "alter table api_keys rename constraint api_keys_key_hash_key to of_another_name",
        severity: Severity::Ok,
        says: &["all work"],
        works: true,
    },
    warning(
        "a check that is gone",
        "alter table api_keys drop constraint api_keys_version_counts_from_1",
        &["api_keys_version_counts_from_1 of api_keys is missing"],
    ),
    problem(
        "idempotency keys that need not be unique",
        "alter table api_key_requests drop constraint api_key_requests_pkey",
        &["api_key_requests_pkey of api_key_requests is missing"],
    )
    .that_breaks(),
    problem(
        "a column of another type",
        "alter table api_keys alter key_last4 type bytea using ''",
        &["key_last4 of api_keys is bytea not null, not text not null"],
    )
    .that_breaks(),
    problem(
        "a column that is gone",
        "alter table api_key_events rename origin to whence",
        &["origin of api_key_events is missing"],
    )
    .that_breaks(),
    problem(
        "a table that is gone",
        "drop table api_key_requests",
        &["of api_key_requests is missing"],
    )
    .that_breaks(),
    warning(
        "a column of the application's that must be filled",
        "alter table api_keys add column tenant text not null default 'acme';
        alter table api_keys alter tenant drop default",
        &["issue", "\"tenant\" of relation \"api_keys\"", "a constraint of the application"],
    )
    .that_breaks(),
    warning(
        "a column that may be null",
        "alter table api_keys alter consumer_id drop not null",
        &["consumer_id of api_keys is text, not text not null"],
    ),
    warning(
        "a trigger of the application's that refuses keys",
        "create function refuse() returns trigger language plpgsql
            as $$ begin raise exception 'no more keys this year'; end $$;
        create trigger refuse before insert on api_keys for each row execute function refuse()",
        &["issue", "no more keys this year"],
    )
    .that_breaks(),
    warning(
        "a trigger of the application's that swallows idempotency keys",
        "create function swallow() returns trigger language plpgsql as 'begin return null; end';
        create trigger swallow before insert on api_key_requests
        for each row execute function swallow()",
        &["idempotency keys", "an idempotency key is not kept"],
    )
    .that_breaks(),
    warning(
        "a constraint that waits for the commit",
        "create function wait() returns trigger language plpgsql
            as $$ begin raise exception 'not at the commit either'; end $$;
        create constraint trigger wait after insert on api_keys deferrable initially deferred
        for each row execute function wait()",
        &["issue", "not at the commit either"],
    )
    .that_breaks(),
    warning(
        "a trigger's function whose owner lacks a right",
        "grant usage on schema public to keeper;
        alter function api_keys_tell() owner to keeper",
        &["permission denied for table api_key_changes", "keeper owns function api_keys_tell()"],
    )
    .that_breaks(),
    problem(
        "policies that hide rows from the triggers' functions",
        "do $$ declare part text; begin
            for part in select format('table %I', tablename) from pg_tables
                where schemaname = 'public'
                union all select format('function %s', oid::regprocedure) from pg_proc
                where pronamespace = 'public'::regnamespace
            loop execute 'alter ' || part || ' owner to keeper'; end loop;
        end $$;
        alter table api_key_scopes enable row level security, force row level security",
        &["api_key_scopes from keeper", "no force row level security"],
    )
    .that_breaks(),
    problem(
        "a schema that the role may not use",
        "revoke usage on schema public from public",
        &["there are tables in public", "grant usage on schema public to svc"],
    )
    .that_breaks(),
    problem(
        "another set of tables in front",
        "do $$ declare name text; begin
            create schema svc;
            for name in select tablename from pg_tables where schemaname = 'public'
            loop execute format('create table svc.%1$I (like public.%1$I including all)', name);
            end loop;
        end $$;
        insert into svc._api_key_migrations select * from _api_key_migrations;
        grant usage on schema svc to svc;
        grant all on all tables in schema svc to svc",
        &["two sets of tables", "svc is in front", "hides public"],
    )
    .that_breaks(),
    problem(
        "newer tables in a schema in front",
        "create schema svc;
        alter table api_key_plans set schema svc;
        grant usage on schema svc to svc",
        &["several schemas", "public.api_keys", "svc.api_key_plans"],
    )
    .that_breaks(),
    warning(
        "a foreign table in front",
        "create schema svc;
        create table svc.api_keys (id serial primary key, token text);
        grant usage on schema svc to svc; grant all on svc.api_keys to svc",
        &["of other schemas", "svc.api_keys"],
    ),
    problem(
        "keys that every role may write",
        "grant insert on api_keys to public",
        &["public may insert on api_keys", "revoke insert on public.api_keys from public"],
    ),
    problem(
        "plans that every role may write",
        "grant update on api_key_plans to public",
        &["public may update on api_key_plans"],
    ),
    warning(
        "a log that every role may write",
        "grant delete, truncate on api_key_changes to public",
        &["public may delete, truncate on api_key_changes"],
    ),
    warning(
        "a role that may write the scopes of keys",
        "grant update (scopes) on api_keys to anon",
        &["anon may update on api_keys", "revoke update on public.api_keys from anon"],
    ),
    warning(
        "a role that may write through another",
        "grant insert on api_keys to writers",
        &["writers may insert on api_keys", "ann, through another role, may insert on api_keys"],
    ),
    warning(
        "a table of another owner",
        "alter table api_key_events owner to anon",
        &["anon owns table api_key_events"],
    ),
];

#[tokio::test]
async fn a_report_says_what_works_and_what_is_wrong_in_every_state() {
    let mut mistakes = Vec::new();
    for state in STATES {
        let place = Place::new().await;
        let seeds = place.seeds().await;
        place.execute(state.brought_about_by).await;
        mistakes.extend(state.mistakes(place.examine(state.name, "svc", &seeds).await));
    }
    assert!(mistakes.is_empty(), "{}", mistakes.join("\n"));
}

#[tokio::test]
async fn every_right_that_is_missing_is_named_if_it_is_needed() {
    let place = Place::new().await;
    place.execute("grant all on all tables in schema public to svc").await;
    let store = place.store("svc").await;
    let mut needed = 0;
    for table in TABLES {
        for right in ["select", "insert", "update", "delete"] {
            let seeds = place.seeds().await;
            place.execute(&format!("revoke {right} on {table} from svc")).await;
            let state = format!("without {right} on {table}");
            let (report, failed) = examine(&store, &state, &seeds).await;
            place.execute(&format!("grant {right} on {table} to svc")).await;
            let named = report.complains_of(&format!("{right} on {table}"))
                || report.complains_of(&format!("grant {right} on public.{table} to svc"));
            let is_needed = report.worst() > Severity::Ok;
            needed += u32::from(is_needed);
            assert_eq!(named, is_needed, "{state}: {failed:?}\n{report}");
            // Only `migrate` reads the history, and only a listener needs the channel.
            let is_read = table == TABLES[0] || table == "api_key_feed";
            let fails = !failed.is_empty() || (is_read && right == "select");
            assert_eq!(fails, is_needed, "{state}: {failed:?}\n{report}");
        }
    }
    assert!(needed > 15, "{needed}");
}

#[tokio::test]
async fn row_security_of_any_table_is_a_problem() {
    let place = Place::new().await;
    let store = place.store("svc").await;
    for table in TABLES {
        let seeds = place.seeds().await;
        place.execute(&format!("alter table {table} enable row level security")).await;
        let (report, _) = examine(&store, table, &seeds).await;
        place.execute(&format!("alter table {table} disable row level security")).await;
        assert!(report.says(Severity::Problem, &format!("{table} from svc")), "{table}:\n{report}");
        let remedy = format!("alter table public.{table} disable row level security");
        assert!(report.says(Severity::Problem, &remedy), "{table}:\n{report}");
    }
    // Roles that no policy applies to get no warning.
    place.execute("alter table api_keys enable row level security").await;
    let report = place.report("postgres").await;
    assert!(!report.complains_of("row-level security"), "{report}");
}

#[tokio::test]
async fn every_trigger_that_is_switched_off_is_named() {
    let place = Place::new().await;
    let triggers = "select tgrelid::regclass || ' ' || tgname from pg_trigger
        where not tgisinternal order by 1";
    let triggers = place.ask(triggers).await;
    assert!(triggers.len() >= 13, "{triggers:?}");
    let switch = |how: &str| {
        let switch = triggers.iter().map(|trigger| {
            let (table, name) = trigger.split_once(' ').unwrap();
            format!("alter table {table} {how} trigger {name};")
        });
        switch.collect::<String>()
    };
    place.execute(&switch("disable")).await;
    let report = place.report("svc").await;
    for trigger in &triggers {
        let (table, name) = trigger.split_once(' ').unwrap();
        let said = format!("trigger {name} of {table} is disabled");
        assert!(report.says(Severity::Problem, &said), "{said}:\n{report}");
    }
    place.execute(&switch("enable")).await;
    let report = place.report("svc").await;
    assert_eq!(report.worst(), Severity::Ok, "{report}");
}

#[tokio::test]
async fn every_index_that_is_gone_is_named() {
    let place = Place::new().await;
    let indexes = "select indexdef from pg_indexes where schemaname = 'public'
        and indexname not in (select conname from pg_constraint) order by 1";
    let indexes = place.ask(indexes).await;
    assert!(indexes.len() >= 14, "{indexes:?}");
    let name = |definition: &str| definition.split_whitespace().nth(2).unwrap().to_owned();
    let drop: String = indexes.iter().map(|it| format!("drop index {};", name(it))).collect();
    place.execute(&drop).await;
    let report = place.report("svc").await;
    for definition in &indexes {
        let said = format!("index {} of", name(definition));
        assert!(report.says(Severity::Problem, &said), "{said}:\n{report}");
    }
    place.execute(&indexes.join(";")).await;
    let report = place.report("svc").await;
    assert_eq!(report.worst(), Severity::Ok, "{report}");
}

#[tokio::test]
async fn default_privileges_that_let_others_write_are_told() {
    for (grantee, severity) in [("anon", Severity::Warning), ("public", Severity::Problem)] {
        let place = Place::without_grants("template0").await;
        let defaults = format!("alter default privileges grant all on tables to {grantee}");
        place.execute(&defaults).await;
        place.admin.migrate().await.unwrap();
        if grantee == "public" {
            // A script may grant again what the migrations revoke.
            place.execute("grant all on all tables in schema public to public").await;
        }
        place.execute(GRANTS).await;
        let report = place.report("svc").await;
        let may = "may delete, insert, trigger, truncate, update on";
        assert!(report.says(severity, &format!("{grantee} {may}")), "{report}");
        for table in TABLES {
            assert!(report.says(severity, table), "{table}:\n{report}");
        }
    }
}

#[tokio::test]
async fn a_foreign_table_of_the_same_name_is_told_from_the_librarys() {
    let place = Place::without_grants("template0").await;
    place.execute("create table api_keys (id serial primary key, key_hash text, owner text)").await;
    let report = place.report("postgres").await;
    for words in [
        "another program made them",
        "a schema or a file of their own",
        "key_hash of api_keys is text, not bytea not null",
        "consumer_id of api_keys is missing",
    ] {
        assert!(report.complains_of(words), "{words}:\n{report}");
    }
    assert_eq!(report.worst(), Severity::Problem, "{report}");
}

#[tokio::test]
async fn an_empty_database_is_told_to_migrate() {
    let place = Place::without_grants("template0").await;
    let report = place.report("postgres").await;
    assert!(report.says(Severity::Problem, "there are no tables of keys here"), "{report}");
    assert!(report.says(Severity::Problem, "api-key migrate"), "{report}");
}

#[tokio::test]
async fn on_a_standby_look_ups_are_tried_and_changes_are_not() {
    let server = server().await;
    let primary = Place::new().await;
    let seeds = primary.seeds().await;
    let standby = server.standby();
    let database = primary.url.rsplit('/').next().unwrap();
    let standby = Place::at(standby.url(database));
    let (report, failed) = standby.examine("a standby", "svc", &seeds).await;
    assert!(report.says(Severity::Warning, "this is a standby"), "{report}");
    assert!(report.says(Severity::Ok, "look-up"), "{report}");
    assert!(failed.contains(&"issue") && !failed.contains(&"look-up"), "{failed:?}");
    assert!(!failed.contains(&"polling") && !failed.contains(&"list"), "{failed:?}");
    assert_eq!(report.worst(), Severity::Warning, "{report}");
}

#[tokio::test]
async fn a_table_that_stays_locked_is_told() {
    let place = Place::new().await;
    let mut other = PgConnection::connect(&place.url).await.unwrap();
    raw_sql("begin; lock table api_key_requests").execute(&mut other).await.unwrap();
    let report = place.report("svc").await;
    assert!(report.says(Severity::Warning, "idempotency keys, prune fail"), "{report}");
    assert!(report.says(Severity::Warning, "could not be compared"), "{report}");
    assert!(report.says(Severity::Warning, "lock timeout"), "{report}");
    assert!(report.says(Severity::Warning, "another session keeps"), "{report}");
    assert_eq!(report.worst(), Severity::Warning, "{report}");
}

#[tokio::test]
async fn a_row_that_cannot_be_read_is_told() {
    let place = Place::new().await;
    let seeds = place.seeds().await;
    let spoil = "update api_keys set rate_limits = '[{\"limit\": \"many\"}]'";
    place.execute(spoil).await;
    let (report, failed) = place.examine("a spoilt row", "svc", &seeds).await;
    assert!(report.says(Severity::Problem, "`rate_limits` of key"), "{report}");
    assert!(failed.contains(&"list") && failed.contains(&"look-up"), "{failed:?}");
}

#[tokio::test]
async fn a_trial_leaves_nothing_and_notifies_nobody() {
    let place = Place::new().await;
    place.seeds().await;
    // Sequence numbers of events are used up.
    let contents = "select string_agg(content::text, '; ') from (
        select table_name, query_to_xml(format('select * from %I t order by t::text', table_name),
            true, true, '') as content
        from information_schema.tables where table_schema = 'public' order by 1
    ) as contents";
    let before = place.ask(contents).await;
    let mut listener = sqlx::postgres::PgListener::connect(&place.url).await.unwrap();
    listener.listen("tower_api_key").await.unwrap();

    for role in ["svc", "postgres"] {
        let report = place.report(role).await;
        assert!(report.says(Severity::Ok, "all work"), "{report}");
    }
    place.execute("select pg_notify('tower_api_key', 'the end')").await;
    loop {
        let told = within(listener.recv()).await.unwrap().payload().to_owned();
        if told == "the end" {
            break;
        }
        // The check of the listener sends a hello to itself.
        assert!(told.starts_with("v1:hello:"), "{told}");
    }
    let idle = "select count(*)::text from pg_stat_activity
        where datname = current_database() and state like 'idle in transaction%'";
    assert_eq!(place.ask(idle).await, ["0"]);
    assert_eq!(place.ask(contents).await, before);
}

/// The server is reached by an address other than the loopback's. The doctor cannot know that it
/// belongs to this machine.
fn over_a_network(url: &str) -> String {
    let (user, rest) = url.split_once('@').unwrap();
    let port = rest.strip_prefix("127.0.0.1").or_else(|| rest.strip_prefix("localhost"));
    format!("{user}@0.0.0.0{}", port.expect("a server of this machine"))
}

async fn encryption(url: &str) -> Finding {
    let store = PgKeyStore::connect_briefly(url).await.unwrap();
    let report = store.diagnose(&SystemClock::new()).await;
    store.pool().close().await;
    // Exactly one, and it does not change the exit code.
    assert!(report.iter().all(|it| it.severity != Severity::Problem), "{}", Report(report));
    let mut found = report.into_iter().filter(|finding| finding.check == "encryption");
    let (finding, other) = (found.next().expect("a finding"), found.next());
    assert_eq!(other, None);
    finding
}

#[tokio::test]
async fn plain_text_to_another_machine_is_a_warning_and_to_this_one_it_is_not() {
    let place = Place::new().await;
    for url in [place.url.clone(), place.url.replace("127.0.0.1", "localhost")] {
        for mode in ["disable", "prefer"] {
            let finding = encryption(&format!("{url}?sslmode={mode}")).await;
            assert_eq!(finding.severity, Severity::Ok, "{mode}: {finding:?}");
        }
    }
    // The server has no TLS, which is noticed if the URL does not say.
    let remote = over_a_network(&place.url);
    for url in [
        remote.clone(),
        format!("{remote}?sslmode=prefer"),
        format!("{remote}?sslmode=allow"),
        format!("{remote}?sslmode=disable"),
    ] {
        let finding = encryption(&url).await;
        assert_eq!(finding.severity, Severity::Warning, "{url}: {finding:?}");
        assert!(finding.detail.contains("0.0.0.0 are in plain text"), "{url}: {finding:?}");
        assert!(finding.advice.unwrap().contains("sslmode=verify-full"), "{url}");
    }

    let mut doctor = Command::new(env!("CARGO_BIN_EXE_api-key"));
    let said = doctor.arg("doctor").env_clear().env("DATABASE_URL", remote).output().unwrap();
    assert_eq!(said.status.code(), Some(0), "{said:?}");
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(
        said.contains("warning: encryption: connections to 0.0.0.0 are in plain text"),
        "{said}"
    );
}

#[tokio::test]
async fn encryption_that_is_optional_is_a_warning_and_encryption_that_is_required_is_not() {
    let server = Server::start_with_tls();
    let database = server.database().await;
    PgKeyStore::connect(database.url()).await.unwrap().migrate().await.unwrap();
    let (local, _) = database.url().split_once('?').unwrap();
    let remote = over_a_network(local);
    let finding = encryption(&remote).await;
    assert_eq!(finding.severity, Severity::Warning, "{finding:?}");
    assert!(finding.detail.contains("is optional"), "{finding:?}");
    // The server's abilities do not matter to a client that does not ask for TLS.
    let finding = encryption(&format!("{remote}?sslmode=disable")).await;
    assert!(finding.detail.contains("are in plain text"), "{finding:?}");
    let finding = encryption(&format!("{remote}?sslmode=require")).await;
    assert_eq!(finding.severity, Severity::Ok, "{finding:?}");
    assert!(finding.detail.contains("name is not checked"), "{finding:?}");
}

#[tokio::test]
async fn keys_that_were_not_used_since_their_import_are_counted() {
    let place = Place::new().await;
    let file = File::new().await;
    let imported = async |issuer: KeyIssuer| {
        let import = legacy_import(NewKey::new("acme", Expiry::Never)).0;
        issuer.import(vec![import]).await.unwrap();
    };
    let format = || KeyFormat::new("sk_test_").unwrap();
    let none = "0 left of the imported keys";
    let reports = [place.report("svc").await, file.report().await];
    for report in reports {
        assert!(report.says(Severity::Ok, none), "{report}");
    }
    imported(KeyIssuer::new(place.store("svc").await, format())).await;
    imported(KeyIssuer::new(file.store().await, format())).await;
    for report in [place.report("svc").await, file.report().await] {
        assert!(report.says(Severity::Ok, "1 left of the imported keys"), "{report}");
        assert_eq!(report.worst(), Severity::Ok, "{report}");
    }
    // Without the right to read them, that is told.
    place.execute("revoke select on api_key_legacy_hashes from svc").await;
    let report = place.report("svc").await;
    assert!(report.says(Severity::Warning, "legacy"), "{report}");
}

#[tokio::test]
async fn webhooks_that_are_parked_are_told() {
    let place = Place::new().await;
    let (place_report, says) = (place.report("postgres").await, "no webhooks");
    assert!(place_report.says(Severity::Ok, says), "{place_report}");
    let add = "insert into api_key_webhooks (id, url, secret, delivered_to, state)
        values (gen_random_uuid(), 'https://example.com/canary', sha256('x'), 0, ";
    place.execute(&format!("{add}'active')")).await;
    let report = place.report("postgres").await;
    assert!(report.says(Severity::Ok, "1 webhook"), "{report}");
    place.execute(&format!("{add}'parked')")).await;
    let report = place.report("postgres").await;
    assert!(report.says(Severity::Warning, "1 of 2 webhooks"), "{report}");
    assert!(report.complains_of("api-key webhooks replay"), "{report}");
    assert!(!report.to_string().contains("canary"), "{report}");
    // A role that neither delivers nor manages them.
    place.execute("revoke all on api_key_webhooks from svc").await;
    let report = place.report("svc").await;
    assert!(report.says(Severity::Ok, "may not read"), "{report}");
}

/// If set, writes the file instead of comparing it.
const UPDATE: &str = "UPDATE_CATALOG";

#[tokio::test]
async fn the_expected_tables_are_those_that_the_migrations_make() {
    let place = Place::without_grants("keys").await;
    let mut connection = PgConnection::connect(&place.url).await.unwrap();
    raw_sql("set search_path = pg_catalog").execute(&mut connection).await.unwrap();
    let parts = include_str!("../../../src/store/postgres/catalog.sql");
    let parts: Vec<(String, String, String, String)> =
        sqlx::query_as(parts).bind("public").fetch_all(&mut connection).await.unwrap();
    let lines = parts.iter().map(|(kind, relation, name, definition)| {
        format!("{kind}\t{relation}\t{name}\t{definition}\n")
    });
    let made: String = lines.collect();
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../src/store/postgres/catalog.txt");
    if std::env::var_os(UPDATE).is_some() {
        fs::write(file, &made).unwrap();
    }
    assert!(
        fs::read_to_string(file).unwrap() == made,
        "{file} is not what the migrations make. If the change is meant: {UPDATE}=1 cargo test \
         -p tower-api-key-cli --test cli expected, look at the difference, and commit it"
    );
    let tables: std::collections::BTreeSet<_> =
        parts.iter().map(|part| part.1.as_str()).filter(|table| !table.is_empty()).collect();
    let missing: Vec<_> = TABLES.iter().filter(|table| !tables.contains(*table)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

// -- SQLite ----------------------------------------------------------------------------------------

struct File {
    folder: tempfile::TempDir,
}

impl File {
    async fn new() -> Self {
        let file = Self { folder: tempfile::tempdir().unwrap() };
        let store = file.store().await;
        store.migrate().await.unwrap();
        store.pool().close().await;
        file
    }

    fn url(&self) -> String {
        format!("sqlite://{}/keys.db", self.folder.path().display())
    }

    async fn store(&self) -> SqliteKeyStore {
        SqliteKeyStore::connect(&self.url()).await.unwrap()
    }

    async fn execute(&self, sql: &str) {
        let mut connection = SqliteConnection::connect(&self.url()).await.unwrap();
        let executed = raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await;
        executed.unwrap_or_else(|error| panic!("{sql}: {error}"));
        connection.close().await.unwrap();
    }

    async fn ask(&self, sql: &str) -> Vec<String> {
        let mut connection = SqliteConnection::connect(&self.url()).await.unwrap();
        let answer = query_scalar(AssertSqlSafe(sql.to_owned())).fetch_all(&mut connection).await;
        connection.close().await.unwrap();
        answer.unwrap()
    }

    async fn examine(&self, state: &str, url: &str, seeds: &Seeds) -> (Report, Vec<&'static str>) {
        let store = SqliteKeyStore::connect(url).await.unwrap();
        let report = Report(store.diagnose().await);
        let operations = operations(&store, seeds).await;
        store.pool().close().await;
        hold(state, &report, &operations);
        let failed = operations.iter().filter(|(_, outcome)| outcome.is_err());
        (report, failed.map(|(name, _)| *name).collect())
    }

    async fn report(&self) -> Report {
        let store = self.store().await;
        let report = Report(store.diagnose().await);
        store.pool().close().await;
        report
    }

    async fn seeds(&self) -> Seeds {
        let store = self.store().await;
        let seeds = seed(&store).await;
        store.pool().close().await;
        seeds
    }
}

const FILES: &[State] = &[
    State {
        name: "a new file",
        brought_about_by: "select 1",
        severity: Severity::Ok,
        says: &["all work", "the file can be written"],
        works: true,
    },
    State {
        name: "columns, indexes and triggers of the application's own",
        brought_about_by: "
            alter table api_keys add column tenant text;
            create index by_tenant on api_keys (tenant);
            create trigger note after insert on api_keys begin select 1; end",
        severity: Severity::Ok,
        says: &["all work"],
        works: true,
    },
    problem(
        "a dropped trigger",
        "drop trigger api_keys_tell_update",
        &["api_keys_tell_update of api_keys is missing"],
    ),
    problem(
        "a trigger of the same name on another table",
        "drop trigger api_keys_tell_delete;
        create table elsewhere (id blob);
        create trigger api_keys_tell_delete after delete on elsewhere begin select 1; end",
        &["api_keys_tell_delete of api_keys is missing"],
    ),
    problem(
        "a trigger that does nothing",
        "drop trigger api_keys_tell_insert;
        create trigger api_keys_tell_insert after insert on api_keys begin select 1; end",
        &["api_keys_tell_insert of api_keys is not as"],
    ),
    problem(
        "an index that is gone",
        "drop index api_keys_by_revocation",
        &["api_keys_by_revocation of api_keys is missing"],
    )
    .that_breaks(),
    problem(
        "a table that is gone",
        "drop table api_key_requests",
        &["of api_key_requests is missing"],
    )
    .that_breaks(),
    problem(
        "a column that is gone",
        "alter table api_key_events rename column origin to whence",
        &["origin of api_key_events is missing"],
    )
    .that_breaks(),
    warning(
        "a trigger of the application's that refuses keys",
        "create trigger refuse before insert on api_keys begin
            select raise(abort, 'no more keys this year');
        end",
        &["issue", "no more keys this year"],
    )
    .that_breaks(),
    warning(
        "a trigger of the application's that swallows idempotency keys",
        "create trigger swallow before insert on api_key_requests begin
            select raise(ignore);
        end",
        &["idempotency keys"],
    )
    .that_breaks(),
    warning(
        "a journal that makes readers wait",
        "pragma journal_mode = delete",
        &["look-ups wait for writers"],
    )
    .that_is_mended(),
    warning(
        "tables made by another tool",
        "drop table _api_key_migrations",
        &["another program made them"],
    ),
    problem(
        "a history that ends early",
        "delete from _api_key_migrations where version > 2",
        &["these are missing: migration 3"],
    ),
    warning(
        "a history of a newer release",
        "insert into _api_key_migrations (version, description, checksum) values (99, 'new', 1)",
        &["at version 99"],
    ),
];

impl State {
    /// Connecting repairs it.
    const fn that_is_mended(self) -> Self {
        Self { severity: Severity::Ok, says: &["all work"], ..self }
    }
}

#[tokio::test]
async fn a_report_of_a_file_says_what_works_and_what_is_wrong_in_every_state() {
    let mut mistakes = Vec::new();
    for state in FILES {
        let file = File::new().await;
        let seeds = file.seeds().await;
        file.execute(state.brought_about_by).await;
        mistakes.extend(state.mistakes(file.examine(state.name, &file.url(), &seeds).await));
    }
    assert!(mistakes.is_empty(), "{}", mistakes.join("\n"));
}

#[tokio::test]
async fn every_trigger_and_index_of_a_file_that_is_gone_is_named() {
    let file = File::new().await;
    for kind in ["trigger", "index"] {
        let parts = format!(
            "select name || ' ' || sql from sqlite_schema where type = '{kind}' and sql is not null"
        );
        let parts = file.ask(&parts).await;
        assert!(parts.len() > 10, "{parts:?}");
        let parts: Vec<_> = parts.iter().map(|part| part.split_once(' ').unwrap()).collect();
        let drop: String = parts.iter().map(|(name, _)| format!("drop {kind} {name};")).collect();
        file.execute(&drop).await;
        let report = file.report().await;
        for (name, _) in &parts {
            let said = format!("{kind} {name} of");
            assert!(report.says(Severity::Problem, &said), "{said}:\n{report}");
        }
        let create: Vec<_> = parts.iter().map(|(_, sql)| *sql).collect();
        file.execute(&create.join(";\n")).await;
    }
    let report = file.report().await;
    assert_eq!(report.worst(), Severity::Ok, "{report}");
}

#[tokio::test]
async fn a_file_that_only_may_be_read_is_told() {
    let file = File::new().await;
    let seeds = file.seeds().await;
    // Even root cannot write through this.
    let url = format!("{}?mode=ro", file.url());
    let (report, failed) = file.examine("read-only", &url, &seeds).await;
    assert_eq!(report.worst(), Severity::Warning, "{report}");
    assert!(report.says(Severity::Warning, "issue"), "{report}");
    assert!(report.says(Severity::Warning, "readonly"), "{report}");
    assert!(report.says(Severity::Warning, "mode=ro"), "{report}");
    assert!(failed.contains(&"issue") && !failed.contains(&"look-up"), "{failed:?}");
}

#[tokio::test]
async fn a_foreign_table_in_a_file_is_told_from_the_librarys() {
    let file = File { folder: tempfile::tempdir().unwrap() };
    file.store().await.pool().close().await;
    file.execute("create table api_keys (id integer primary key, key_hash text)").await;
    let report = file.report().await;
    assert_eq!(report.worst(), Severity::Problem, "{report}");
    for words in ["a file of their own", "key_hash of api_keys is text, not blob not null"] {
        assert!(report.complains_of(words), "{words}:\n{report}");
    }
}

#[tokio::test]
async fn a_trial_leaves_nothing_in_a_file() {
    let file = File::new().await;
    file.seeds().await;
    let mut witness = SqliteConnection::connect(&file.url()).await.unwrap();
    let version = "pragma data_version";
    let before: i64 = query_scalar(version).fetch_one(&mut witness).await.unwrap();
    assert_eq!(file.report().await.worst(), Severity::Ok);
    let after: i64 = query_scalar(version).fetch_one(&mut witness).await.unwrap();
    assert_eq!(after, before, "something was committed");
}

#[tokio::test]
async fn keys_in_memory_are_diagnosed_as_well() {
    let store = SqliteKeyStore::in_memory().await.unwrap();
    store.migrate().await.unwrap();
    let report = Report(store.diagnose().await);
    assert!(report.says(Severity::Ok, "all work"), "{report}");
    assert!(report.worst() < Severity::Problem, "{report}");
}

/// Nothing is written beyond a file size limit, as on a full disk.
#[tokio::test]
async fn a_full_disk_is_told() {
    let file = File::new().await;
    // First creates the shared memory of the log, for which there would be no room either.
    let mut witness = SqliteConnection::connect(&file.url()).await.unwrap();
    raw_sql("select count(*) from api_keys").execute(&mut witness).await.unwrap();
    let doctor = |limit: &str| {
        let script = format!("trap '' XFSZ; {limit} exec \"$0\" doctor --json");
        let output = Command::new("sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_api-key")])
            .env("DATABASE_URL", file.url())
            .current_dir(file.folder.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let roomy = doctor("");
    assert!(roomy.contains("the file can be written"), "{roomy}");
    let full = doctor("ulimit -f 80;");
    assert!(full.contains("the file cannot be written"), "{full}");
    assert!(full.contains("make room on the disk"), "{full}");
}
