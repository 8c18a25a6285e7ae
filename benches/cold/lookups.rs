//! Latency and throughput of look-ups, compared with the cheapest query.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde::Serialize;
use sqlx::{query, query_scalar};
use tokio::{sync::Barrier, task::JoinSet};
use tower_api_key::{
    Authenticator,
    store::{KeyStore, PgKeyStore},
};

use crate::{Result, setting::Setting, stats::median};

const SLICE: Duration = Duration::from_secs(1);
const CONCURRENCY: [usize; 3] = [1, 16, 64];

/// The query, cheapest first.
#[derive(Clone, Copy)]
enum Case {
    SelectOne,
    Query,
    Find,
    Authenticate,
}

const CASES: [(Case, &str); 4] = [
    (Case::SelectOne, "select 1"),
    (Case::Query, "three columns of the key's row, by its hash"),
    (Case::Find, "PgKeyStore::find"),
    (Case::Authenticate, "Authenticator::check"),
];

const QUERY: &str = "select consumer_id, name, scopes from api_keys where key_hash = $1";

/// Medians over the rounds.
#[derive(Serialize)]
pub(crate) struct Row {
    case: &'static str,
    concurrency: usize,
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
    /// Relative to `select 1`, in look-ups per second of the same round.
    share_of_select_one: f64,
}

#[derive(Clone, Copy)]
struct Round {
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
}

pub(crate) async fn measure(setting: &Setting, rounds: usize) -> Result<Vec<Row>> {
    println!("\n# Look-ups\n");
    println!(
        "{:<45} {:>6} {:>9} {:>9} {:>9} {:>12}",
        "", "at once", "a second", "p50 us", "p99 us", "of select 1"
    );
    let mut rows = Vec::new();
    for concurrency in CONCURRENCY {
        let mut of_case = [const { Vec::new() }; CASES.len()];
        for _ in 0..rounds {
            for ((case, _), rounds) in CASES.iter().zip(&mut of_case) {
                rounds.push(run(setting, *case, concurrency).await?);
            }
        }
        let [floor, ..] = &of_case;
        for ((_, case), rounds) in CASES.iter().zip(&of_case) {
            let of = |of: fn(&Round) -> f64| median(rounds.iter().map(of).collect());
            let shares = rounds.iter().zip(floor).map(|(a, b)| a.per_second / b.per_second);
            let row = Row {
                case,
                concurrency,
                per_second: of(|round| round.per_second),
                p50_us: of(|round| round.p50_us),
                p99_us: of(|round| round.p99_us),
                share_of_select_one: median(shares.collect()),
            };
            println!(
                "{case:<45} {concurrency:>6} {:>9.0} {:>9.0} {:>9.0} {:>11.0}%",
                row.per_second,
                row.p50_us,
                row.p99_us,
                row.share_of_select_one * 100.0
            );
            rows.push(row);
        }
    }
    Ok(rows)
}

/// `concurrency` tasks, until time is up or every known key was looked up.
async fn run(setting: &Setting, case: Case, concurrency: usize) -> Result<Round> {
    let store = setting.store.clone();
    // A new authenticator, with an empty cache.
    let (auth, worker) = Authenticator::builder(store.clone(), setting.format.clone()).build();
    drop(worker);
    let keys = |task| {
        let keys = setting.known.iter().skip(task).step_by(concurrency);
        keys.map(|key| key.expose_secret().to_owned()).collect::<Vec<_>>()
    };
    let barrier = Arc::new(Barrier::new(concurrency));
    let refused = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for keys in (0..concurrency).map(keys) {
        let (store, auth) = (store.clone(), auth.clone());
        let (barrier, refused) = (Arc::clone(&barrier), Arc::clone(&refused));
        tasks.spawn(async move {
            barrier.wait().await;
            let begin = Instant::now();
            let mut times = Vec::with_capacity(keys.len());
            for key in keys {
                let asked = Instant::now();
                if !ask(case, &store, &auth, key.as_bytes()).await {
                    refused.fetch_add(1, Ordering::Relaxed);
                }
                times.push(asked.elapsed());
                if begin.elapsed() > SLICE {
                    break;
                }
            }
            (times, begin.elapsed())
        });
    }
    let mut per_second = 0.0;
    let mut all = Vec::new();
    while let Some(task) = tasks.join_next().await {
        let (times, time) = task?;
        per_second += times.len() as f64 / time.as_secs_f64();
        all.extend(times);
    }
    match refused.load(Ordering::Relaxed) {
        0 => {}
        refused => return Err(format!("{refused} look-ups found nothing").into()),
    }
    all.sort_unstable();
    let at = |percent| all.get(all.len() * percent / 100).map_or(f64::NAN, micros);
    Ok(Round { per_second, p50_us: at(50), p99_us: at(99) })
}

fn micros(time: &Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// Whether it found what it looked for.
async fn ask(case: Case, store: &PgKeyStore, auth: &Authenticator, key: &[u8]) -> bool {
    match case {
        Case::SelectOne => {
            let one = query_scalar::<_, i32>("select 1").fetch_one(store.pool()).await;
            one.is_ok_and(|one| one == 1)
        }
        Case::Query => {
            let row = query(QUERY).bind(hash(key).as_slice()).fetch_optional(store.pool()).await;
            row.is_ok_and(|row| row.is_some())
        }
        Case::Find => {
            let found = store.find(&tower_api_key::key::KeyHash::from_bytes(hash(key))).await;
            found.is_ok_and(|record| record.is_some())
        }
        Case::Authenticate => auth.check(key).await.is_ok(),
    }
}

fn hash(key: &[u8]) -> [u8; 32] {
    use sha2::Digest as _;
    sha2::Sha256::digest(key).into()
}
