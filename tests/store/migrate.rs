//! Migrations: concurrent, killed, failing, and beside the application's own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that fails panics"
)]

use std::{env, process::Stdio};

use tokio::process::{Child, Command};

/// The environment variable with the database of a child process.
const DATABASE: &str = "MIGRATE_DATABASE";

/// Runs one test of this file in a process of its own, on the database at `url`.
fn process(test: &str, url: &str) -> Child {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", &format!("migrate::{test}")]).env(DATABASE, url);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap()
}

async fn succeeds(process: Child) {
    let output = process.wait_with_output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

mod postgres {
    use std::{env, time::Duration};

    use sqlx::{
        AssertSqlSafe, Connection, PgConnection, postgres::PgPoolOptions, query_scalar, raw_sql,
    };
    use tokio::{task::yield_now, time::timeout};
    use tower_api_key::{
        key::KeyHash,
        rate_limit::Quota,
        store::{KeyStore as _, PgKeyStore, StoreErrorKind},
    };

    use super::{DATABASE, process, succeeds};
    use crate::servers::{postgres::Server, unique};

    const PROCESSES: usize = 16;
    const SOON: Duration = Duration::from_secs(60);

    async fn connection(url: &str) -> PgConnection {
        PgConnection::connect(url).await.unwrap()
    }

    async fn execute(connection: &mut PgConnection, sql: &'static str) {
        raw_sql(sql).execute(connection).await.unwrap();
    }

    async fn migrate(url: &str) {
        PgKeyStore::connect(url).await.unwrap().migrate().await.unwrap();
    }

    async fn history(connection: &mut PgConnection) -> Vec<i64> {
        let versions = query_scalar("select version from _api_key_migrations order by version");
        versions.fetch_all(connection).await.unwrap()
    }

    async fn nothing_is_there(connection: &mut PgConnection) {
        let tables = "select count(*) from pg_tables where schemaname = current_schema()";
        let tables: i64 = query_scalar(tables).fetch_one(connection).await.unwrap();
        assert_eq!(tables, 0);
    }

    /// Waits until `count` locks of this database match the description.
    async fn locks(connection: &mut PgConnection, sql: &'static str, count: usize) {
        let reached = async {
            let expected = i64::try_from(count).unwrap();
            while query_scalar::<_, i64>(sql).fetch_one(&mut *connection).await.unwrap() != expected
            {
                yield_now().await;
            }
        };
        timeout(SOON, reached).await.expect(sql);
    }

    const ADVISORY: &str = "
        select count(*) from pg_locks join pg_database on pg_database.oid = database
        where locktype = 'advisory' and datname = current_database()";

    const WAITING_FOR_ADVISORY: &str = "
        select count(*) from pg_locks join pg_database on pg_database.oid = database
        where locktype = 'advisory' and datname = current_database() and not granted";

    const WAITING_WITH_ADVISORY: &str = "
        select count(*) from pg_locks held join pg_locks awaited using (pid)
        join pg_database on pg_database.oid = held.database
        where held.locktype = 'advisory' and datname = current_database()
        and held.granted and not awaited.granted";

    /// Run by other tests in a process of its own.
    #[tokio::test]
    async fn migrating_twice_is_migrating_once() {
        let (own, url);
        if let Ok(given) = env::var(DATABASE) {
            url = given;
        } else {
            own = Server::shared().database().await;
            url = own.url().to_owned();
        }
        migrate(&url).await;
        migrate(&url).await;
        assert_eq!(
            history(&mut connection(&url).await).await,
            [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
        );
    }

    #[tokio::test]
    async fn many_processes_migrate_at_once() {
        let database = Server::shared().database().await;
        let mut gate = connection(database.url()).await;
        execute(&mut gate, "select pg_advisory_lock(7021227462866860403)").await;
        let name = "postgres::migrating_twice_is_migrating_once";
        let processes: Vec<_> = (0..PROCESSES).map(|_| process(name, database.url())).collect();
        locks(&mut gate, WAITING_FOR_ADVISORY, PROCESSES).await;

        execute(&mut gate, "select pg_advisory_unlock(7021227462866860403)").await;
        for process in processes {
            succeeds(process).await;
        }
        assert_eq!(history(&mut gate).await, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    }

    #[tokio::test]
    async fn a_killed_process_leaves_nothing() {
        let database = Server::shared().database().await;
        let mut obstacle = connection(database.url()).await;
        let mut observer = connection(database.url()).await;
        // The first table is created; the second waits for this transaction to end.
        execute(&mut obstacle, "begin; create table api_key_usage ()").await;
        let name = "postgres::migrating_twice_is_migrating_once";
        let mut killed = process(name, database.url());
        locks(&mut observer, WAITING_WITH_ADVISORY, 1).await;

        killed.kill().await.unwrap();
        execute(&mut obstacle, "rollback").await;
        locks(&mut observer, ADVISORY, 0).await;
        nothing_is_there(&mut observer).await;
        migrate(database.url()).await;
    }

    #[tokio::test]
    async fn a_migration_that_fails_leaves_nothing() {
        let database = Server::shared().database().await;
        let mut observer = connection(database.url()).await;
        execute(&mut observer, "create view api_key_usage as select 1").await;
        let store = PgKeyStore::connect(database.url()).await.unwrap();
        for _ in 0..3 {
            let error = store.migrate().await.unwrap_err();
            assert_eq!(error.kind(), StoreErrorKind::Migration);
            let shown = format!("{error:?}");
            assert!(shown.contains("migration 1 (api keys)"), "{shown}");
            assert!(shown.contains("\"api_key_usage\" already exists"), "{shown}");
        }
        locks(&mut observer, ADVISORY, 0).await;
        nothing_is_there(&mut observer).await;

        execute(&mut observer, "drop view api_key_usage").await;
        store.migrate().await.unwrap();
    }

    #[tokio::test]
    async fn a_table_that_others_lock_is_not_waited_for_long() {
        let database = Server::shared().database().await;
        let mut obstacle = connection(database.url()).await;
        execute(&mut obstacle, "begin; create table api_key_usage ()").await;
        let store = PgKeyStore::connect(database.url()).await.unwrap();
        let error = store.migrate().await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Unavailable);
        assert!(format!("{error:?}").contains("lock timeout"), "{error:?}");
    }

    #[tokio::test]
    async fn the_applications_own_migrations_are_left_alone() {
        use sqlx::migrate::{Migration, MigrationType, Migrator};

        let sql = sqlx::SqlSafeStr::into_sql_str("create table orders ()");
        let own = Migration::new(1, "orders".into(), MigrationType::Simple, sql, false);
        let own = Migrator::with_migrations(vec![own]);
        for ours_first in [true, false] {
            let database = Server::shared().database().await;
            let pool = database.pool().await;
            for ours in [ours_first, !ours_first, ours_first, !ours_first] {
                if ours {
                    PgKeyStore::new(pool.clone()).migrate().await.unwrap();
                } else {
                    own.run(&pool).await.unwrap();
                }
            }
            pool.close().await;
        }
    }

    #[tokio::test]
    async fn a_changed_migration_is_an_error() {
        let database = Server::shared().database().await;
        migrate(database.url()).await;
        let mut connection = connection(database.url()).await;
        execute(&mut connection, "update _api_key_migrations set checksum = checksum + 1").await;
        let error = PgKeyStore::connect(database.url()).await.unwrap().migrate().await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Migration);
        assert!(format!("{error:?}").contains("migration 1 (api keys) was changed"), "{error:?}");
    }

    #[tokio::test]
    async fn a_newer_history_is_fine() {
        let database = Server::shared().database().await;
        migrate(database.url()).await;
        let mut connection = connection(database.url()).await;
        let newer = "insert into _api_key_migrations values (9999, 'from the future', 42)";
        execute(&mut connection, newer).await;
        migrate(database.url()).await;
        assert_eq!(history(&mut connection).await, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 9999]);
    }

    #[tokio::test]
    async fn what_is_up_to_date_is_only_read() {
        let database = Server::shared().database().await;
        let read_only = format!("{}?options=-cdefault_transaction_read_only=on", database.url());
        let store = PgKeyStore::connect(&read_only).await.unwrap();
        assert_eq!(store.migrate().await.unwrap_err().kind(), StoreErrorKind::Unavailable);
        migrate(database.url()).await;
        store.migrate().await.unwrap();
    }

    /// A database of the release before plans, with a valid and an invalid key.
    async fn before_plans(connection: &mut PgConnection, url: &str) {
        // The recorded details of a migration are not compared.
        migrate(url).await;
        execute(
            connection,
            "create table applied as select * from _api_key_migrations where version < 4;
            drop function api_key_announce;
            drop table _api_key_migrations, api_key_plans, api_keys, api_key_usage,
                api_key_changes, api_key_scopes, api_key_events, api_key_requests, api_key_feed,
                api_key_tags, api_key_legacy_hashes, api_key_usage_hourly,
                api_key_usage_daily, api_key_usage_writers,
                api_key_webhooks, api_key_webhook_lease,
                api_key_notices, api_key_notice_positions, api_key_first_uses;
            drop function api_keys_tell, api_keys_follow, api_key_events_stay,
                api_keys_stay_revoked, api_key_plans_tell, api_keys_audit, api_key_plans_audit,
                api_key_feed_stay, api_keys_succeed, api_keys_tag, api_keys_legacy,
                api_key_usage_begins, api_keys_unnotice;
            alter table applied rename to _api_key_migrations",
        )
        .await;
        execute(connection, include_str!("../../migrations/postgres/0001_api_keys.sql")).await;
        execute(connection, include_str!("../../migrations/postgres/0002_api_key_changes.sql"))
            .await;
        execute(connection, include_str!("../../migrations/postgres/0003_api_key_management.sql"))
            .await;
        execute(
            connection,
            r#"insert into api_keys (
                id, key_hash, key_prefix, key_last4, consumer_id, scopes, rate_limits, metadata,
                is_active, created_at, revoked_at, root_id, version
            )
            select id, decode(repeat(hash, 32), 'hex'), 'sk_', 'abcd', 'acme', '{read}',
                '[{"name":"second","limit":1,"window_ms":1000,"burst":1}]', '{}', true, now(),
                revoked_at, id, 1
            from (values
                (gen_random_uuid(), '01', null), (gen_random_uuid(), '02', now())
            ) as keys (id, hash, revoked_at)"#,
        )
        .await;
        assert_eq!(history(connection).await, [1, 2, 3]);
    }

    #[tokio::test]
    async fn keys_from_before_there_were_plans_go_on() {
        let database = Server::shared().database().await;
        let mut prompt = connection(database.url()).await;
        before_plans(&mut prompt, database.url()).await;
        migrate(database.url()).await;
        assert_eq!(history(&mut prompt).await, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);

        let store = PgKeyStore::connect(database.url()).await.unwrap();
        for byte in [1, 2] {
            let found = store.find(&KeyHash::from_bytes([byte; 32])).await.unwrap().unwrap();
            assert_eq!((found.plan, found.plan_limits), (None, None));
            assert_eq!(found.rate_limits, Some(Quota::per_second(1).unwrap().into()));
            assert_eq!(found.revoked_at.is_some(), byte == 2);
        }
        // An old row must satisfy the constraint once it is written again.
        let refused = raw_sql("update api_keys set plan = 'no plan'").execute(&mut prompt).await;
        assert!(refused.unwrap_err().as_database_error().unwrap().is_check_violation());
        execute(&mut prompt, "update api_keys set plan = 'pro'").await;
        let found = store.find(&KeyHash::from_bytes([1; 32])).await.unwrap().unwrap();
        assert_eq!(found.plan.as_deref(), Some("pro"));
        let told = "select count(*) from api_key_changes join api_keys on id = key_id
            where changed_in <> created_in";
        assert_eq!(query_scalar::<_, i64>(told).fetch_one(&mut prompt).await.unwrap(), 2);
    }

    /// A key that an earlier release inserted, which names none of the new columns.
    const OF_AN_EARLIER_RELEASE: &str = r#"
        insert into api_keys (
            id, key_hash, key_prefix, key_last4, consumer_id, scopes, metadata, is_active,
            created_at, root_id, version, rotated_from
        ) values (
            '00000000-0000-7000-8000-000000000002', decode(repeat('02', 32), 'hex'), 'sk_', 'abcd',
            'acme', '{read}', '{}', true, now(), '00000000-0000-7000-8000-000000000001', 1,
            '00000000-0000-7000-8000-000000000001'
        )"#;

    #[tokio::test]
    async fn a_key_that_an_earlier_release_rotates_works_from_no_more_places() {
        let database = Server::shared().database().await;
        migrate(database.url()).await;
        let mut prompt = connection(database.url()).await;
        execute(
            &mut prompt,
            "insert into api_keys (
                id, key_hash, key_prefix, key_last4, consumer_id, scopes, metadata, is_active,
                created_at, root_id, version, networks, tags, kind, origins
            ) values (
                '00000000-0000-7000-8000-000000000001', decode(repeat('01', 32), 'hex'), 'sk_',
                'abcd', 'acme', '{read}', '{}', true, now(),
                '00000000-0000-7000-8000-000000000001', 1, '{10.0.0.0/8}', '{mobile}',
                'publishable', '{https://shop.example}'
            )",
        )
        .await;
        execute(&mut prompt, OF_AN_EARLIER_RELEASE).await;
        let store = PgKeyStore::connect(database.url()).await.unwrap();
        let found =
            async |byte: u8| store.find(&KeyHash::from_bytes([byte; 32])).await.unwrap().unwrap();
        let (old, new) = (found(1).await, found(2).await);
        assert!(!old.networks.is_empty() && !old.origins.is_empty());
        assert_eq!((old.networks, old.tags), (new.networks, new.tags));
        assert_eq!((old.kind, old.origins), (new.kind, new.origins));
        // An earlier release updates only the columns that it knows.
        execute(&mut prompt, "update api_keys set name = 'new', version = version + 1").await;
        assert_eq!(found(2).await.networks.iter().len(), 1);
    }

    #[tokio::test]
    async fn tables_of_the_release_before_networks_are_told_to_be_migrated() {
        let database = Server::shared().database().await;
        migrate(database.url()).await;
        let mut prompt = connection(database.url()).await;
        execute(
            &mut prompt,
            "drop trigger api_keys_tell_update on api_keys;
            drop trigger api_keys_succeed on api_keys;
            drop trigger api_keys_tag_insert on api_keys;
            drop trigger api_keys_tag_update on api_keys;
            drop trigger api_keys_tag_delete on api_keys;
            alter table api_keys drop column networks, drop column tags, drop column kind,
                drop column origins",
        )
        .await;
        let store = PgKeyStore::connect(database.url()).await.unwrap();
        let error = store.find(&KeyHash::from_bytes([1; 32])).await.unwrap_err();
        let shown = format!("{error:?}");
        assert!(shown.contains("run `migrate` to update the tables"), "{shown}");
    }

    #[tokio::test]
    async fn whoever_could_look_keys_up_can_go_on() {
        let database = Server::shared().database().await;
        let mut prompt = connection(database.url()).await;
        before_plans(&mut prompt, database.url()).await;
        let roles = [format!("Reader \"{}", unique()), format!("stranger_{:016x}", unique())];
        let [reader, stranger] = roles.map(|role| format!("\"{}\"", role.replace('"', "\"\"")));
        let grants = format!(
            "create role {reader}; create role {stranger};
            grant select on api_keys to {reader}; grant update on api_keys to {stranger}"
        );
        raw_sql(AssertSqlSafe(grants)).execute(&mut prompt).await.unwrap();
        migrate(database.url()).await;

        let may_read = async |prompt: &mut PgConnection, role: &str| {
            let role = role.trim_matches('"').replace("\"\"", "\"");
            let right = "select has_table_privilege($1, 'api_key_plans', 'select') \
                 and has_table_privilege($1, 'api_key_feed', 'select')";
            query_scalar::<_, bool>(right).bind(role).fetch_one(prompt).await.unwrap()
        };
        let rights = [may_read(&mut prompt, &reader).await, may_read(&mut prompt, &stranger).await];

        let pool = PgPoolOptions::new().max_connections(1).connect(database.url()).await.unwrap();
        raw_sql(AssertSqlSafe(format!("set role {reader}"))).execute(&pool).await.unwrap();
        let found = PgKeyStore::new(pool.clone()).find(&KeyHash::from_bytes([1; 32])).await;
        pool.close().await;

        let cleared = format!(
            "drop owned by {reader}; drop role {reader};
            drop owned by {stranger}; drop role {stranger}"
        );
        raw_sql(AssertSqlSafe(cleared)).execute(&mut prompt).await.unwrap();
        assert_eq!(rights, [true, false]);
        assert!(found.unwrap().is_some());
    }

    #[tokio::test]
    async fn the_search_path_decides_the_schema() {
        let database = Server::shared().database().await;
        let mut connection = connection(database.url()).await;
        execute(&mut connection, "create schema one; create schema two").await;
        let url = |schema| format!("{}?options=-csearch_path={schema}", database.url());
        migrate(&url("one")).await;
        // A second set of tables is created only on purpose.
        let second = PgKeyStore::connect(&url("two")).await.unwrap();
        let error = second.migrate().await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Migration);
        let shown = format!("{error:?}");
        assert!(shown.contains("\"one\"") && shown.contains("\"two\""), "{shown}");
        let second = PgKeyStore::builder().schema("two").connect(&url("one")).await.unwrap();
        second.migrate().await.unwrap();
        migrate(&url("two")).await;
        let tables = "select count(*) from pg_tables where tablename = 'api_keys' \
                      and schemaname in ('one', 'two')";
        let tables: i64 = query_scalar(tables).fetch_one(&mut connection).await.unwrap();
        assert_eq!(tables, 2);
        execute(&mut connection, "set search_path = public").await;
        nothing_is_there(&mut connection).await;
    }
}

mod sqlite {
    use std::{env, fs, path::Path, time::Duration};

    use sqlx::{Connection, SqliteConnection, query, query_as, query_scalar, raw_sql};
    use tempfile::TempDir;
    use tokio::{task::yield_now, time::timeout};
    use tower_api_key::{
        key::KeyHash,
        rate_limit::Quota,
        store::{KeyStore as _, SqliteKeyStore, StoreErrorKind},
    };

    use super::{DATABASE, process, succeeds};

    const PROCESSES: usize = 8;
    const SOON: Duration = Duration::from_secs(60);

    fn new_file() -> (TempDir, String) {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/keys.db", folder.path().display());
        (folder, url)
    }

    async fn execute(store: &SqliteKeyStore, sql: &'static str) {
        raw_sql(sql).execute(store.pool()).await.unwrap();
    }

    async fn history(store: &SqliteKeyStore) -> Vec<i64> {
        let versions = query_scalar("select version from _api_key_migrations order by version");
        versions.fetch_all(store.pool()).await.unwrap()
    }

    async fn nothing_is_there(store: &SqliteKeyStore) {
        let tables = query_scalar("select count(*) from sqlite_schema where type = 'table'");
        let tables: i64 = tables.fetch_one(store.pool()).await.unwrap();
        assert_eq!(tables, 0);
    }

    /// Run by other tests in a process of its own.
    #[tokio::test]
    async fn migrating_twice_is_migrating_once() {
        let (_folder, own) = new_file();
        let url = env::var(DATABASE).unwrap_or(own);
        let store = SqliteKeyStore::connect(&url).await.unwrap();
        store.migrate().await.unwrap();
        store.migrate().await.unwrap();
        assert_eq!(history(&store).await, [1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12]);
    }

    #[tokio::test]
    async fn many_processes_migrate_a_new_file_at_once() {
        let (_folder, url) = new_file();
        let name = "sqlite::migrating_twice_is_migrating_once";
        let processes: Vec<_> = (0..PROCESSES).map(|_| process(name, &url)).collect();
        for process in processes {
            succeeds(process).await;
        }
        let store = SqliteKeyStore::connect(&url).await.unwrap();
        assert_eq!(history(&store).await, [1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12]);
    }

    #[tokio::test]
    async fn many_pools_migrate_a_new_file_at_once() {
        let (_folder, url) = new_file();
        let migrate = |url: String| async move {
            SqliteKeyStore::connect(&url).await.unwrap().migrate().await.unwrap();
        };
        let migrating: Vec<_> =
            (0..PROCESSES).map(|_| tokio::spawn(migrate(url.clone()))).collect();
        for migrated in migrating {
            migrated.await.unwrap();
        }
    }

    /// Keeps a migrating process inside its transaction forever, once the tables are created:
    /// recording the migration writes more than SQLite keeps in memory, and then does not end.
    const OBSTACLE: &str = "
        create table _api_key_migrations (
            version integer primary key,
            description text not null,
            checksum integer not null,
            applied_at integer not null default 0
        ) strict;
        create table ballast (bytes blob not null) strict;
        create view endless as
            with recursive numbers (n) as (select 1 union all select n + 1 from numbers)
            select n from numbers;
        create trigger obstacle after insert on _api_key_migrations begin
            insert into ballast select randomblob(4000) from endless limit 2000;
            select count(*) from endless;
        end";

    /// The length of the write-ahead log.
    fn log(folder: &Path) -> u64 {
        fs::metadata(folder.join("keys.db-wal")).unwrap().len()
    }

    /// Whether a process is inside a writing transaction.
    async fn somebody_writes(url: &str) -> bool {
        let mut connection = SqliteConnection::connect(url).await.unwrap();
        raw_sql("pragma busy_timeout = 0").execute(&mut connection).await.unwrap();
        let attempt = raw_sql("begin immediate; rollback").execute(&mut connection).await;
        let code = attempt.err().map(|error| {
            error.as_database_error().and_then(|error| error.code()).unwrap().into_owned()
        });
        assert!(code.as_deref().is_none_or(|code| code == "5"), "SQLITE_BUSY, not {code:?}");
        code.is_some()
    }

    #[tokio::test]
    async fn a_killed_process_leaves_nothing() {
        let (folder, url) = new_file();
        let store = SqliteKeyStore::connect(&url).await.unwrap();
        execute(&store, OBSTACLE).await;
        let name = "sqlite::migrating_twice_is_migrating_once";
        let committed = log(folder.path());
        let mut killed = process(name, &url);
        let half_written = async {
            while log(folder.path()) < committed + 1_000_000 {
                yield_now().await;
            }
        };
        timeout(SOON, half_written).await.expect("a transaction that memory is too small for");
        assert!(somebody_writes(&url).await);

        killed.kill().await.unwrap();
        assert!(!somebody_writes(&url).await);
        let left = "select (select count(*) from sqlite_schema where name like 'api%')
            + (select count(*) from ballast) + (select count(*) from _api_key_migrations)";
        let left: i64 = query_scalar(left).fetch_one(store.pool()).await.unwrap();
        assert_eq!(left, 0);

        execute(&store, "drop trigger obstacle").await;
        succeeds(process(name, &url)).await;
        assert_eq!(history(&store).await, [1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12]);
        let intact = query_scalar("pragma integrity_check");
        let intact: String = intact.fetch_one(store.pool()).await.unwrap();
        assert_eq!(intact, "ok");
    }

    #[tokio::test]
    async fn the_applications_own_migrations_are_left_alone() {
        use sqlx::migrate::{Migration, MigrationType, Migrator};

        let sql = sqlx::SqlSafeStr::into_sql_str("create table orders (id integer)");
        let own = Migration::new(1, "orders".into(), MigrationType::Simple, sql, false);
        let own = Migrator::with_migrations(vec![own]);
        for ours_first in [true, false] {
            let (_folder, url) = new_file();
            let store = SqliteKeyStore::connect(&url).await.unwrap();
            for ours in [ours_first, !ours_first, ours_first, !ours_first] {
                if ours {
                    store.migrate().await.unwrap();
                } else {
                    own.run(store.pool()).await.unwrap();
                }
            }
            assert_eq!(history(&store).await, [1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12]);
            let theirs = query_scalar("select version from _sqlx_migrations");
            let theirs: Vec<i64> = theirs.fetch_all(store.pool()).await.unwrap();
            assert_eq!(theirs, [1]);
        }
    }

    #[tokio::test]
    async fn a_migration_that_fails_leaves_nothing() {
        let (_folder, url) = new_file();
        let store = SqliteKeyStore::connect(&url).await.unwrap();
        execute(&store, "create view api_key_usage as select 1").await;
        for _ in 0..3 {
            let error = store.migrate().await.unwrap_err();
            assert_eq!(error.kind(), StoreErrorKind::Migration);
            assert!(format!("{error:?}").contains("migration 1 (api keys)"), "{error:?}");
        }
        nothing_is_there(&store).await;
        execute(&store, "drop view api_key_usage").await;
        store.migrate().await.unwrap();
    }

    #[tokio::test]
    async fn a_changed_migration_is_an_error() {
        let store = SqliteKeyStore::in_memory().await.unwrap();
        store.migrate().await.unwrap();
        execute(&store, "update _api_key_migrations set checksum = checksum + 1").await;
        let error = store.migrate().await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Migration);
        assert!(format!("{error:?}").contains("migration 1 (api keys) was changed"), "{error:?}");
    }

    #[tokio::test]
    async fn keys_from_before_there_were_plans_go_on() {
        let current = SqliteKeyStore::in_memory().await.unwrap();
        current.migrate().await.unwrap();
        let (_folder, url) = new_file();
        let store = SqliteKeyStore::connect(&url).await.unwrap();
        execute(&store, include_str!("../../migrations/sqlite/0001_api_keys.sql")).await;
        execute(&store, include_str!("../../migrations/sqlite/0002_api_key_changes.sql")).await;
        execute(&store, include_str!("../../migrations/sqlite/0003_api_key_management.sql")).await;
        execute(
            &store,
            "create table _api_key_migrations (
                version integer primary key,
                description text not null,
                checksum integer not null,
                applied_at integer not null default 0
            ) strict",
        )
        .await;
        // The recorded details of a migration are not compared.
        let applied = "select version, description, checksum from _api_key_migrations
            where version < 4";
        let applied: Vec<(i64, String, i64)> =
            query_as(applied).fetch_all(current.pool()).await.unwrap();
        for (version, description, checksum) in applied {
            let insert = "insert into _api_key_migrations (version, description, checksum)
                values (?1, ?2, ?3)";
            let insert = query(insert).bind(version).bind(description).bind(checksum);
            insert.execute(store.pool()).await.unwrap();
        }
        execute(
            &store,
            r#"insert into api_keys (
                id, key_hash, key_prefix, key_last4, consumer_id, scopes, rate_limits, metadata,
                is_active, created_at, revoked_at, root_id, version
            )
            select unhex(format('%032d', number)), unhex(format('%.*c', 64, number)), 'sk_', 'abcd',
                'acme', '["read"]', '[{"name":"second","limit":1,"window_ms":1000,"burst":1}]',
                '{}', true, 0, iif(number = 2, 0, null), unhex(format('%032d', number)), 1
            from (select 1 as number union all select 2)"#,
        )
        .await;
        store.migrate().await.unwrap();
        assert_eq!(history(&store).await, [1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12]);

        for (byte, revoked) in [(0x11, false), (0x22, true)] {
            let found = store.find(&KeyHash::from_bytes([byte; 32])).await.unwrap().unwrap();
            assert_eq!((found.plan, found.plan_limits), (None, None));
            assert_eq!(found.rate_limits, Some(Quota::per_second(1).unwrap().into()));
            assert_eq!(found.revoked_at.is_some(), revoked);
        }
        let refused = raw_sql("update api_keys set plan = 'no plan'").execute(store.pool()).await;
        assert!(refused.is_err());
        execute(&store, "update api_keys set plan = 'pro'").await;
        let found = store.find(&KeyHash::from_bytes([0x11; 32])).await.unwrap().unwrap();
        assert_eq!(found.plan.as_deref(), Some("pro"));
        let told =
            query_scalar("select count(*) from api_key_changes where changed_in > created_in");
        let told: i64 = told.fetch_one(store.pool()).await.unwrap();
        assert_eq!(told, 2);
    }

    #[tokio::test]
    async fn a_key_that_an_earlier_release_rotates_works_from_no_more_places() {
        let store = SqliteKeyStore::in_memory().await.unwrap();
        store.migrate().await.unwrap();
        execute(
            &store,
            r#"insert into api_keys (
                id, key_hash, key_prefix, key_last4, consumer_id, scopes, metadata, is_active,
                created_at, root_id, version, networks, tags, kind, origins
            ) values (
                unhex(format('%032d', 1)), unhex(format('%.*c', 64, 1)), 'sk_', 'abcd', 'acme',
                '["read"]', '{}', 1, 0, unhex(format('%032d', 1)), 1, '["10.0.0.0/8"]',
                '["mobile"]', 'publishable', '["https://shop.example"]'
            );
            insert into api_keys (
                id, key_hash, key_prefix, key_last4, consumer_id, scopes, metadata, is_active,
                created_at, root_id, version, rotated_from
            ) values (
                unhex(format('%032d', 2)), unhex(format('%.*c', 64, 2)), 'sk_', 'abcd', 'acme',
                '["read"]', '{}', 1, 0, unhex(format('%032d', 1)), 1, unhex(format('%032d', 1))
            )"#,
        )
        .await;
        let found =
            async |byte: u8| store.find(&KeyHash::from_bytes([byte; 32])).await.unwrap().unwrap();
        let (old, new) = (found(0x11).await, found(0x22).await);
        assert!(!old.networks.is_empty() && !old.origins.is_empty());
        assert_eq!((old.networks, old.tags), (new.networks, new.tags));
        assert_eq!((old.kind, old.origins), (new.kind, new.origins));
    }

    #[tokio::test]
    async fn tables_of_the_release_before_networks_are_told_to_be_migrated() {
        let store = SqliteKeyStore::in_memory().await.unwrap();
        store.migrate().await.unwrap();
        execute(
            &store,
            "drop trigger api_keys_tell_update; drop trigger api_keys_succeed;
            drop trigger api_keys_tag_insert; drop trigger api_keys_tag_update;
            drop trigger api_keys_tag_delete; drop trigger api_keys_audit_insert;
            drop trigger api_keys_audit_update;
            alter table api_keys drop column origins; alter table api_keys drop column kind;
            alter table api_keys drop column tags; alter table api_keys drop column networks",
        )
        .await;
        let error = store.find(&KeyHash::from_bytes([1; 32])).await.unwrap_err();
        let shown = format!("{error:?}");
        assert!(shown.contains("run `migrate`"), "{shown}");
    }

    #[tokio::test]
    async fn a_newer_history_is_fine() {
        let store = SqliteKeyStore::in_memory().await.unwrap();
        store.migrate().await.unwrap();
        execute(&store, "insert into _api_key_migrations values (9999, 'from the future', 42, 0)")
            .await;
        store.migrate().await.unwrap();
        assert_eq!(history(&store).await, [1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12, 9999]);
    }
}
