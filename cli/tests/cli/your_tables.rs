//! Tables of the application beside ours, as the manual describes it.

use sqlx::{AssertSqlSafe, Connection as _, PgConnection, SqliteConnection, query_scalar, raw_sql};

use crate::place::{Place, count, import_line, text};

fn is_sqlite(place: &Place) -> bool {
    place.url.starts_with("sqlite")
}

/// What an SQL query with one text as its result returns.
async fn asked(place: &Place, sql: &str) -> Vec<String> {
    let sql = AssertSqlSafe(sql.to_owned());
    if is_sqlite(place) {
        let mut connection = SqliteConnection::connect(&place.url).await.unwrap();
        query_scalar(sql).fetch_all(&mut connection).await.unwrap()
    } else {
        let mut connection = PgConnection::connect(&place.url).await.unwrap();
        query_scalar(sql).fetch_all(&mut connection).await.unwrap()
    }
}

#[track_caller]
fn is_healthy(place: &Place) {
    let said = place.done("doctor");
    assert!(!said.out.contains("problem: "), "{said:?}");
    assert!(!said.out.contains("warning: tables") && !said.out.contains("warning: op"), "{said:?}");
}

#[tokio::test]
async fn a_column_of_the_application_stays_as_it_is() {
    for place in Place::all().await {
        place.sql("create table teams (id integer primary key)").await;
        place.sql("insert into teams values (7)").await;
        place.sql("alter table api_keys add column team integer references teams").await;
        let (_, id) = place.issue("--expires 1d");
        place.sql("update api_keys set team = 7").await;
        place.done(&format!("update {id} --name renamed"));
        let successor = text(&place.json(&format!("rotate {id}")), "id");
        place.done(&format!("revoke {successor}"));
        assert_eq!(place.fed("import -", &import_line(1)).code, 0);
        let teams = "select coalesce(cast(team as text), '-') from api_keys order by team";
        let mut teams = asked(&place, teams).await;
        teams.sort();
        assert_eq!(teams, ["-", "-", "7"]);
        is_healthy(&place);
        place.done("migrate");
    }
}

#[tokio::test]
async fn a_key_is_pruned_where_the_foreign_key_says_what_becomes_of_its_rows() {
    for place in Place::all().await {
        let kind = if is_sqlite(&place) { "blob" } else { "uuid" };
        place
            .sql(&format!(
                "create table apps (key_id {kind} references api_keys (id) on delete cascade);
                create table jobs (key_id {kind} references api_keys (id) on delete set null)"
            ))
            .await;
        place.issue("--expires 1d");
        place.sql("insert into apps select id from api_keys").await;
        place.sql("insert into jobs select id from api_keys").await;
        place.done("revoke --consumer acme --yes");
        let pruned = place.json("prune --ended-before 0s");
        assert_eq!((&pruned["keys"], &pruned["skipped"]), (&1.into(), &0.into()), "{pruned}");
        let left = "select cast(count(*) as text) from apps";
        assert_eq!(asked(&place, left).await, ["0"]);
        let jobs = "select coalesce(cast(key_id as text), 'none') from jobs";
        assert_eq!(asked(&place, jobs).await, ["none"]);
    }
}

#[tokio::test]
async fn keys_are_joined_with_their_users() {
    for place in Place::all().await {
        place.sql("create table users (id bigint primary key, email text)").await;
        place.sql("insert into users values (17, 'ann'), (18, 'bob')").await;
        let line = import_line(1).replace("\"acme\"", "\"17\",\"last_used_at\":\"2025-01-01\"");
        assert_eq!(place.fed("import -", &line).code, 0);
        let joined = "select users.email from api_keys
            join users on cast(users.id as text) = api_keys.consumer_id
            left join api_key_usage on api_key_usage.key_id = api_keys.id
            where api_keys.revoked_at is null and last_used_at is not null";
        assert_eq!(asked(&place, joined).await, ["ann"]);
        if !is_sqlite(&place) {
            // Even a small table is then read along the index.
            let explain = "set enable_seqscan = off; explain select name from api_keys
                where consumer_id = 17::text and revoked_at is null";
            let mut connection = PgConnection::connect(&place.url).await.unwrap();
            let plan = raw_sql(explain).fetch_all(&mut connection).await.unwrap();
            let plan: String =
                plan.iter().map(|row| sqlx::Row::get::<String, _>(row, 0) + "\n").collect();
            assert!(plan.contains("Index Cond: (consumer_id = '17'::text)"), "{plan}");
        }
    }
}

#[tokio::test]
async fn a_user_is_deleted_with_all_keys() {
    for place in Place::all().await {
        let sqlite = is_sqlite(&place);
        let users =
            "create table users (id bigint primary key); insert into users values (17), (18)";
        place.sql(users).await;
        let by_trigger = if sqlite {
            "create trigger keys_of_user after delete on users
            begin delete from api_keys where consumer_id = cast(old.id as text); end"
        } else {
            "create function keys_of_user() returns trigger language plpgsql as $$ begin
                delete from api_keys where consumer_id = old.id::text; return null;
            end $$;
            create trigger keys_of_user after delete on users
            for each row execute function keys_of_user()"
        };
        place.sql(by_trigger).await;
        for (number, user) in [(1, "17"), (2, "17"), (3, "18")] {
            let line = import_line(number).replace("acme", user);
            assert_eq!(place.fed("import -", &line).code, 0);
        }
        place.sql("delete from users where id = 17").await;
        assert_eq!(count(&place), 1);
        if !sqlite {
            place.sql("drop trigger keys_of_user on users").await;
            place
                .sql(
                    "alter table api_keys add column user_id bigint references users
                    on delete cascade generated always as (
                        case when consumer_id ~ '^[0-9]+$' then consumer_id::bigint end
                    ) stored",
                )
                .await;
            let said = place.fed("import -", &import_line(4).replace("acme", "19"));
            assert!(
                said.code == 2 && said.err.contains("line 1: the database refuses"),
                "{said:?}"
            );
            place.sql("delete from users where id = 18").await;
            assert_eq!(count(&place), 0);
        }
        is_healthy(&place);
        let events = place.json("events")["events"].clone();
        let deleted = events.as_array().unwrap().iter().filter(|it| it["action"] == "deleted");
        assert_eq!(deleted.count(), if sqlite { 2 } else { 3 }, "{events}");
    }
}

#[tokio::test]
async fn the_stable_columns_are_those_of_the_manual() {
    let manual = include_str!("../../../src/manual/your_tables.md");
    let (_, section) = manual.split_once("# What is stable").unwrap();
    let mut columns = 0;
    for place in Place::all().await {
        for row in section.lines().filter(|line| line.starts_with("| `")) {
            let mut names = row.split('`').skip(1).step_by(2);
            let table = names.next().unwrap();
            let list: Vec<_> = names.map(|name| format!("{table}.{name}")).collect();
            columns += list.len();
            place.sql(&format!("select {} from {table}", list.join(", "))).await;
        }
    }
    assert_eq!(columns, 2 * 31);
}
