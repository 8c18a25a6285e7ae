//! `SqliteKeyStore` under faults: locked files, read-only files, lost connections.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that fails panics"
)]

use std::{
    fs,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use sqlx::{
    ConnectOptions, SqliteConnection, raw_sql,
    sqlite::{SqliteConnectOptions, SqlitePoolOptions},
};
use tempfile::TempDir;
use tokio::task::yield_now;
use tower_api_key::{
    key::KeyHash,
    record::{KeyId, KeyRecord},
    store::{KeyStore, ManageKeys, SqliteKeyStore, StoreErrorKind, port::Usage},
};

use crate::{raw_store::ByHand as _, wait::within};

const BRIEF: Duration = Duration::from_millis(100);
/// The number of statements on another connection, during which a statement that need not wait
/// would finish.
const TURNS: usize = 200;
const HASH: KeyHash = KeyHash::from_bytes([7; 32]);
const ID: KeyId = KeyId::from_bytes([9; 16]);

fn record(byte: u8) -> KeyRecord {
    let (id, hash) = (KeyId::from_bytes([byte; 16]), KeyHash::from_bytes([byte; 32]));
    KeyRecord::new(id, hash, "acme", SystemTime::UNIX_EPOCH)
}

/// A file with one key.
struct File {
    folder: TempDir,
}

impl File {
    fn missing() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    async fn new() -> Self {
        let file = Self::missing();
        with_key(&file.store().await).await.pool().close().await;
        file
    }

    fn path(&self, suffix: &str) -> PathBuf {
        self.folder.path().join(format!("keys.db{suffix}"))
    }

    /// Whether the file uses a write-ahead log, by its header.
    fn has_log(&self) -> bool {
        fs::read(self.path("")).unwrap().get(18..20) == Some(&[2, 2])
    }

    fn url(&self) -> String {
        format!("sqlite://{}", self.path("").display())
    }

    async fn store(&self) -> SqliteKeyStore {
        SqliteKeyStore::connect(&self.url()).await.unwrap()
    }

    async fn connection(&self) -> SqliteConnection {
        let options = SqliteConnectOptions::new().filename(self.path("")).create_if_missing(true);
        options.connect().await.unwrap()
    }
}

async fn with_key(store: &SqliteKeyStore) -> &SqliteKeyStore {
    store.migrate().await.unwrap();
    let mut record = record(0);
    (record.id, record.key_hash) = (ID, HASH);
    store.insert(&record).await.unwrap();
    store
}

async fn execute(connection: &mut SqliteConnection, sql: &'static str) {
    raw_sql(sql).execute(connection).await.unwrap();
}

async fn is_found(store: &SqliteKeyStore) {
    let found = within(store.find(&HASH)).await;
    assert_eq!(found.unwrap().unwrap().id, ID);
}

#[tokio::test]
async fn look_ups_go_on_beside_a_writer_and_writers_take_turns() {
    let file = File::new().await;
    let mut writer = file.connection().await;
    execute(&mut writer, "begin immediate; update api_keys set name = 'changed'").await;

    let patient = file.store().await;
    let impatient = SqliteConnectOptions::new().filename(file.path("")).busy_timeout(BRIEF);
    let impatient = SqlitePoolOptions::new().connect_with(impatient).await.unwrap();
    let impatient = SqliteKeyStore::new(impatient);
    is_found(&patient).await;
    is_found(&impatient).await;
    for refused in [
        impatient.insert(&record(1)).await.unwrap_err(),
        impatient.revoke(ID, None).await.unwrap_err(),
        impatient.record_usage(&[Usage::new(ID, SystemTime::UNIX_EPOCH)].into()).await.unwrap_err(),
    ] {
        assert_eq!(refused.kind(), StoreErrorKind::Unavailable, "{refused:?}");
    }

    let waiting = record(1);
    let mut insert = Box::pin(patient.insert(&waiting));
    let look_ups = async {
        for _ in 0..TURNS {
            is_found(&patient).await;
        }
    };
    tokio::select! {
        inserted = &mut insert => panic!("it did not wait for the other writer: {inserted:?}"),
        () = look_ups => {}
    }
    execute(&mut writer, "commit").await;
    within(insert).await.unwrap();
    impatient.insert(&record(2)).await.unwrap();
}

#[tokio::test]
async fn a_file_in_use_gets_its_log_when_it_is_free() {
    for using in ["begin; select * from orders", "begin immediate"] {
        let file = File::missing();
        let mut user = file.connection().await;
        execute(&mut user, "create table orders (id)").await;
        execute(&mut user, using).await;
        let url = file.url();
        let mut connect = Box::pin(SqliteKeyStore::connect(&url));
        let used = async {
            for _ in 0..TURNS {
                execute(&mut user, "select * from orders").await;
            }
        };
        tokio::select! {
            connected = &mut connect => panic!("the file is in use: {:?}", connected.is_ok()),
            () = used => {}
        }
        assert!(!file.has_log(), "the file is in use");
        execute(&mut user, "commit").await;
        is_found(with_key(&within(connect).await.unwrap()).await).await;
        assert!(file.has_log());
    }
}

#[tokio::test]
async fn a_file_that_may_only_be_read_serves_look_ups() {
    let file = File::new().await;
    let read_only = format!("{}?mode=ro", file.url());
    let store = SqliteKeyStore::connect(&read_only).await.unwrap();
    store.migrate().await.unwrap();
    is_found(&store).await;
    for error in [
        store.insert(&record(1)).await.unwrap_err(),
        store.revoke(ID, None).await.unwrap_err(),
        store.record_usage(&[Usage::new(ID, SystemTime::UNIX_EPOCH)].into()).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), StoreErrorKind::Other);
        assert!(format!("{error:?}").contains("attempt to write a readonly database"), "{error:?}");
    }

    // A file without a write-ahead log, as another program creates it.
    store.pool().close().await;
    execute(&mut file.connection().await, "pragma journal_mode = delete").await;
    is_found(&SqliteKeyStore::connect(&read_only).await.unwrap()).await;
}

#[tokio::test]
async fn an_empty_file_that_may_only_be_read_cannot_be_migrated() {
    let file = File::missing();
    execute(&mut file.connection().await, "create table orders (id)").await;
    let store = SqliteKeyStore::connect(&format!("{}?mode=ro", file.url())).await.unwrap();
    let error = store.migrate().await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Migration);
    assert!(format!("{error:?}").contains("attempt to write a readonly database"), "{error:?}");
}

#[cfg(unix)]
#[tokio::test]
async fn a_new_file_and_its_log_are_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;

    let permissions = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for parameters in ["", "?mode=rwc", "?cache=private"] {
        let file = File::missing();
        let store = SqliteKeyStore::connect(&format!("{}{parameters}", file.url())).await.unwrap();
        with_key(&store).await;
        for suffix in ["", "-wal", "-shm"] {
            assert_eq!(permissions(file.path(suffix)), 0o600, "{parameters} {suffix}");
        }
    }
    // The path is decoded as by SQLite.
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/a%20b.db", folder.path().display());
    with_key(&SqliteKeyStore::connect(&url).await.unwrap()).await;
    assert_eq!(permissions(folder.path().join("a b.db")), 0o600);

    let existing = File::missing();
    fs::write(existing.path(""), "").unwrap();
    fs::set_permissions(existing.path(""), fs::Permissions::from_mode(0o640)).unwrap();
    with_key(&existing.store().await).await;
    assert_eq!(permissions(existing.path("")), 0o640);
}

#[tokio::test]
async fn a_file_is_made_unless_the_url_has_a_mode() {
    let file = File::missing();
    let error = SqliteKeyStore::connect(&format!("{}?mode=rw", file.url())).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    assert!(format!("{error:?}").contains("unable to open database file"), "{error:?}");
    assert!(!file.path("").exists());
    is_found(with_key(&file.store().await).await).await;
}

#[tokio::test]
async fn what_is_no_database_is_an_error() {
    let file = File::missing();
    fs::write(file.path(""), "a letter to the editor, longer than a header ".repeat(9)).unwrap();
    let error = SqliteKeyStore::connect(&file.url()).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Other);
    assert!(format!("{error:?}").contains("not a database"), "{error:?}");
}

#[tokio::test]
async fn a_closed_file_needs_no_log() {
    let file = File::new().await;
    assert!(!file.path("-wal").exists() && !file.path("-shm").exists());
    is_found(&file.store().await).await;
}

#[tokio::test]
async fn a_database_in_memory_outlives_its_connections() {
    let store = SqliteKeyStore::in_memory().await.unwrap();
    with_key(&store).await;
    let mut connections = Vec::new();
    for _ in 0..store.pool().options().get_max_connections() {
        connections.push(store.pool().acquire().await.unwrap());
    }
    for connection in connections {
        connection.close().await.unwrap();
    }
    assert_eq!(store.pool().size(), 0);
    is_found(&store).await;
}

#[tokio::test]
async fn a_database_in_memory_outlives_dropped_futures() {
    let store = SqliteKeyStore::in_memory().await.unwrap();
    with_key(&store).await;
    for polls in 0..200 {
        if polls % 10 == 0 {
            // The next look-up has to connect.
            store.pool().acquire().await.unwrap().close().await.unwrap();
        }
        let mut find = Box::pin(store.find(&HASH));
        for _ in 0..polls % 40 {
            tokio::select! {
                biased;
                _ = &mut find => break,
                () = yield_now() => {}
            }
        }
    }
    is_found(&store).await;
}

#[tokio::test]
async fn a_change_that_is_dropped_happens_or_does_not() {
    let store = SqliteKeyStore::in_memory().await.unwrap();
    store.migrate().await.unwrap();
    for byte in 0..100 {
        let record = record(byte);
        let mut insert = Box::pin(store.insert(&record));
        for _ in 0..byte % 40 {
            tokio::select! {
                biased;
                _ = &mut insert => break,
                () = yield_now() => {}
            }
        }
        drop(insert);
        // In any case, nothing is left locked.
        if let Err(error) = store.insert(&record).await {
            assert_eq!(error.kind(), StoreErrorKind::Conflict);
        }
        assert!(store.find(&record.key_hash).await.unwrap().is_some());
    }
}

#[tokio::test]
async fn databases_in_memory_are_apart_and_clones_share_one() {
    let store = SqliteKeyStore::in_memory().await.unwrap();
    with_key(&store).await;
    let other = SqliteKeyStore::in_memory().await.unwrap();
    other.migrate().await.unwrap();
    assert_eq!(other.find(&HASH).await.unwrap(), None);
    let clone = store.clone();
    drop(store);
    is_found(&clone).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writers_at_once_do_not_fail() {
    let file = File::new().await;
    let memory = SqliteKeyStore::in_memory().await.unwrap();
    with_key(&memory).await;
    let stores = [file.store().await, file.store().await, memory.clone(), memory];
    let writers = stores.into_iter().enumerate().map(|(writer, store)| async move {
        for round in 0..25 {
            let byte = u8::try_from(100 + 25 * writer + round).unwrap();
            store.insert(&record(byte)).await.unwrap();
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(byte.into());
            store.record_usage(&[Usage::new(ID, at)].into()).await.unwrap();
            is_found(&store).await;
        }
        store.last_used_at(ID).await.unwrap().unwrap()
    });
    let writers: Vec<_> = writers.map(tokio::spawn).collect();
    for writer in writers {
        assert!(writer.await.unwrap() > SystemTime::UNIX_EPOCH + Duration::from_secs(100));
    }
}

#[tokio::test]
async fn a_row_that_makes_no_sense_is_corrupt() {
    for (column, change) in [
        ("id", "update api_keys set id = x'00'"),
        ("scopes", r#"update api_keys set scopes = '["the secret"]'"#),
        ("scopes", "update api_keys set scopes = 'the secret'"),
        ("rate_limits", r#"update api_keys set rate_limits = '{"the secret": 1}'"#),
        (
            "plan_limits",
            r#"insert into api_key_plans values ('pro', '[{"the secret": 1}]', 0);
            update api_keys set plan = 'pro'"#,
        ),
        ("plan", "update api_keys set plan = 'the secret'"),
        ("plan", "update api_keys set plan = 'pro' || char(0)"),
        ("metadata", r#"update api_keys set metadata = '["the secret"]'"#),
        ("networks", r#"update api_keys set networks = '["the secret"]'"#),
        ("networks", "update api_keys set networks = 'the secret'"),
        ("tags", r#"update api_keys set tags = '["the secret"]'"#),
        ("kind", "update api_keys set kind = 'the secret'"),
        ("origins", r#"update api_keys set origins = '["https://secret.example"]'"#),
        ("version", "update api_keys set version = -1"),
    ] {
        let store = SqliteKeyStore::in_memory().await.unwrap();
        with_key(&store).await;
        let mut connection = store.pool().acquire().await.unwrap();
        execute(&mut connection, "pragma ignore_check_constraints = on").await;
        execute(&mut connection, change).await;
        let error = store.find(&HASH).await.unwrap_err();
        let shown = format!("{error:?}");
        assert_eq!(error.kind(), StoreErrorKind::Corrupt, "{change}: {shown}");
        assert!(shown.contains(column) && !shown.contains("secret"), "{change}: {shown}");
    }
}

#[tokio::test]
async fn the_tables_refuse_what_makes_no_sense() {
    let store = SqliteKeyStore::in_memory().await.unwrap();
    with_key(&store).await;
    for change in [
        "update api_keys set id = x'00'",
        "update api_keys set key_hash = x'00'",
        "update api_keys set scopes = '{}'",
        "update api_keys set scopes = 'read'",
        "update api_keys set rate_limits = '{}'",
        "update api_keys set rate_limits = 'null'",
        "update api_keys set plan = ''",
        "update api_keys set plan = 'a b'",
        "update api_keys set plan = 'pro' || char(10)",
        "update api_keys set plan = 'é'",
        "update api_keys set plan = printf('%.*c', 65, 'a')",
        "insert into api_key_plans values ('a b', '[]', 0)",
        "insert into api_key_plans values (printf('%.*c', 65, 'a'), '[]', 0)",
        "insert into api_key_plans values ('pro', '{}', 0)",
        "insert into api_key_plans values ('pro', 'null', 0)",
        "update api_keys set metadata = '[]'",
        "update api_keys set is_active = 2",
        "update api_keys set expires_at = 'tomorrow'",
        "update api_keys set revoked_reason = 'leaked'",
        "update api_keys set version = 0",
        "update api_keys set networks = '[]'",
        "update api_keys set networks = '{}'",
        "update api_keys set networks = '10.0.0.0/8'",
        "update api_keys set networks = '[' || replace(printf('%.*c', 64, '0'), '0', '0,') || '0]'",
        "update api_keys set tags = '[]'",
        "update api_keys set tags = 'mobile'",
        "update api_keys set kind = 'public'",
        "update api_keys set kind = 'publishable'",
        r#"update api_keys set origins = '["https://shop.example"]'"#,
        "update api_keys set kind = 'publishable', origins = '[]'",
    ] {
        assert!(raw_sql(change).execute(store.pool()).await.is_err(), "{change}");
    }
    is_found(&store).await;
}

#[tokio::test]
async fn a_url_of_something_else_is_an_error_that_says_so() {
    for (url, problem) in [
        ("keys.db", "begin with `sqlite:`"),
        ("mysql://localhost/app", "begin with `sqlite:`"),
        ("", "begin with `sqlite:`"),
        ("sqlite:", "name a file"),
        ("sqlite://", "name a file"),
        ("sqlite:?mode=rwc", "name a file"),
    ] {
        let error = SqliteKeyStore::connect(url).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Other);
        assert!(format!("{error:?}").contains(problem), "{error:?}");
    }
}

#[tokio::test]
async fn the_audit_is_append_only_and_a_revocation_for_good_whoever_asks() {
    let store = SqliteKeyStore::in_memory().await.unwrap();
    with_key(&store).await;
    store.revoke(ID, None).await.unwrap().unwrap();
    let mut connection = store.pool().acquire().await.unwrap();
    execute(&mut connection, "insert into api_key_events (action, actor) values ('issued', 'a')")
        .await;
    for (change, problem) in [
        ("update api_key_events set actor = 'b'", "append-only"),
        ("delete from api_key_events", "append-only"),
        (
            "insert or replace into api_key_events (id, action, actor) values (1, 'issued', 'b')",
            "append-only",
        ),
        ("update api_keys set revoked_at = null", "for good"),
        ("update api_keys set revoked_at = revoked_at + 1", "for good"),
        (
            "insert or replace into api_keys (id, key_hash, key_prefix, key_last4, consumer_id, \
             scopes, metadata, is_active, created_at, root_id, version) \
             select id, key_hash, '', '', 'a', '[]', '{}', 1, 0, root_id, 1 from api_keys",
            "for good",
        ),
    ] {
        let error = raw_sql(change).execute(&mut *connection).await.unwrap_err();
        assert!(error.to_string().contains(problem), "{change}: {error}");
    }
    execute(&mut connection, "update api_keys set name = 'of old'").await;
    execute(&mut connection, "delete from api_keys").await;
}
