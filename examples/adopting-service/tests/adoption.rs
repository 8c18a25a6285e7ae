//! The service before and after, side by side on one database. `DATABASE_URL` is a PostgreSQL
//! server on which databases may be created.

use std::{
    env,
    net::SocketAddr,
    path::Path,
    process::{self, Command, Output},
    time::Duration,
};

use axum::Router;
use futures_core::Stream;
use sqlx::{Connection as _, PgConnection, raw_sql};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// Two users with three keys: 64 times `1`, `2` and `3`, the last of which is switched off. The
/// hashes are by `sha256sum`.
const DATA: &str = "
insert into users values (17, 'ann@example.com'), (18, 'bob@example.com');
insert into projects (user_id, name) values (17, 'apollo'), (18, 'gemini');
insert into api_keys (key_hash, user_id, name, created_at, is_active) values
    ('3138bb9bc78df27c473ecfd1410f7bd45ebac1f59cf3ff9cfe4db77aab7aedd3', 17, 'laptop', '2024-03-01', true),
    ('4f2e8d65483c641648cdb374ae9d8abd368d269e4ddffe092a8237b8162cddd6', 18, null, '2024-03-02', true),
    ('79bd7d7fd684b399857c582b1b7172ddf277d4fe1b027ec52b28da3ae381e675', 18, 'old', '2024-03-03', false)";

const MAPPING: &str = "--expires never --map key_hash=hash --map user_id=consumer_id \
    --map last_used=last_used_at";

#[tokio::test]
async fn a_service_moves_its_keys_while_both_versions_run() {
    let database = Database::create().await;
    let before = serve(service_before::open(&database.url).await.unwrap()).await;
    database.sql(DATA).await;
    assert_eq!(get(before, '1').await, (200, r#"["apollo"]"#.to_owned()));

    let (after, keys) = service_after::open(&database.url).await.unwrap();
    let after = serve(after).await;
    assert_eq!(get(after, '1').await.0, 401, "nothing is imported yet");

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.csv");
    std::fs::write(&file, database.csv("select * from api_keys order by id").await).unwrap();
    let file = file.to_str().unwrap();
    let trial = database.api_key(&format!("import {file} --dry-run {MAPPING}"));
    assert!(said(&trial).contains("would import 3 keys"), "{trial:?}");
    let imported = database.api_key(&format!("import {file} {MAPPING}"));
    assert!(said(&imported).contains("imported 3 keys"), "{imported:?}");

    for (key, answer) in [('1', r#"["apollo"]"#), ('2', r#"["gemini"]"#)] {
        assert_eq!(get(before, key).await, (200, answer.to_owned()));
        // The new one has remembered that it did not know the first key until it hears of it.
        status_becomes(after, key, 200).await;
        assert_eq!(get(after, key).await, (200, answer.to_owned()));
    }
    for service in [before, after] {
        assert_eq!(get(service, '3').await.0, 401, "switched off");
        assert_eq!(get(service, '4').await.0, 401, "unknown");
    }

    // As the service has always deleted a user.
    database.sql("delete from users where id = 17").await;
    assert_eq!(get(before, '1').await.0, 401);
    status_becomes(after, '1', 401).await;
    assert_eq!(get(after, '2').await.0, 200);
    let events = database.api_key("events --json");
    assert!(said(&events).contains(r#""action":"deleted""#), "{events:?}");

    let doctor = database.api_key("doctor");
    let text = said(&doctor);
    assert!(doctor.status.success() && text.contains("ok: operations: all work"), "{text}");
    assert!(!text.contains("problem:") && !text.contains("warning: tables"), "{text}");
    keys.stop().await;
    database.drop().await;
}

#[test]
fn the_change_has_fewer_than_60_lines() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let diff = Command::new("diff").args(["-ruN", "before", "after"]).current_dir(folder).output();
    let diff = String::from_utf8(diff.unwrap().stdout).unwrap();
    let is_header = |line: &&str| line.starts_with("--- before") || line.starts_with("+++ after");
    let lines = diff.lines().filter(|line| line.starts_with(['+', '-']) && !is_header(line));
    let changed = lines.count();
    assert!((20..60).contains(&changed), "{changed} lines:\n{diff}");
}

struct Database {
    server: String,
    name: String,
    url: String,
}

impl Database {
    async fn create() -> Self {
        let server = env::var("DATABASE_URL").expect("DATABASE_URL names a PostgreSQL server");
        let name = format!("adoption_{}", process::id());
        let (base, options) = server.split_once('?').unwrap_or((&server, ""));
        let base = base.rsplit_once('/').unwrap().0;
        let url = format!("{base}/{name}?{options}");
        let database = Self { server: server.clone(), name, url };
        execute(&server, &format!("create database {}", database.name)).await;
        database
    }

    async fn drop(self) {
        execute(&self.server, &format!("drop database {} with (force)", self.name)).await;
    }

    async fn sql(&self, sql: &str) {
        execute(&self.url, sql).await;
    }

    /// What `psql --csv` prints.
    async fn csv(&self, query: &str) -> Vec<u8> {
        let mut connection = PgConnection::connect(&self.url).await.unwrap();
        let copy = format!("copy ({query}) to stdout (format csv, header)");
        let mut rows = connection.copy_out_raw(&copy).await.unwrap();
        let mut csv = Vec::new();
        while let Some(row) = std::future::poll_fn(|cx| Stream::poll_next(rows.as_mut(), cx)).await
        {
            csv.extend_from_slice(&row.unwrap());
        }
        csv
    }

    /// Runs the command line of this repository.
    fn api_key(&self, line: &str) -> Output {
        let cli = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../cli/Cargo.toml");
        let cargo = env::var_os("CARGO").expect("cargo runs this test");
        let mut command = Command::new(cargo);
        command.args(["run", "--quiet", "--bin", "api-key", "--manifest-path"]).arg(cli);
        command.args(["--", "--schema", "keys"]).args(line.split_whitespace());
        command.env("DATABASE_URL", &self.url).output().unwrap()
    }
}

async fn execute(url: &str, sql: &str) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    raw_sql(sql).execute(&mut connection).await.unwrap();
}

fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text)).concat()
}

async fn serve(app: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async { axum::serve(listener, app).await.unwrap() });
    address
}

/// The status and the body for the key of 64 times `digit`.
async fn get(service: SocketAddr, digit: char) -> (u16, String) {
    let key = digit.to_string().repeat(64);
    let request = format!(
        "GET /projects HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\n\
        connection: close\r\n\r\n"
    );
    let mut stream = TcpStream::connect(service).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// Asks until the service has heard of a change.
async fn status_becomes(service: SocketAddr, digit: char, status: u16) {
    let asking = async {
        while get(service, digit).await.0 != status {
            tokio::task::yield_now().await;
        }
    };
    let asked = tokio::time::timeout(Duration::from_secs(30), asking).await;
    assert!(asked.is_ok(), "{digit} is never {status}");
}
