//! The memory of a cached key, from the growth of the process.
//!
//! Each case is a process of its own, so that no other case has used its memory before.

use std::{
    env,
    io::{self, BufRead, Write},
    process::{self, Command, Stdio},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tower_api_key::{
    Authenticator,
    auth::CachePolicy,
    key::{KeyFormat, KeyHash},
    rate_limit::{Quota, RateLimits},
    record::{KeyId, KeyRecord, Scopes},
    store::{KeyStore, PgKeyStore, StoreError},
};

use crate::{Result, machine::resident, setting::Setting};

/// The store and the limits of each case: a bucket is part of the memory of a key.
const MADE_UP: &str = "records made up";
const MADE_UP_LIMITED: &str = "records made up, a quota";
const POSTGRES: &str = "records of PostgreSQL";
/// Concurrent look-ups, for PostgreSQL.
const AT_ONCE: usize = 64;

#[derive(Serialize, Deserialize)]
pub(crate) struct Row {
    case: String,
    keys: usize,
    resident_bytes: i64,
    /// Bytes allocated and not freed, if one thread does all the work.
    allocated_bytes: Option<i64>,
}

/// Has a record for every key and stores none.
struct MadeUp(Scopes);

impl KeyStore for MadeUp {
    async fn find(&self, hash: &KeyHash) -> std::result::Result<Option<KeyRecord>, StoreError> {
        let [half, _] = hash.as_bytes().as_chunks().0 else { return Ok(None) };
        let id = KeyId::from_bytes(*half);
        let consumer = format!("consumer-{:06}", id.as_u128() % 1_000_000);
        let mut record = KeyRecord::new(id, *hash, consumer, SystemTime::now());
        record.key_prefix = "sk_live_".into();
        record.key_last4 = "abcd".into();
        record.name = Some("nightly export".into());
        // Parsed anew, as from a row: no two records share their scopes.
        record.scopes =
            Scopes::parse(self.0.iter().map(|scope| scope.as_str().to_owned())).unwrap_or_default();
        Ok(Some(record))
    }
}

pub(crate) fn measure(setting: &Setting, keys: usize) -> Result<Vec<Row>> {
    println!("\n# Memory of a cached key\n");
    println!("{:<28} {:>9} {:>12} {:>13}", "", "keys", "resident, B", "allocated, B");
    let mut rows = Vec::new();
    for case in [MADE_UP, MADE_UP_LIMITED, POSTGRES] {
        let mut child = Command::new(env::current_exe()?)
            .args(["memory", case, &keys.to_string()])
            .env("DATABASE_URL", setting.url())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        if let (POSTGRES, Some(stdin)) = (case, &mut child.stdin) {
            for key in &setting.known {
                writeln!(stdin, "{}", key.expose_secret())?;
            }
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            return Err(format!("memory of {case}: {}", output.status).into());
        }
        let row: Row = serde_json::from_slice(&output.stdout)?;
        let allocated = row.allocated_bytes.map_or_else(|| "-".into(), |bytes| bytes.to_string());
        println!("{case:<28} {:>9} {:>12} {allocated:>13}", row.keys, row.resident_bytes);
        rows.push(row);
    }
    Ok(rows)
}

/// Prints the bytes per key as JSON.
pub(crate) fn report(case: &str, keys: &str) -> Result<()> {
    let row = match case {
        POSTGRES => of_postgres(case)?,
        _ => of_made_up(case, keys.parse()?)?,
    };
    println!("{}", serde_json::to_string(&row)?);
    Ok(())
}

fn authenticator(store: impl KeyStore, limits: RateLimits) -> Result<Authenticator> {
    let (auth, worker) = Authenticator::builder(store, KeyFormat::new("sk_live_")?)
        .default_rate_limits(limits)
        .cache(CachePolicy::default().capacity(u64::MAX))
        .build();
    drop(worker);
    Ok(auth)
}

/// Look-ups one after the other, on one thread.
fn of_made_up(case: &str, keys: usize) -> Result<Row> {
    let format = KeyFormat::new("sk_live_")?;
    let limits = match case {
        MADE_UP_LIMITED => Quota::per_minute(600)?.into(),
        _ => RateLimits::unlimited(),
    };
    let store = MadeUp(Scopes::parse(["orders:read", "orders:write"])?);
    let auth = authenticator(store, limits)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let authenticate = async |count: usize| -> Result<()> {
        for _ in 0..count {
            auth.check(format.generate()?.expose_secret().as_bytes()).await?;
        }
        Ok(())
    };
    // The first keys also allocate memory that belongs to no key.
    runtime.block_on(authenticate(1_000))?;
    let before = resident(process::id())?;
    let mut outcome = Ok(());
    let allocated = allocation_counter::measure(|| outcome = runtime.block_on(authenticate(keys)));
    outcome?;
    Row::new(case, keys, before, Some(allocated.bytes_current))
}

/// As in a server: many look-ups at once, on all threads, without buckets.
fn of_postgres(case: &str) -> Result<Row> {
    let keys: Vec<String> = io::stdin().lock().lines().collect::<io::Result<_>>()?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let store = PgKeyStore::connect(&env::var("DATABASE_URL")?).await?;
        let auth = authenticator(store, RateLimits::unlimited())?;
        let (first, others) = keys.split_at(1_000.min(keys.len()));
        authenticate(&auth, first).await?;
        let before = resident(process::id())?;
        authenticate(&auth, others).await?;
        Row::new(case, others.len(), before, None)
    })
}

async fn authenticate(auth: &Authenticator, keys: &[String]) -> Result<()> {
    let mut tasks = JoinSet::new();
    for part in keys.chunks(keys.len().div_ceil(AT_ONCE).max(1)) {
        let (auth, keys) = (auth.clone(), part.to_vec());
        tasks.spawn(async move {
            for key in keys {
                auth.check(key.as_bytes()).await?;
            }
            Ok::<_, tower_api_key::auth::Rejection>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

impl Row {
    fn new(case: &str, keys: usize, before: u64, allocated: Option<i64>) -> Result<Self> {
        let each = |bytes: i64| bytes / i64::try_from(keys.max(1)).unwrap_or(i64::MAX);
        let after = resident(process::id())?;
        Ok(Self {
            case: case.into(),
            keys,
            resident_bytes: each(i64::try_from(after)? - i64::try_from(before)?),
            allocated_bytes: allocated.map(each),
        })
    }
}
