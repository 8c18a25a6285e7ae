//! Requests, look-ups and invalidations on separate threads: a response is never older than the
//! last invalidation before the request.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use serde_json::json;
use tokio::task::{JoinSet, yield_now};
use tower_api_key::{
    Authenticator,
    auth::CachePolicy,
    clock::ManualClock,
    key::KeyHash,
    manage::{Expiry, NewKey},
    record::{KeyRecord, Metadata},
    store::{KeyStore, StoreError, port::UsageBatch},
};

use crate::{
    app::{Keys, SECOND, format, text},
    wait::within,
};

const KEYS: usize = 48;
const READERS: usize = 16;
/// Of each reader, at least.
const REQUESTS: usize = 500;
/// How many look-ups there must be that may meet a change.
const LOOK_UPS: usize = 1_000;

/// The version of a key in the store, and the version announced to caches.
#[derive(Default)]
struct Version {
    stored: AtomicU64,
    told: AtomicU64,
}

/// Returns the version of a key in its metadata, with a delay between reading and returning it.
struct SlowStore {
    records: HashMap<KeyHash, (KeyRecord, Arc<Version>)>,
    finds: Arc<AtomicUsize>,
}

impl KeyStore for SlowStore {
    async fn find(&self, hash: &KeyHash) -> Result<Option<KeyRecord>, StoreError> {
        let find = self.finds.fetch_add(1, Ordering::SeqCst);
        let Some((record, version)) = self.records.get(hash) else { return Ok(None) };
        for _ in 0..find % 7 {
            yield_now().await;
        }
        let version = version.stored.load(Ordering::SeqCst);
        for _ in 0..find % 23 {
            yield_now().await;
        }
        let metadata = Metadata::new(&json!({ "version": version })).unwrap();
        let mut record = record.clone();
        record.metadata = metadata;
        Ok(Some(record))
    }

    async fn record_usage(&self, _: &UsageBatch) -> Result<(), StoreError> {
        Ok(())
    }
}

/// Some keys of the hot table share their slots: there are fewer slots than keys.
async fn stale_answers(is_forgetting: bool) -> usize {
    let keys = Keys::new();
    let finds = Arc::<AtomicUsize>::default();
    let (mut records, mut issued) = (HashMap::new(), Vec::new());
    for _ in 0..KEYS {
        let key = keys.issue(NewKey::new("acme", Expiry::Never)).await;
        let version = Arc::<Version>::default();
        records.insert(key.record.key_hash, (key.record.clone(), Arc::clone(&version)));
        issued.push((text(&key), key.record.key_hash, version));
    }
    let store = SlowStore { records, finds: Arc::clone(&finds) };
    let policy = CachePolicy::default().capacity(32).unknown_key_queries_per_second(u32::MAX);
    let policy = policy.load_deadline(SECOND * 30).unwrap();
    let (auth, _worker) =
        Authenticator::builder(store, format()).clock(ManualClock::default()).cache(policy).build();
    let issued = Arc::new(issued);
    let (stale, is_over) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());

    let mut readers = JoinSet::new();
    for reader in 0..READERS {
        let (auth, issued, stale) = (auth.clone(), Arc::clone(&issued), Arc::clone(&stale));
        let finds = Arc::clone(&finds);
        // On a busy machine, changes are few beside so many requests.
        let has_enough = move || is_forgetting || finds.load(Ordering::SeqCst) >= LOOK_UPS;
        readers.spawn(async move {
            for request in (0..).take_while(|request| *request < REQUESTS || !has_enough()) {
                // A few keys are used by all threads, the others by some.
                let at = if request % 2 == 0 { request % 4 } else { (request * 7 + reader) % KEYS };
                let (key, _, version) = &issued[at];
                let told = version.told.load(Ordering::SeqCst);
                let admission = auth.check(key.as_bytes()).await.unwrap();
                let metadata: serde_json::Value = admission.consumer().metadata().parse().unwrap();
                if metadata["version"].as_u64().unwrap() < told {
                    stale.fetch_add(1, Ordering::SeqCst);
                }
                if request % 16 == 0 {
                    yield_now().await;
                }
            }
        });
    }
    let mut changers = JoinSet::new();
    for changer in 0..2 {
        let (auth, issued, is_over) = (auth.clone(), Arc::clone(&issued), Arc::clone(&is_over));
        changers.spawn(async move {
            let mut change = changer;
            while !is_over.load(Ordering::SeqCst) {
                change += 2;
                let (_, hash, version) = &issued[change * 5 % KEYS];
                let now = version.stored.fetch_add(1, Ordering::SeqCst) + 1;
                match change % 64 {
                    _ if is_forgetting => {}
                    0 | 1 => auth.invalidate_all(),
                    _ => auth.invalidate(hash),
                }
                version.told.fetch_max(now, Ordering::SeqCst);
                yield_now().await;
            }
        });
    }
    within(async {
        while let Some(ended) = readers.join_next().await {
            ended.unwrap();
        }
    })
    .await;
    is_over.store(true, Ordering::SeqCst);
    while let Some(ended) = changers.join_next().await {
        ended.unwrap();
    }
    stale.load(Ordering::SeqCst)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_answer_is_older_than_what_was_invalidated_before_its_request() {
    assert_eq!(stale_answers(false).await, 0);
}

/// The control: the test would notice a stale entry.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn without_invalidations_answers_are_older() {
    assert!(stale_answers(true).await > 0);
}
