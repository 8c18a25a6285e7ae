//! Tables that another migration tool creates: the SQL as printed, applied by other programs.

use std::process::{Command, Output};

use sqlx::{AssertSqlSafe, Connection as _, PgConnection, SqliteConnection, raw_sql};

use crate::place::{Place, Said};
use crate::servers::postgres::client;

/// The program without a database.
fn without_database(line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_api-key"));
    let folder = tempfile::tempdir().unwrap();
    command.args(line.split_whitespace()).current_dir(folder.path()).env_clear();
    command.output().unwrap()
}

fn printed(line: &str) -> String {
    let output = without_database(line);
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Applies a file in one transaction, as a migration tool does.
fn psql(place: &Place, file: &str) -> Output {
    let mut psql = client("psql");
    psql.args(["-1", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", &place.url, "-f"]);
    psql.arg(place.folder.path().join(file)).output().unwrap()
}

#[track_caller]
fn is_in_order(said: &Said) {
    assert_eq!(said.code, 0, "{said:?}");
    for word in ["problem", "warning: schema", "warning: tables", "warning: triggers"] {
        assert!(!said.out.contains(word), "{said:?}");
    }
}

#[tokio::test]
async fn what_is_printed_makes_a_database_that_is_adopted() {
    for (options, dialect) in [("--schema keys", "--dialect postgres"), ("", "")] {
        let place = Place::postgres().await;
        let script = if dialect.is_empty() {
            place.done(&format!("migrate --print {options}")).out
        } else {
            printed(&format!("migrate --print {dialect} {options}"))
        };
        assert!(script.contains("-- tower-api-key migration 1 (api keys)"), "{script}");
        // The tool goes on with its own statements, on its own search path.
        place.write("up.sql", &format!("{script}\ncreate table projects (id int);\n"));
        let applied = psql(&place, "up.sql");
        assert!(applied.status.success(), "{applied:?}");
        assert_eq!((&*applied.stdout, &*applied.stderr), (&b""[..], &b""[..]));
        place.sql("insert into public.projects values (1)").await;

        let said = place.run(&format!("doctor {options}"));
        assert!(said.out.contains("but not their history"), "{said:?}");
        let said = place.run(&format!("migrate {options}"));
        assert!(said.err.contains("these migrations did not create"), "{said:?}");
        let said = place.done(&format!("migrate --adopt {options}"));
        assert!(said.err.contains("recorded as applied"), "{said:?}");
        is_in_order(&place.run(&format!("doctor {options}")));
        place.done(&format!("migrate {options}"));
        place.done(&format!("issue --consumer acme --expires 1d {options}"));
        assert_eq!(place.json(&format!("migrate --adopt {options}"))["adopted"], true);
    }
}

#[tokio::test]
async fn a_sqlite_file_is_made_and_adopted_as_well() {
    let place = Place::sqlite();
    let script = printed("migrate --print --dialect sqlite");
    let url = format!("{}?mode=rwc", place.url);
    let mut connection = SqliteConnection::connect(&url).await.unwrap();
    let mut transaction = connection.begin().await.unwrap();
    raw_sql(AssertSqlSafe(script.clone())).execute(&mut *transaction).await.unwrap();
    transaction.commit().await.unwrap();
    drop(connection);
    place.done("migrate --adopt");
    is_in_order(&place.run("doctor"));
    place.done("migrate");
    place.issue("--expires 1d");
    // The dialect is that of the database.
    assert_eq!(place.done("migrate --print").out, script);
}

#[tokio::test]
async fn what_is_missing_is_named_and_nothing_is_adopted() {
    for place in Place::all().await {
        let is_sqlite = place.url.starts_with("sqlite");
        place.sql("drop table _api_key_migrations").await;
        let of_table = if is_sqlite { "" } else { " on api_keys" };
        for (sql, missing) in [
            (
                format!("drop trigger api_keys_stay_revoked{of_table}"),
                "trigger api_keys_stay_revoked of api_keys",
            ),
            ("drop index api_keys_of_prefix".to_owned(), "index api_keys_of_prefix of api_keys"),
        ] {
            place.sql(&sql).await;
            let said = place.run("migrate --adopt");
            assert_eq!(said.code, 1, "{said:?}");
            assert!(said.err.contains(&format!("{missing} is missing")), "{said:?}");
            assert!(said.err.contains("Nothing was recorded"), "{said:?}");
        }
        let said = place.run("doctor");
        assert!(said.out.contains("but not their history"), "{said:?}");
    }
}

#[tokio::test]
async fn tables_of_the_application_are_not_adopted() {
    let place = Place::postgres().await;
    place.sql("create table api_keys (id serial primary key, key_hash text)").await;
    let said = place.run("migrate --adopt");
    assert!(
        said.code == 1 && said.err.contains("column changed_in of api_key_changes is"),
        "{said:?}"
    );
    assert!(said.err.contains("; and ") && said.err.contains(" more"), "{said:?}");
    let empty = Place::postgres().await;
    let said = empty.run("migrate --adopt");
    assert!(said.code == 1 && said.err.contains("is not on the search path"), "{said:?}");
    let mut connection = PgConnection::connect(&empty.url).await.unwrap();
    let tables = "select count(*) from pg_tables where schemaname = 'public'";
    let tables: i64 = sqlx::query_scalar(tables).fetch_one(&mut connection).await.unwrap();
    assert_eq!(tables, 0);
    // A file with a typing error is not made.
    let said = Place::sqlite().run("migrate --adopt");
    assert_eq!(said.code, 1, "{said:?}");
}

#[test]
fn printing_begins_at_a_version_and_needs_no_database() {
    let all = printed("migrate --print --dialect postgres");
    let last = printed("migrate --print --dialect postgres --from 8");
    assert!(last.starts_with("-- tower-api-key migration 8 ("), "{last}");
    assert!(all.ends_with(&last) && all.len() > last.len());
    let in_schema = printed("migrate --print --dialect postgres --from 8 --schema x");
    assert!(!in_schema.contains("create schema"), "{in_schema}");
    let whole = printed("migrate --print --dialect postgres --schema x");
    assert!(whole.starts_with("create schema if not exists \"x\";"), "{whole}");
    for (line, problem) in [
        ("migrate --print", "--dialect: give postgres or sqlite"),
        ("migrate --print --dialect sqlite --from 999", "there is no migration 999 yet"),
        ("migrate --print --dialect postgres --schema pg_x", "PostgreSQL's own schemas"),
        ("migrate --from 3", "--print"),
        ("migrate --adopt --print", "cannot be used with"),
    ] {
        let output = without_database(line);
        let err = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && err.contains(problem), "{line}: {err}");
        assert_eq!(output.stdout, b"", "{line}");
    }
}
