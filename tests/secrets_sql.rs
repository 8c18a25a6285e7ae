//! No log shows a key or a password with a real database, at any log level.
//!
//! In a binary of its own: sqlx works on threads and tasks that only a global subscriber sees.

#![cfg(test)]
#![cfg(all(
    feature = "axum",
    feature = "postgres",
    feature = "sqlite",
    feature = "test-util",
    feature = "tracing"
))]

#[path = "support/doubles/mod.rs"]
mod doubles;
#[path = "support/raw_store/mod.rs"]
mod raw_store;
#[path = "support/servers/mod.rs"]
mod servers;
#[path = "support/wait/mod.rs"]
mod wait;

use std::{
    io::Write,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use http::StatusCode;
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection,
    postgres::{PgConnectOptions, PgPoolOptions},
    raw_sql,
};
use tower_api_key::{
    ApiKeyLayer, Authenticator,
    auth::{Builder, CachePolicy, Event, RejectionKind, Worker},
    clock::ManualClock,
    manage::{Expiry, KeyIssuer, NewKey},
    rate_limit::Quota,
    store::{KeyStore, ManageKeys, PgKeyStore, SqliteKeyStore},
};
use tracing::Level;
use tracing_subscriber::fmt::{MakeWriter, format::FmtSpan};

use crate::{
    doubles::{Draws, Key, Service, format, hash, unknown_key, within},
    raw_store::ByHand as _,
    servers::{
        postgres::{Database, Server},
        unique,
    },
};

const PREFIX: &str = "sk_test_";

/// Collects everything logged in this process.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn listen() -> &'static Self {
        static LOG: OnceLock<Log> = OnceLock::new();
        LOG.get_or_init(|| {
            let log = Self::default();
            // Also captures the `log` crate.
            tracing_subscriber::fmt()
                .json()
                .with_max_level(Level::TRACE)
                .with_span_events(FmtSpan::FULL)
                .with_writer(log.clone())
                .init();
            log
        })
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Whether `text` contains any eight characters of the secret part of `key`, or its hash.
fn leaks(text: &str, key: &str) -> bool {
    let secret = &key[PREFIX.len()..key.len() - 4];
    let hash = format().parse(key.as_bytes()).map(|presented| {
        let hash = presented.hash();
        hash.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    });
    (0..=secret.len() - 8).any(|at| text.contains(&secret[at..at + 8]))
        || hash.is_ok_and(|hash| text.to_lowercase().contains(&hash[8..24]))
}

fn tell_nothing_of<'k>(log: &str, keys: impl IntoIterator<Item = &'k str>) {
    for key in keys {
        assert_eq!(log.lines().find(|line| leaks(line, key)), None, "{key}");
    }
}

/// A service on `store` that also logs its observer's events.
fn service<S: KeyStore + Clone>(store: S) -> (Service<S>, Worker) {
    let patient = CachePolicy::default().load_deadline(Duration::from_secs(20)).unwrap();
    let observer = |event: &Event<'_>| tracing::error!(?event);
    let settings = |builder: Builder| builder.cache(patient).observer(observer);
    Service::around(store, ManualClock::default(), settings)
}

/// Keys in every state, sent to a service, the last of them while every query fails.
async fn keys_come_and_go<S: ManageKeys + Clone>(
    (service, worker): (Service<S>, Worker),
    break_tables: impl AsyncFnOnce(),
) -> Vec<String> {
    let limited = NewKey::new("acme", Expiry::Never).rate_limits(Quota::per_hour(1).unwrap());
    let limited = service.issue_new(limited).await;
    service.get(&limited.text).await.is_for("acme");
    assert_eq!(service.get(&limited.text).await.status, StatusCode::TOO_MANY_REQUESTS);

    let revoked = service.issue("acme").await;
    service.get(&revoked.text).await.is_for("acme");
    let mut record = service.store.get(revoked.record.id).await.unwrap().unwrap();
    record.name = Some("renamed".to_owned());
    service.store.update(&record).await.unwrap();
    service.revoke(&revoked).await;
    service.get(&revoked.text).await.is_refused(RejectionKind::Revoked);

    let unknown = unknown_key();
    service.get(&unknown).await.is_refused(RejectionKind::Unknown);
    let malformed = unknown_key().to_lowercase();
    service.get(&malformed).await.is_refused(RejectionKind::Malformed);

    // The database refuses the second of two keys that are the same.
    let twice = Draws::usable().take(1).flat_map(|byte| [byte; 8]);
    let issuer = KeyIssuer::new(service.store.clone(), format()).entropy(Draws::of(twice));
    let duplicate = Key::from(issuer.issue(NewKey::new("acme", Expiry::Never)).await.unwrap());
    issuer.issue(NewKey::new("acme", Expiry::Never)).await.unwrap_err();

    within(worker.run(async {})).await;
    break_tables().await;
    let failing = unknown_key();
    service.get(&failing).await.is_unavailable(RejectionKind::StoreUnavailable);
    service.store.find(&hash(&failing)).await.unwrap_err();
    vec![limited.text, revoked.text, unknown, malformed, duplicate.text, failing]
}

fn is_thorough(log: &str, look_up: &str) {
    for line in [
        r#""target":"sqlx::query""#,
        look_up,
        "insert into api_keys",
        "insert into api_key_usage",
        "set revoked_at = ",
        "insert into api_key_events",
        "request rejected",
        "key look-up failed",
    ] {
        assert!(log.contains(line), "nobody said {line}");
    }
}

const BREAK: &str = "alter table api_keys rename to gone";

#[tokio::test]
async fn on_postgresql_no_key_is_logged() {
    let log = Log::listen();
    let database = Server::shared().database().await;
    let store = PgKeyStore::connect(database.url()).await.unwrap();
    store.migrate().await.unwrap();
    let pool = store.pool().clone();
    let breaks = async || {
        raw_sql(BREAK).execute(&pool).await.unwrap();
    };
    let keys = keys_come_and_go(service(store), breaks).await;
    let log = log.text();
    is_thorough(&log, "api_keys where key_hash = $1");
    tell_nothing_of(&log, keys.iter().map(String::as_str));
}

#[tokio::test]
async fn on_sqlite_no_key_is_logged() {
    let log = Log::listen();
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/keys.db", folder.path().display());
    let store = SqliteKeyStore::connect(&url).await.unwrap();
    store.migrate().await.unwrap();
    let pool = store.pool().clone();
    let breaks = async || {
        raw_sql(BREAK).execute(&pool).await.unwrap();
    };
    let keys = keys_come_and_go(service(store), breaks).await;
    let log = log.text();
    is_thorough(&log, "from api_keys where key_hash = ?1");
    tell_nothing_of(&log, keys.iter().map(String::as_str));
}

#[tokio::test]
async fn a_key_that_somebody_logs_is_noticed() {
    let log = Log::listen();
    let key = unknown_key();
    std::thread::spawn({
        let key = key.clone();
        move || tracing::trace!(target: "sqlx::query", part = &key[PREFIX.len()..][..10])
    })
    .join()
    .unwrap();
    assert!(leaks(&log.text(), &key));
}

/// A database with a user whose password the server really checks.
struct Guarded {
    database: Database,
    user: String,
    password: String,
}

impl Guarded {
    async fn on(server: &Server) -> Self {
        let database = server.database().await;
        // Statements are logged, and this one has the password in it.
        let options: PgConnectOptions = database.url().parse().unwrap();
        let mut admin = options.disable_statement_logging().connect().await.unwrap();
        let user = format!("user_{:016x}", unique());
        let password = format!("password{:016x}", unique());
        let sql = format!(
            "create role {user} superuser login password '{password}';
             create temporary table rules (line text);
             insert into rules values ('host all {user} 127.0.0.1/32 scram-sha-256'),
                                      ('host all all 127.0.0.1/32 trust');
             do $$ begin
                 execute format('copy rules to %L', current_setting('hba_file'));
             end $$;
             select pg_reload_conf()"
        );
        raw_sql(AssertSqlSafe(sql)).execute(&mut admin).await.unwrap();
        admin.close().await.unwrap();
        let guarded = Self { database, user, password };
        // The server reloads its rules asynchronously.
        let refused = async {
            while PgKeyStore::connect(&guarded.url("wrong")).await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        within(refused).await;
        guarded
    }

    fn url(&self, password: &str) -> String {
        let login = format!("postgres://{}:{password}@", self.user);
        self.database.url().replace("postgres://postgres@", &login)
    }
}

#[tokio::test]
async fn on_postgresql_no_password_is_logged() {
    let log = Log::listen();
    // The test changes the authentication rules of its own server.
    let server = Server::start();
    let guarded = Guarded::on(&server).await;
    let wrong = format!("mistake{:016x}", unique());
    let refused = PgKeyStore::connect(&guarded.url(&wrong)).await.unwrap_err();
    tracing::error!(error = ?refused, source = ?std::error::Error::source(&refused));

    let store = PgKeyStore::connect(&guarded.url(&guarded.password)).await.unwrap();
    store.migrate().await.unwrap();
    tracing::error!(?store, pool_size = store.pool().size());
    let pool = store.pool().clone();
    let breaks = async || {
        raw_sql(BREAK).execute(&pool).await.unwrap();
    };
    keys_come_and_go(service(store), breaks).await;
    let log = log.text();
    assert!(log.contains("PgKeyStore") && log.contains("password authentication failed"));
    for secret in [&guarded.password, &wrong] {
        assert_eq!(log.lines().find(|line| line.contains(secret.as_str())), None);
    }
}

/// The `Debug` output of a store and of everything built on it.
fn debug<S: ManageKeys + Clone + std::fmt::Debug>(store: &S) -> String {
    let (service, worker) = service(store.clone());
    let issuer = KeyIssuer::new(store.clone(), format());
    let builder = Authenticator::builder(store.clone(), format());
    let layer = ApiKeyLayer::new(service.auth.clone());
    let auth = service.auth;
    format!("{store:?} {store:#?} {issuer:#?} {builder:#?} {auth:#?} {layer:#?} {worker:#?}")
}

#[tokio::test]
async fn debug_of_a_postgresql_store_shows_neither_password_nor_url() {
    let url = "postgres://somebody:hunter2@db.example:6543/keys?application_name=orders";
    let store = PgKeyStore::new(PgPoolOptions::new().connect_lazy(url).unwrap());
    let shown = debug(&store);
    assert!(shown.contains("PgKeyStore"), "{shown}");
    for part in ["somebody", "hunter2", "db.example", "6543", "orders"] {
        assert!(!shown.contains(part), "{part}: {shown}");
    }
}

#[tokio::test]
async fn debug_of_a_sqlite_store_shows_no_url() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/keys.db", folder.path().display());
    let shown = debug(&SqliteKeyStore::connect(&url).await.unwrap());
    assert!(shown.contains("SqliteKeyStore"), "{shown}");
    for part in ["keys.db", folder.path().to_str().unwrap()] {
        assert!(!shown.contains(part), "{part}: {shown}");
    }
}
