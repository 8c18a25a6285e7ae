//! A thousand concurrent requests for one uncached key.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use serde::Serialize;
use tokio::{sync::Barrier, task::JoinSet};
use tower_api_key::{
    Authenticator,
    key::KeyHash,
    record::KeyRecord,
    store::{KeyStore, PgKeyStore, StoreError},
};

use crate::{Result, setting::Setting, stats::median};

const HERD: usize = 1_000;

#[derive(Serialize)]
pub(crate) struct Herd {
    requests: usize,
    /// Queries in each round.
    queries: Vec<usize>,
    /// Time until the last response: the median over the rounds.
    milliseconds: f64,
}

/// Each `find` is one query.
struct Counting {
    store: PgKeyStore,
    queries: Arc<AtomicUsize>,
}

impl KeyStore for Counting {
    async fn find(&self, hash: &KeyHash) -> std::result::Result<Option<KeyRecord>, StoreError> {
        self.queries.fetch_add(1, Ordering::Relaxed);
        self.store.find(hash).await
    }
}

pub(crate) async fn measure(setting: &Setting, rounds: usize) -> Result<Herd> {
    let (mut all_queries, mut times) = (Vec::new(), Vec::new());
    for key in setting.known.iter().take(rounds) {
        let queries = Arc::new(AtomicUsize::new(0));
        let store = Counting { store: setting.store.clone(), queries: Arc::clone(&queries) };
        let (auth, worker) = Authenticator::builder(store, setting.format.clone()).build();
        drop(worker);
        let barrier = Arc::new(Barrier::new(HERD + 1));
        let mut tasks = JoinSet::new();
        for _ in 0..HERD {
            let (auth, barrier) = (auth.clone(), Arc::clone(&barrier));
            let key = key.expose_secret().to_owned();
            tasks.spawn(async move {
                barrier.wait().await;
                auth.check(key.as_bytes()).await.is_ok()
            });
        }
        barrier.wait().await;
        let begin = Instant::now();
        while let Some(admitted) = tasks.join_next().await {
            if !admitted? {
                return Err("one of the herd was turned away".into());
            }
        }
        times.push(begin.elapsed().as_secs_f64() * 1e3);
        all_queries.push(queries.load(Ordering::Relaxed));
    }
    let herd = Herd { requests: HERD, queries: all_queries, milliseconds: median(times) };
    println!("\n# A herd of {HERD} requests for one key\n");
    println!("queries: {:?}; all answered after {:.1} ms", herd.queries, herd.milliseconds);
    Ok(herd)
}
