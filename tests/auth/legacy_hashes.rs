//! Keys that were imported with a slow or salted hash, and their first use.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use metrics_exporter_prometheus::PrometheusBuilder;
use pbkdf2::{pbkdf2_hmac_array, sha2::Sha256};
use serde_json::json;
use tokio::task::JoinSet;
use tower_api_key::{
    Authenticator,
    auth::{Builder, Event, RejectionKind, VerificationOutcome},
    clock::{Clock as _, ManualClock, SystemClock},
    key::{Alphabet, ApiKey, IdPart, ImportedFormat, InvalidFormat, KeyFormat, LegacyHash},
    manage::{
        Expiry, Imported, KeyImport, KeyIssuer, ManageError, ManageErrorKind, NewKey, Rotation,
    },
    record::{KeyAction, KeyId, KeyRecord},
    store::{
        EventQuery, ManageKeys, MemoryKeyStore, PgKeyStore, SqliteKeyStore,
        port::{LegacyHashes, MAX_KEYS_PER_HINT},
    },
    test_util::FaultStore,
};

use crate::{
    servers::postgres::{Database, Server},
    wait::{Deadline, eventually, within},
};

const HINT: usize = 8;
const SECOND: Duration = Duration::from_secs(1);

/// A key as another system made it: `randomBytes(32).toString('hex')`.
fn key() -> String {
    let random = KeyFormat::new("x_").unwrap().generate().unwrap().hash();
    random.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// As Django's hasher makes it, which takes `iterations` times half a microsecond.
fn hash_of(key: &str, iterations: u32) -> LegacyHash {
    let salt = &self::key()[..16];
    let hash = pbkdf2_hmac_array::<Sha256, 32>(key.as_bytes(), salt.as_bytes(), iterations);
    format!("pbkdf2_sha256${iterations}${salt}${}", STANDARD.encode(hash)).parse().unwrap()
}

fn new() -> NewKey {
    NewKey::new("acme", Expiry::Never)
}

fn import_of(key: &str) -> KeyImport {
    KeyImport::of_legacy_hash(hash_of(key, 1), new()).legacy_hint(&key[..HINT])
}

fn with_hint() -> ImportedFormat {
    ImportedFormat::new("", Alphabet::Hex, 64).unwrap().hint(HINT).unwrap()
}

fn without_hint() -> ImportedFormat {
    ImportedFormat::new("", Alphabet::Hex, 64).unwrap()
}

fn issued() -> KeyFormat {
    KeyFormat::new("sk_test_").unwrap()
}

fn builder<S: LegacyHashes + Clone>(store: &S, format: ImportedFormat) -> Builder {
    Authenticator::builder(store.clone(), issued()).accept(format).legacy_hashes(store.clone())
}

/// A node that verifies legacy hashes by a hint.
fn node<S: LegacyHashes + Clone>(store: &S) -> Authenticator {
    builder(store, with_hint()).build().0
}

fn issuer<S: ManageKeys + Clone>(store: &S) -> KeyIssuer {
    KeyIssuer::new(store.clone(), issued())
}

async fn import<S: ManageKeys + Clone>(store: &S, keys: Vec<KeyImport>) -> Imported {
    issuer(store).import(keys).await.unwrap()
}

/// The id of a new key with a legacy hash.
async fn imported<S: ManageKeys + Clone>(store: &S, key: &str) -> KeyId {
    import(store, vec![import_of(key)]).await.keys[0]
}

async fn kind(auth: &Authenticator, key: &str) -> Option<RejectionKind> {
    within(auth.check(key.as_bytes())).await.err().map(|rejection| rejection.kind())
}

async fn is_let_in(auth: &Authenticator, key: &str) {
    assert_eq!(kind(auth, key).await, None);
}

/// What the audit tells of the key, oldest first.
async fn actions<S: ManageKeys + Clone>(store: &S, id: KeyId) -> Vec<KeyAction> {
    let events = store.events(&EventQuery::new().key_id(id)).await.unwrap().events;
    events.into_iter().rev().map(|event| event.entry.action).collect()
}

async fn record<S: ManageKeys + Clone>(store: &S, id: KeyId) -> KeyRecord {
    store.get(id).await.unwrap().unwrap()
}

fn hash(key: &str) -> [u8; 32] {
    use sha2::Digest as _;

    Sha256::digest(key.as_bytes()).into()
}

macro_rules! on_every_store {
    ($($test:ident)*) => {
        mod memory {
            use super::*;

            $(#[tokio::test]
            async fn $test() {
                super::$test(MemoryKeyStore::new()).await;
            })*
        }

        mod sqlite {
            use super::*;

            $(#[tokio::test]
            async fn $test() {
                let folder = tempfile::tempdir().unwrap();
                let url = format!("sqlite://{}/keys.db", folder.path().display());
                let store = SqliteKeyStore::connect(&url).await.unwrap();
                store.migrate().await.unwrap();
                super::$test(store).await;
            })*
        }

        mod postgres {
            use super::*;

            $(#[tokio::test]
            async fn $test() {
                let (store, _database) = postgres_store().await;
                super::$test(store).await;
            })*
        }
    };
}

async fn postgres_store() -> (PgKeyStore, Database) {
    let database = Server::shared().database().await;
    let store = PgKeyStore::connect(database.url()).await.unwrap();
    store.migrate().await.unwrap();
    (store, database)
}

on_every_store! {
    a_key_is_moved_at_its_first_use
    a_key_without_a_hint_is_found_among_all_without_one
    keys_used_last_are_compared_first
    an_unknown_key_moves_none
    of_two_nodes_one_moves_the_key
    a_key_that_has_ended_is_refused_as_such
    a_key_that_was_not_used_yet_can_be_rotated_and_deleted
    an_import_can_be_repeated_before_and_after_the_first_use
    more_keys_of_one_hint_than_a_request_compares_are_refused
    a_store_that_is_down_moves_nothing
}

async fn a_key_is_moved_at_its_first_use<S: LegacyHashes + Clone>(store: S) {
    let key = key();
    let id = imported(&store, &key).await;
    let before = record(&store, id).await;
    assert_ne!(before.key_hash.as_bytes(), &hash(&key));
    assert_eq!(store.count_legacy_keys().await.unwrap(), 1);
    // Only where legacy hashes are verified.
    let other = Authenticator::builder(store.clone(), issued()).accept(with_hint()).build().0;
    assert_eq!(kind(&other, &key).await, Some(RejectionKind::Unknown));

    let auth = node(&store);
    let admission = within(auth.check(key.as_bytes())).await.unwrap();
    assert_eq!((admission.consumer().id(), admission.consumer().key_id()), ("acme", id));
    let after = record(&store, id).await;
    assert_eq!(after.key_hash.as_bytes(), &hash(&key));
    assert_eq!(after.version, before.version + 1);
    assert_eq!(store.count_legacy_keys().await.unwrap(), 0);
    assert_eq!(store.legacy_keys(Some(&key[..HINT]), 10).await.unwrap(), []);
    let event = store.events(&EventQuery::new().key_id(id)).await.unwrap().events.remove(0).entry;
    assert_eq!((event.action, &*event.actor), (KeyAction::Rehashed, "system"));
    assert_eq!(event.consumer_id.as_deref(), Some("acme"));
    let changes: serde_json::Value = serde_json::from_str(&event.changes.unwrap()).unwrap();
    assert_eq!(changes, json!({ "key_hash": { "from": "pbkdf2", "to": "sha256" } }));

    // From here on it is like any other key.
    is_let_in(&auth, &key).await;
    let another = Authenticator::builder(store.clone(), issued()).accept(with_hint()).build().0;
    is_let_in(&another, &key).await;
    assert_eq!(actions(&store, id).await, [KeyAction::Imported, KeyAction::Rehashed]);
}

async fn a_key_without_a_hint_is_found_among_all_without_one<S: LegacyHashes + Clone>(store: S) {
    let keys: Vec<_> = (0..5).map(|_| key()).collect();
    let without = |key: &String| KeyImport::of_legacy_hash(hash_of(key, 1), new());
    import(&store, keys.iter().map(without).collect()).await;
    let auth = builder(&store, without_hint()).build().0;
    for (moved, key) in keys.iter().enumerate() {
        assert_eq!(store.count_legacy_keys().await.unwrap(), 5 - moved as u64);
        is_let_in(&auth, key).await;
    }
    // A key with a hint is not among them.
    let key = key();
    imported(&store, &key).await;
    assert_eq!(kind(&auth, &key).await, Some(RejectionKind::Unknown));
}

async fn keys_used_last_are_compared_first<S: LegacyHashes + Clone>(store: S) {
    use std::time::SystemTime;

    let import_used = |seconds: Option<u64>| {
        let import = KeyImport::of_legacy_hash(hash_of(&key(), 1), new()).legacy_hint("hint");
        match seconds {
            Some(at) => import.last_used_at(SystemTime::UNIX_EPOCH + Duration::from_secs(at)),
            None => import,
        }
    };
    let times = [None, Some(5), Some(9), None, Some(7)];
    let ids = import(&store, times.map(import_used).into()).await.keys;
    let found = store.legacy_keys(Some("hint"), 4).await.unwrap();
    let found: Vec<_> = found.into_iter().map(|key| key.id).collect();
    assert_eq!(found[..3], [ids[2], ids[4], ids[1]]);
    assert_eq!(found.len(), 4);
    assert_eq!(store.legacy_keys(Some("hin"), 4).await.unwrap(), []);
    assert_eq!(store.legacy_keys(None, 4).await.unwrap(), []);
}

async fn an_unknown_key_moves_none<S: LegacyHashes + Clone>(store: S) {
    let key = key();
    let id = imported(&store, &key).await;
    let auth = node(&store);
    // With the hint of a key, and with none that exists.
    let rest = &self::key()[HINT..];
    for junk in [format!("{}{rest}", &key[..HINT]), self::key()] {
        assert_eq!(kind(&auth, &junk).await, Some(RejectionKind::Unknown), "{junk}");
    }
    assert_eq!(store.count_legacy_keys().await.unwrap(), 1);
    assert_eq!(actions(&store, id).await, [KeyAction::Imported]);
    is_let_in(&auth, &key).await;
}

async fn of_two_nodes_one_moves_the_key<S: LegacyHashes + Clone>(store: S) {
    let key = key();
    let import = KeyImport::of_legacy_hash(hash_of(&key, 20_000), new()).legacy_hint(&key[..HINT]);
    let id = self::import(&store, vec![import]).await.keys[0];
    let mut uses = JoinSet::new();
    for _ in 0..2 {
        let auth = node(&store);
        for _ in 0..8 {
            let (auth, key) = (auth.clone(), key.clone());
            uses.spawn(async move { is_let_in(&auth, &key).await });
        }
    }
    within(uses.join_all()).await;
    assert_eq!(actions(&store, id).await, [KeyAction::Imported, KeyAction::Rehashed]);
}

async fn a_key_that_has_ended_is_refused_as_such<S: LegacyHashes + Clone>(store: S) {
    let auth = node(&store);
    let revoked = key();
    let id = imported(&store, &revoked).await;
    issuer(&store).revoke(id, None).await.unwrap();
    assert_eq!(kind(&auth, &revoked).await, Some(RejectionKind::Revoked));
    assert_eq!(record(&store, id).await.key_hash.as_bytes(), &hash(&revoked));

    let inactive = key();
    import(&store, vec![import_of(&inactive).is_active(false)]).await;
    assert_eq!(kind(&auth, &inactive).await, Some(RejectionKind::Inactive));

    let expired = key();
    let now = record(&store, id).await.read_at;
    let soon = NewKey::new("acme", Expiry::At(now + SECOND));
    let import =
        KeyImport::of_legacy_hash(hash_of(&expired, 1), soon).legacy_hint(&expired[..HINT]);
    self::import(&store, vec![import]).await;
    eventually("the expiry", async || store.get(id).await.unwrap().unwrap().read_at > now + SECOND)
        .await;
    assert_eq!(kind(&auth, &expired).await, Some(RejectionKind::Expired));
    assert_eq!(store.count_legacy_keys().await.unwrap(), 0);
}

async fn a_key_that_was_not_used_yet_can_be_rotated_and_deleted<S: LegacyHashes + Clone>(store: S) {
    let auth = node(&store);
    let rotated = key();
    let id = imported(&store, &rotated).await;
    let successor: ApiKey = issuer(&store).rotate(id, Rotation::new()).await.unwrap().key;
    is_let_in(&auth, &rotated).await;
    is_let_in(&auth, successor.expose_secret()).await;

    let deleted = key();
    let id = imported(&store, &deleted).await;
    issuer(&store).revoke(id, None).await.unwrap();
    let now = record(&store, id).await.read_at;
    issuer(&store).prune(now + SECOND, 10).await.unwrap();
    assert_eq!(store.get(id).await.unwrap(), None);
    assert_eq!(store.count_legacy_keys().await.unwrap(), 0);
    assert_eq!(kind(&auth, &deleted).await, Some(RejectionKind::Unknown));
    // What was deleted is not recognized either.
    imported(&store, &deleted).await;
}

async fn an_import_can_be_repeated_before_and_after_the_first_use<S: LegacyHashes + Clone>(
    store: S,
) {
    let keys: Vec<_> = (0..3).map(|_| key()).collect();
    let batch: Vec<_> = keys.iter().map(|key| import_of(key)).collect();
    assert_eq!(import(&store, batch.clone()).await.keys.len(), 3);
    let again = import(&store, batch.clone()).await;
    assert_eq!((again.keys.len(), again.known), (0, 3));
    let auth = node(&store);
    is_let_in(&auth, &keys[0]).await;
    let further = key();
    let batch = batch.into_iter().chain([import_of(&further)]).collect();
    let again = import(&store, batch).await;
    assert_eq!((again.keys.len(), again.known), (1, 3));
    assert_eq!(store.count_legacy_keys().await.unwrap(), 3);
    for key in keys.iter().chain([&further]) {
        is_let_in(&auth, key).await;
    }
}

async fn more_keys_of_one_hint_than_a_request_compares_are_refused<S: LegacyHashes + Clone>(
    store: S,
) {
    let import_hinted = async |hints: Vec<Option<&str>>| -> Result<Imported, ManageError> {
        let of = |hint: Option<&str>| {
            let import = KeyImport::of_legacy_hash(hash_of(&key(), 1), new());
            match hint {
                Some(hint) => import.legacy_hint(hint),
                None => import,
            }
        };
        issuer(&store).import(hints.into_iter().map(of).collect()).await
    };
    for hint in [Some("one"), None] {
        import_hinted(vec![hint; MAX_KEYS_PER_HINT - 1]).await.unwrap();
        let left = store.count_legacy_keys().await.unwrap();
        let error = import_hinted(vec![Some("two"), hint, hint]).await.unwrap_err();
        assert_eq!((error.kind(), error.field()), (ManageErrorKind::Invalid, Some("legacy_hint")));
        assert!(error.to_string().contains("more than 64 keys"), "{error}");
        assert_eq!(store.count_legacy_keys().await.unwrap(), left);
        import_hinted(vec![Some("two"), hint]).await.unwrap();
        import_hinted(vec![hint]).await.unwrap_err();
    }
    for hint in ["", &"x".repeat(65), "a b", "ä"] {
        let error = import_hinted(vec![Some(hint)]).await.unwrap_err();
        assert_eq!(error.field(), Some("legacy_hint"), "{hint}");
    }
}

async fn a_store_that_is_down_moves_nothing<S: LegacyHashes + Clone>(store: S) {
    let key = key();
    let id = imported(&store, &key).await;
    let faults = FaultStore::new(store.clone(), ManualClock::default());
    let auth = Authenticator::builder(store.clone(), issued())
        .accept(with_hint())
        .legacy_hashes(faults.clone())
        .build()
        .0;
    faults.go_down();
    assert_eq!(kind(&auth, &key).await, Some(RejectionKind::StoreUnavailable));
    assert_eq!(actions(&store, id).await, [KeyAction::Imported]);
    faults.come_back();
    is_let_in(&auth, &key).await;
    assert_eq!(actions(&store, id).await, [KeyAction::Imported, KeyAction::Rehashed]);
}

// What of a key is the hint, and what was hashed.

#[tokio::test]
async fn the_id_of_a_key_is_its_hint_and_the_part_that_was_hashed_is_verified() {
    let id = || IdPart::fixed(Alphabet::Base62, 8, '.').unwrap();
    let secret = || ImportedFormat::new("", Alphabet::Hex, 64).unwrap();
    let whole = secret().with_id(id()).unwrap();
    let secret_only = whole.clone().hashes_secret_only();
    let key = key();
    let presented = format!("BRTRKFsL.{key}");
    for (format, hashed) in [(whole, &presented), (secret_only, &key)] {
        let store = MemoryKeyStore::new();
        let import = KeyImport::of_legacy_hash(hash_of(hashed, 1), new()).legacy_hint("BRTRKFsL");
        self::import(&store, vec![import]).await;
        // Nodes of their own: what they remember of a key is by its hash, which may be without the id.
        let node = || builder(&store, format.clone()).build().0;
        let of_another_id = format!("BRTRKFsM.{key}");
        assert_eq!(kind(&node(), &of_another_id).await, Some(RejectionKind::Unknown));
        is_let_in(&node(), &presented).await;
    }
}

#[test]
fn a_hint_leaves_128_bits_of_the_secret() {
    let format = || ImportedFormat::new("old_", Alphabet::Hex, 40).unwrap();
    assert!(format().hint(12).is_ok());
    assert_eq!(format().hint(13), Err(InvalidFormat::TooWeak));
    let uuid = || ImportedFormat::uuid("old_").unwrap();
    assert!(uuid().hint(4).is_ok());
    assert_eq!(uuid().hint(5), Err(InvalidFormat::TooWeak));
}

// One verification for all requests of a key.

#[derive(Clone, Default)]
struct Comparisons(Arc<Mutex<Vec<(VerificationOutcome, Duration)>>>);

impl Comparisons {
    fn observed(&self, builder: Builder) -> Authenticator {
        let seen = Arc::clone(&self.0);
        let observer = move |event: &Event<'_>| {
            if let Event::LegacyHashCompared { outcome, took, .. } = event {
                seen.lock().unwrap().push((*outcome, *took));
            }
        };
        builder.observer(observer).build().0
    }

    fn count(&self, outcome: VerificationOutcome) -> usize {
        self.0.lock().unwrap().iter().filter(|(seen, _)| *seen == outcome).count()
    }

    fn spent(&self) -> Duration {
        self.0.lock().unwrap().iter().map(|(_, took)| *took).sum()
    }
}

#[tokio::test]
async fn requests_for_one_key_share_its_verification() {
    let store = MemoryKeyStore::new();
    let key = key();
    let import = KeyImport::of_legacy_hash(hash_of(&key, 50_000), new()).legacy_hint(&key[..HINT]);
    self::import(&store, vec![import]).await;
    let comparisons = Comparisons::default();
    let auth = comparisons.observed(builder(&store, with_hint()));
    let mut uses = JoinSet::new();
    for _ in 0..100 {
        let (auth, key) = (auth.clone(), key.clone());
        uses.spawn(async move { is_let_in(&auth, &key).await });
    }
    within(uses.join_all()).await;
    assert_eq!(comparisons.count(VerificationOutcome::Matched), 1);
    assert_eq!(comparisons.0.lock().unwrap().len(), 1);
}

/// What unknown keys spend is bounded, a key that has moved does not notice, and one that has not
/// gets in when its client retries.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_junk_spends_no_more_than_its_budget() {
    let store = MemoryKeyStore::new();
    let hint = "0".repeat(HINT);
    let with_that_hint = |key: String| format!("{hint}{}", &key[HINT..]);
    // Sixty-four comparisons of a millisecond or two for every junk key.
    let keys: Vec<_> = (0..MAX_KEYS_PER_HINT).map(|_| with_that_hint(key())).collect();
    let slow = |key: &String| {
        KeyImport::of_legacy_hash(hash_of(key, 2000), new()).legacy_hint(hint.clone())
    };
    import(&store, keys.iter().map(slow).collect()).await;
    let comparisons = Comparisons::default();
    let auth = comparisons.observed(builder(&store, with_hint()));
    let moved = &keys[0];
    is_let_in(&auth, moved).await;
    let before = comparisons.spent();

    let clock = SystemClock::new();
    let begun = clock.monotonic();
    let elapsed = || clock.monotonic() - begun;
    let rejected = || comparisons.count(VerificationOutcome::Overloaded);
    let deadline = Deadline::of("keys that are rejected");
    while rejected() < 200 || elapsed() < 2 * SECOND {
        deadline.check();
        let _ = kind(&auth, &with_that_hint(key())).await;
        is_let_in(&auth, moved).await;
    }
    let (spent, took) = (comparisons.spent() - before, elapsed());
    // A quarter of a core for keys that come once, a burst of a second, and the 64 comparisons of
    // the keys that were admitted last.
    let count = |number: usize| u32::try_from(number).unwrap();
    let compared = count(comparisons.count(VerificationOutcome::NotMatched));
    let one_key = spent / compared * count(MAX_KEYS_PER_HINT);
    let cores = count(std::thread::available_parallelism().unwrap().get());
    assert!(spent <= SECOND + took / 4 + one_key * cores, "{spent:?} in {took:?}");

    // The budget of ever new keys is spent. A key that is retried has its own.
    let good = &keys[1];
    assert_eq!(kind(&auth, good).await, Some(RejectionKind::Overloaded));
    is_let_in(&auth, good).await;
}

// Keys that are left.

#[tokio::test]
async fn once_no_key_is_left_nothing_is_queried_until_one_is_imported() {
    let store = MemoryKeyStore::new();
    let faults = FaultStore::new(store.clone(), ManualClock::default());
    let (auth, worker) = Authenticator::builder(store.clone(), issued())
        .accept(with_hint())
        .legacy_hashes(faults.clone())
        .build();
    assert_eq!(kind(&auth, &key()).await, Some(RejectionKind::Unknown));
    assert_eq!(faults.operations(), 1, "not counted yet");
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let worker = tokio::spawn(worker.run(async { _ = stopped.await }));
    eventually("the count", async || faults.operations() == 2).await;
    eventually("a key for which nothing is queried", async || {
        let before = faults.operations();
        assert_eq!(kind(&auth, &key()).await, Some(RejectionKind::Unknown));
        faults.operations() == before
    })
    .await;
    let key = key();
    let issuer = auth.issuer(store.clone());
    issuer.import(vec![import_of(&key)]).await.unwrap();
    is_let_in(&auth, &key).await;
    stop.send(()).unwrap();
    within(worker).await.unwrap();
}

#[tokio::test]
async fn a_key_that_bcrypt_would_cut_never_matches() {
    // bcrypt 5.0.0 of PyPI, of 72 times `k`.
    const HASH: &str = "$2b$04$6oBaxMdHP4rReEK0FZxS2OzbUqhifnfJrJooVgDYagXhJZGzFr87.";
    let store = MemoryKeyStore::new();
    let import = KeyImport::of_legacy_hash(HASH.parse().unwrap(), new());
    self::import(&store, vec![import]).await;
    let of_length = |length| ImportedFormat::new("", Alphabet::Base62, length).unwrap();
    let auth = builder(&store, of_length(73)).accept(of_length(72)).build().0;
    assert_eq!(kind(&auth, &"k".repeat(73)).await, Some(RejectionKind::Unknown));
    is_let_in(&auth, &"k".repeat(72)).await;
}

#[tokio::test]
async fn comparisons_and_the_keys_that_are_left_are_counted() {
    let store = MemoryKeyStore::new();
    let (key, left) = (key(), key());
    import(&store, vec![import_of(&key), import_of(&left)]).await;
    let recorder = PrometheusBuilder::new().build_recorder();
    let make = || builder(&store, with_hint()).build();
    let (auth, worker) = metrics::with_local_recorder(&recorder, make);
    let text = || {
        metrics::with_local_recorder(&recorder, || auth.refresh_metrics());
        recorder.handle().render()
    };
    is_let_in(&auth, &key).await;
    let junk = format!("{}{}", &left[..HINT], &key[HINT..]);
    assert_eq!(kind(&auth, &junk).await, Some(RejectionKind::Unknown));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let worker = tokio::spawn(worker.run(async { _ = stopped.await }));
    eventually("the count", async || text().contains("api_key_legacy_hashes_left 1")).await;
    for sample in [
        r#"api_key_legacy_verifications_total{outcome="matched"} 1"#,
        r#"api_key_legacy_verifications_total{outcome="not_matched"} 1"#,
        r#"api_key_legacy_verifications_total{outcome="overloaded"} 0"#,
        "api_key_legacy_verification_seconds_count 2",
    ] {
        assert!(text().contains(sample), "{sample}: {}", text());
    }
    stop.send(()).unwrap();
    within(worker).await.unwrap();
}

#[tokio::test]
async fn every_key_of_another_format_is_left_alone() {
    let store = MemoryKeyStore::new();
    let faults = FaultStore::new(store.clone(), ManualClock::default());
    let auth = Authenticator::builder(store.clone(), issued())
        .accept(with_hint())
        .legacy_hashes(faults.clone())
        .build()
        .0;
    let issued: BTreeSet<_> =
        (0..3).map(|_| issued().generate().unwrap().expose_secret().to_owned()).collect();
    for key in issued {
        assert_eq!(kind(&auth, &key).await, Some(RejectionKind::Unknown));
    }
    assert_eq!(kind(&auth, "junk").await, Some(RejectionKind::Malformed));
    assert_eq!(faults.operations(), 0);
}
