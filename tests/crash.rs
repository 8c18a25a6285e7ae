//! A process that is killed during a change leaves either all of it, with its line in the audit, or
//! nothing.

#![cfg(test)]
#![cfg(all(feature = "legacy-hashes", feature = "postgres", feature = "sqlite"))]

#[path = "support/servers/mod.rs"]
mod servers;
#[path = "support/wait/mod.rs"]
mod wait;

use std::{
    collections::BTreeMap,
    env,
    process::Stdio,
    time::{Duration, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use pbkdf2::{pbkdf2_hmac_array, sha2::Sha256};
use serde_json::Value;
use tokio::{
    io::AsyncReadExt,
    process::{Child, ChildStdout, Command},
    time::timeout,
};
use tower_api_key::{
    Authenticator,
    auth::CachePolicy,
    clock::{Clock, SystemClock},
    key::{Alphabet, ImportedFormat, KeyFormat, KeyHash},
    manage::{Expiry, KeyImport, KeyIssuer, KeyUpdate, ManageErrorKind, NewKey, Rotation},
    record::{KeyAction, KeyId, KeyRecord},
    store::{EventQuery, KeyQuery, PgKeyStore, SqliteKeyStore},
};

use crate::servers::{postgres::Server, unique};
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

/// The line that a process prints for each round, unlike any of the test framework's.
const ROUND: u8 = b'+';
const NEW_KEYS_OF_A_ROUND: usize = 7;

/// Changes keys until killed, and prints a byte after each round.
async fn change_keys(url: &str) {
    use std::io::Write;

    let (issuer, clock) = (issuer(url).await, SystemClock::new());
    // A concurrent process ends none of these keys.
    let consumer = format!("consumer-{:016x}", unique());
    let new = || NewKey::new(&*consumer, Expiry::In(DAY));
    for round in 0_u64.. {
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
        if round == 0 || unique().is_multiple_of(4) {
            issuer.revoke_consumer(&consumer, None).await.unwrap();
            issuer.prune(clock.now(), 3).await.unwrap();
        } else {
            issuer.revoke(second.id, None).await.unwrap();
        }
        let mut stdout = std::io::stdout();
        stdout.write_all(&[ROUND]).unwrap();
        stdout.flush().unwrap();
    }
}

fn start(url: &str) -> Child {
    start_as("a_process_that_is_killed_leaves_whole_changes", url)
}

/// A process of this binary that runs `test`, which then is not the test but what is killed.
fn start_as(test: &str, url: &str) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(DATABASE, url)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// The completed rounds of a process, as it prints them.
struct Rounds {
    stdout: ChildStdout,
    completed: usize,
}

impl Rounds {
    fn of(child: &mut Child) -> Self {
        Self { stdout: child.stdout.take().unwrap(), completed: 0 }
    }

    /// Reads more. False at the end.
    async fn read(&mut self) -> bool {
        let mut bytes = [0; 256];
        let read = self.stdout.read(&mut bytes).await.unwrap();
        self.completed += bytes[..read].iter().filter(|byte| **byte == ROUND).count();
        read > 0
    }

    async fn read_to_end(&mut self) {
        while self.read().await {}
    }
}

/// Lets a process change keys for a moment, and kills it. Returns how many rounds it completed.
async fn kill_one(url: &str) -> usize {
    kill(start(url)).await
}

async fn kill(mut child: Child) -> usize {
    let mut rounds = Rounds::of(&mut child);
    let first = async {
        while rounds.completed == 0 {
            assert!(rounds.read().await, "the process ended by itself");
        }
    };
    timeout(PATIENCE, first).await.unwrap();
    // At a random moment of a change.
    let moment = Duration::from_micros(unique() % 30_000);
    let _ = timeout(moment, rounds.read_to_end()).await;
    child.kill().await.unwrap();
    timeout(PATIENCE, rounds.read_to_end()).await.unwrap();
    rounds.completed
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

/// The history of a key, from the audit.
#[derive(Debug, Default)]
struct Life {
    /// Oldest first.
    actions: Vec<KeyAction>,
    /// The key that this one replaced.
    rotated_from: Option<KeyId>,
}

impl Life {
    fn count(&self, action: KeyAction) -> usize {
        self.actions.iter().filter(|done| **done == action).count()
    }
}

async fn lives(issuer: &KeyIssuer) -> BTreeMap<KeyId, Life> {
    let mut lives = BTreeMap::<_, Life>::new();
    let mut query = EventQuery::new().limit(1000);
    let deadline = Deadline::of("the last page of the audit");
    loop {
        deadline.check();
        let page = issuer.events(&query).await.unwrap();
        for event in page.events {
            let life = lives.entry(event.entry.key_id.unwrap()).or_default();
            life.actions.insert(0, event.entry.action);
            if event.entry.action == KeyAction::Issued {
                let changes: Value = serde_json::from_str(&event.entry.changes.unwrap()).unwrap();
                let rotated_from = changes["rotated_from"]["to"].as_str();
                life.rotated_from = rotated_from.map(|id| id.parse().unwrap());
            }
        }
        match page.next {
            Some(next) => query = query.after(next),
            None => return lives,
        }
    }
}

/// Checks that every change has its line, and every line its change. `processes` have made them,
/// and completed this many `rounds`.
async fn check(url: &str, processes: usize, rounds: usize) {
    let issuer = issuer(url).await;
    let (keys, lives) = (keys(&issuer).await, lives(&issuer).await);
    assert!(keys.len() > 100, "{} keys are not much of a test", keys.len());

    // Every confirmed change is there, and one round of each process may be partial.
    let (least, most) = (NEW_KEYS_OF_A_ROUND * rounds, NEW_KEYS_OF_A_ROUND * (rounds + processes));
    assert!((least..=most).contains(&lives.len()), "{least} to {most} keys, not {}", lives.len());
    for action in [
        KeyAction::Issued,
        KeyAction::Imported,
        KeyAction::Updated,
        KeyAction::Rotated,
        KeyAction::Revoked,
        KeyAction::Pruned,
    ] {
        assert!(lives.values().any(|life| life.count(action) > 0), "no key was {action:?}");
    }

    let replaced: BTreeMap<KeyId, KeyId> =
        lives.iter().filter_map(|(id, life)| Some((life.rotated_from?, *id))).collect();
    let replacements = lives.values().filter(|life| life.rotated_from.is_some()).count();
    assert_eq!(replaced.len(), replacements, "a key was replaced twice");
    for (id, life) in &lives {
        let actions = &life.actions;
        assert!(matches!(actions[0], KeyAction::Issued | KeyAction::Imported), "{id}: {actions:?}");
        let made = life.count(KeyAction::Issued) + life.count(KeyAction::Imported);
        assert_eq!(made, 1, "{id}: {actions:?}");
        // The line of a rotation and that of the new key are one change.
        let replacement = usize::from(replaced.contains_key(id));
        assert_eq!(life.count(KeyAction::Rotated), replacement, "{id}: {actions:?}");
        assert!(life.count(KeyAction::Revoked) <= 1, "{id}: {actions:?}");
        // The key exists, or it was pruned and has no later line.
        let pruned = usize::from(!keys.contains_key(id));
        assert_eq!(life.count(KeyAction::Pruned), pruned, "{id}: {actions:?}");
        assert!(pruned == 0 || actions.last() == Some(&KeyAction::Pruned), "{id}: {actions:?}");
    }
    for (id, key) in &keys {
        let life = lives.get(id).unwrap_or_else(|| panic!("{id} came from nowhere"));
        assert_eq!(life.count(KeyAction::Revoked), usize::from(key.revoked_at.is_some()), "{id}");
        assert_eq!(life.count(KeyAction::Rotated), usize::from(key.rotated_at.is_some()), "{id}");
        assert_eq!(
            life.count(KeyAction::Updated),
            usize::from(key.name.is_some() && key.rotated_from.is_none()),
            "{id}"
        );
        assert_eq!(key.rotated_from, life.rotated_from, "{id}");
        assert_eq!(key.version, life.actions.len() as u64, "{id}: {life:?}");
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
        // Two concurrent processes, so that they wait for each other.
        issuer(url).await;
        let mut rounds = 0;
        for _ in 0..15 {
            let (first, second) = tokio::join!(kill_one(url), kill_one(url));
            rounds += first + second;
        }
        check(url, 30, rounds).await;
    }
}

#[tokio::test]
async fn a_database_that_is_killed_keeps_whole_changes() {
    let server = Server::start();
    let database = server.database().await;
    issuer(database.url()).await;
    let mut rounds = 0;
    for _ in 0..4 {
        let mut child = start(database.url());
        let mut of_child = Rounds::of(&mut child);
        let begun = async {
            while of_child.completed < 8 {
                assert!(of_child.read().await, "the process ended by itself");
            }
        };
        timeout(PATIENCE, begun).await.unwrap();
        let moment = Duration::from_millis(unique() % 200);
        let _ = timeout(moment, of_child.read_to_end()).await;
        server.stop_immediate().await;
        child.kill().await.unwrap();
        timeout(PATIENCE, of_child.read_to_end()).await.unwrap();
        rounds += of_child.completed;
        server.start_again().await;
    }
    check(database.url(), 4, rounds).await;
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
        assert_eq!(lives(&issuer).await[&key.id].actions, [KeyAction::Issued]);
    }
}

const USES_KEYS: &str = "a_process_that_is_killed_while_it_moves_keys_leaves_keys_that_work";

/// What verifies legacy hashes of 64 hexadecimal digits, of which eight are the hint.
async fn authenticator(url: &str) -> Authenticator {
    let format = ImportedFormat::new("", Alphabet::Hex, 64).unwrap().hint(8).unwrap();
    let issued = KeyFormat::new("sk_test_").unwrap();
    let builder = if url.starts_with("sqlite") {
        let store = SqliteKeyStore::connect(url).await.unwrap();
        Authenticator::builder(store.clone(), issued).legacy_hashes(store)
    } else {
        let store = PgKeyStore::connect(url).await.unwrap();
        Authenticator::builder(store.clone(), issued).legacy_hashes(store)
    };
    // On a busy machine a request waits rather than fail, however many keys come at once.
    let policy = CachePolicy::default().unknown_key_queries_per_second(u32::MAX);
    let policy = policy.load_deadline(Duration::from_secs(20)).unwrap();
    builder.accept(format).cache(policy).build().0
}

/// Imports keys and uses each for the first time until killed. Each has its key as its name.
async fn use_imported_keys(url: &str) {
    use std::io::Write;

    let (issuer, auth) = (issuer(url).await, authenticator(url).await);
    let consumer = format!("consumer-{:016x}", unique());
    loop {
        let key = format!("{:016x}", unique()).repeat(4);
        let salt = format!("{:016x}", unique());
        let hash = pbkdf2_hmac_array::<Sha256, 32>(key.as_bytes(), salt.as_bytes(), 1);
        let hash = format!("pbkdf2_sha256$1${salt}${}", STANDARD.encode(hash));
        let new = NewKey::new(&*consumer, Expiry::In(DAY)).name(&*key);
        let import = KeyImport::of_legacy_hash(hash.parse().unwrap(), new);
        issuer.import(vec![import.legacy_hint(&key[..8])]).await.unwrap();
        auth.check(key.as_bytes()).await.unwrap();
        let mut stdout = std::io::stdout();
        stdout.write_all(&[ROUND]).unwrap();
        stdout.flush().unwrap();
    }
}

#[tokio::test]
async fn a_process_that_is_killed_while_it_moves_keys_leaves_keys_that_work() {
    if let Ok(url) = env::var(DATABASE) {
        use_imported_keys(&url).await;
    }
    let folder = tempfile::tempdir().unwrap();
    let sqlite = format!("sqlite://{}/keys.db", folder.path().display());
    let database = Server::shared().database().await;
    for url in [&sqlite, database.url()] {
        let issuer = issuer(url).await;
        let mut rounds = 0;
        for _ in 0..10 {
            let start = || start_as(USES_KEYS, url);
            let (first, second) = tokio::join!(kill(start()), kill(start()));
            rounds += first + second;
        }
        let (auth, keys) = (authenticator(url).await, keys(&issuer).await);
        assert!((rounds..=rounds + 20).contains(&keys.len()), "{} of {rounds}", keys.len());
        let killed = lives(&issuer).await;
        for (id, record) in keys {
            let key = record.name.unwrap();
            let admission = auth.check(key.as_bytes()).await;
            let admission = admission.unwrap_or_else(|error| panic!("{id} does not work: {error}"));
            assert_eq!(admission.consumer().key_id(), id);
            // Before and after: never a hash without its line, nor a line without its hash.
            let was_moved = record.key_hash.as_bytes() == sha256(&key).as_slice();
            assert_eq!(killed[&id].count(KeyAction::Rehashed), usize::from(was_moved), "{id}");
        }
        for (id, life) in lives(&issuer).await {
            assert_eq!(life.actions, [KeyAction::Imported, KeyAction::Rehashed], "{id}");
        }
    }
}

fn sha256(key: &str) -> Vec<u8> {
    use sha2::Digest as _;

    Sha256::digest(key.as_bytes()).to_vec()
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
