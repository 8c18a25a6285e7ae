//! A process that is killed in the middle of a change leaves all of it behind, with its line in the
//! audit, or nothing.

#![cfg(test)]

mod harness;
mod wait;

use std::{
    collections::{BTreeMap, HashSet},
    env,
    process::Stdio,
    time::{Duration, SystemTime},
};

use tokio::{
    io::AsyncReadExt,
    process::{Child, Command},
    time::timeout,
};
use tower_api_key::{
    key::{KeyFormat, KeyHash},
    manage::{Expiry, KeyImport, KeyIssuer, KeyUpdate, ManageErrorKind, NewKey, Rotation},
    record::{KeyAction, KeyId, KeyRecord},
    store::{EventQuery, KeyQuery, PgKeyStore, SqliteKeyStore},
};

use crate::harness::{postgres::Server, unique};
use crate::wait::Deadline;

const DATABASE: &str = "CRASH_DATABASE_URL";
const DAY: Duration = Duration::from_secs(86_400);
const PATIENCE: Duration = Duration::from_secs(60);

async fn issuer(url: &str) -> KeyIssuer {
    let format = KeyFormat::new("sk_test_").unwrap();
    if url.starts_with("sqlite") {
        let store = SqliteKeyStore::connect(url).await.unwrap();
        store.migrate().await.unwrap();
        KeyIssuer::new(store, format)
    } else {
        let store = PgKeyStore::connect(url).await.unwrap();
        store.migrate().await.unwrap();
        KeyIssuer::new(store, format)
    }
}

/// Changes keys for as long as it lives, and says so by a byte for each round.
async fn change_keys(url: &str) {
    use std::io::Write;

    let issuer = issuer(url).await;
    let new = || NewKey::new("acme", Expiry::In(DAY));
    loop {
        let first = issuer.issue(new()).await.unwrap().record;
        let update = KeyUpdate::new().name(Some(unique().to_string()));
        issuer.update(first.id, update).await.unwrap();
        let second = issuer.rotate(first.id, Rotation::new()).await.unwrap().record;
        issuer.revoke(first.id, Some("rotated")).await.unwrap();
        let import = |_| {
            let mut hash = [0; 32];
            hash[..8].copy_from_slice(&unique().to_be_bytes());
            KeyImport::new(KeyHash::from_bytes(hash), new())
        };
        issuer.import((0..5).map(import).collect()).await.unwrap();
        if unique().is_multiple_of(4) {
            issuer.revoke_consumer("acme", None).await.unwrap();
            let later = SystemTime::UNIX_EPOCH + 100_000 * DAY;
            issuer.prune(later, 3).await.unwrap();
        } else {
            issuer.revoke(second.id, None).await.unwrap();
        }
        let mut stdout = std::io::stdout();
        stdout.write_all(b".").unwrap();
        stdout.flush().unwrap();
    }
}

fn start(url: &str) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["--exact", "a_process_that_is_killed_leaves_whole_changes", "--nocapture"])
        .env(DATABASE, url)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// Lets a process change keys for a moment, and kills it.
async fn kill_one(url: &str) {
    let mut child = start(url);
    let mut stdout = child.stdout.take().unwrap();
    let mut byte = [0];
    // What the harness of tests prints comes first.
    while byte != *b"." {
        timeout(PATIENCE, stdout.read_exact(&mut byte)).await.unwrap().unwrap();
    }
    // At no particular moment of a change.
    let moment = Duration::from_micros(unique() % 30_000);
    let _ = timeout(moment, stdout.read_to_end(&mut Vec::new())).await;
    child.kill().await.unwrap();
}

async fn keys(issuer: &KeyIssuer) -> BTreeMap<KeyId, KeyRecord> {
    let mut keys = BTreeMap::new();
    let mut query = KeyQuery::new().limit(1000);
    let deadline = Deadline::of("the last page of the keys");
    loop {
        deadline.check();
        let page = issuer.list(&query).await.unwrap();
        keys.extend(page.keys.into_iter().map(|key| (key.record.id, key.record)));
        match page.next {
            Some(next) => query = query.after(next),
            None => return keys,
        }
    }
}

/// What happened to each key, oldest first.
async fn lives(issuer: &KeyIssuer) -> BTreeMap<KeyId, Vec<KeyAction>> {
    let mut lives = BTreeMap::<_, Vec<_>>::new();
    let mut query = EventQuery::new().limit(1000);
    let deadline = Deadline::of("the last page of the audit");
    loop {
        deadline.check();
        let page = issuer.events(&query).await.unwrap();
        for event in page.events {
            lives.entry(event.entry.key_id.unwrap()).or_default().insert(0, event.entry.action);
        }
        match page.next {
            Some(next) => query = query.after(next),
            None => return lives,
        }
    }
}

/// Every change has its line, and every line its change.
async fn check(url: &str) {
    let issuer = issuer(url).await;
    let (keys, lives) = (keys(&issuer).await, lives(&issuer).await);
    assert!(keys.len() > 100, "{} keys are not much of a test", keys.len());
    for (id, key) in &keys {
        let life = lives.get(id).unwrap_or_else(|| panic!("{id} came from nowhere"));
        let count = |action| life.iter().filter(|done| **done == action).count();
        assert!(matches!(life[0], KeyAction::Issued | KeyAction::Imported), "{id}: {life:?}");
        assert_eq!(count(KeyAction::Issued) + count(KeyAction::Imported), 1, "{id}: {life:?}");
        assert_eq!(count(KeyAction::Revoked), usize::from(key.revoked_at.is_some()), "{id}");
        assert_eq!(count(KeyAction::Rotated), usize::from(key.rotated_at.is_some()), "{id}");
        assert_eq!(
            count(KeyAction::Updated),
            usize::from(key.name.is_some() && key.rotated_from.is_none()),
            "{id}"
        );
        assert_eq!(count(KeyAction::Pruned), 0, "{id} is still there");
        assert_eq!(key.version, life.len() as u64, "{id}: {life:?}");
    }
    for (id, life) in &lives {
        if !keys.contains_key(id) {
            assert_eq!(life.last(), Some(&KeyAction::Pruned), "{id} is gone: {life:?}");
        }
    }
    let replaced: HashSet<_> = keys.values().filter_map(|key| key.rotated_from).collect();
    for key in keys.values().filter(|key| key.rotated_at.is_some()) {
        // The one that replaced it may have been pruned.
        assert!(replaced.contains(&key.id) || lives.len() > keys.len(), "{}", key.id);
    }
}

#[tokio::test]
async fn a_process_that_is_killed_leaves_whole_changes() {
    if let Ok(url) = env::var(DATABASE) {
        change_keys(&url).await;
    }
    let folder = tempfile::tempdir().unwrap();
    let sqlite = format!("sqlite://{}/keys.db", folder.path().display());
    let database = Server::shared().database().await;
    for url in [&sqlite, database.url()] {
        // Two at once, so that there is something to wait for.
        issuer(url).await;
        for _ in 0..15 {
            tokio::join!(kill_one(url), kill_one(url));
        }
        check(url).await;
    }
}

#[tokio::test]
async fn a_database_that_is_killed_keeps_whole_changes() {
    let server = Server::start();
    let database = server.database().await;
    issuer(database.url()).await;
    for _ in 0..4 {
        let mut child = start(database.url());
        let mut stdout = child.stdout.take().unwrap();
        let mut said = Vec::new();
        let moment = Duration::from_millis(500 + unique() % 200);
        let _ = timeout(moment, stdout.read_to_end(&mut said)).await;
        server.stop_immediate().await;
        child.kill().await.unwrap();
        server.start_again().await;
    }
    check(database.url()).await;
}

#[tokio::test]
async fn a_change_whose_line_cannot_be_written_is_not_made() {
    let database = Server::shared().database().await;
    let folder = tempfile::tempdir().unwrap();
    let sqlite = format!("sqlite://{}/keys.db", folder.path().display());
    for url in [sqlite.as_str(), database.url()] {
        let issuer = issuer(url).await;
        let new = || NewKey::new("acme", Expiry::In(DAY));
        let key = issuer.issue(new()).await.unwrap().record;
        let refuse = if url.starts_with("sqlite") {
            "create trigger full before insert on api_key_events
            begin select raise(abort, 'the disk is full'); end"
        } else {
            "alter table api_key_events add constraint full_disk check (false) not valid"
        };
        run(url, refuse).await;
        for error in [
            issuer.issue(new()).await.unwrap_err(),
            issuer.rotate(key.id, Rotation::new()).await.unwrap_err(),
            issuer.update(key.id, KeyUpdate::new().is_active(false)).await.unwrap_err(),
            issuer.revoke(key.id, None).await.unwrap_err(),
            issuer.revoke_consumer("acme", None).await.unwrap_err(),
            issuer
                .import(vec![KeyImport::new(KeyHash::from_bytes([1; 32]), new())])
                .await
                .unwrap_err(),
            issuer.prune(SystemTime::UNIX_EPOCH + 100_000 * DAY, 10).await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), ManageErrorKind::Store, "{error}");
        }
        let left = keys(&issuer).await;
        let stored = left.get(&key.id).unwrap();
        assert_eq!((left.len(), stored.version, stored.revoked_at), (1, 1, None));
        assert_eq!(lives(&issuer).await[&key.id], [KeyAction::Issued]);
    }
}

async fn run(url: &str, sql: &'static str) {
    if url.starts_with("sqlite") {
        let store = SqliteKeyStore::connect(url).await.unwrap();
        sqlx::raw_sql(sql).execute(store.pool()).await.unwrap();
    } else {
        let store = PgKeyStore::connect(url).await.unwrap();
        sqlx::raw_sql(sql).execute(store.pool()).await.unwrap();
    }
}
