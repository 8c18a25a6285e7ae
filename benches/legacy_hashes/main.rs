//! What the first uses of keys with a slow hash cost, and what a flood of unknown keys costs while
//! some have not moved.
//!
//! ```text
//! cargo bench --bench legacy_hashes --features legacy-hashes -- [--keys N] [--cost N] [--json FILE]
//! ```
//!
//! `benches/README.md` explains what it measures and how to read it.

#![allow(clippy::disallowed_methods, reason = "real time is what is measured")]

mod setting;

#[path = "../../tests/support/servers/mod.rs"]
mod harness;
#[path = "../support/machine.rs"]
mod machine;

use std::{
    env,
    error::Error,
    fs,
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::{
    runtime::Runtime,
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep},
};
use tower_api_key::{Authenticator, auth::RejectionKind};

use self::{
    machine::Machine,
    setting::{Key, Setting},
};

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

const USAGE: &str = "\
cargo bench --bench legacy_hashes --features legacy-hashes -- [OPTIONS]

  --keys N       how many keys are imported and used; 1000
  --cost N       the cost of bcrypt; 10
  --json FILE    writes the figures to this file";

/// Crates whose versions matter.
const CRATES: [&str; 3] = ["bcrypt", "sqlx", "tokio"];

/// Clients that use their keys for the first time.
const CLIENTS: usize = 16;
/// Unknown keys a second.
const FLOOD: u32 = 50_000;
const FLOOD_LASTS: Duration = Duration::from_secs(20);
const MILLISECOND: Duration = Duration::from_millis(1);

struct Options {
    keys: usize,
    cost: u32,
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    // As `cargo test --benches` calls it.
    if arguments.iter().any(|argument| argument == "--test") {
        return ExitCode::SUCCESS;
    }
    match Options::parse(&arguments).and_then(|options| measure(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self> {
        let mut options = Self { keys: 1000, cost: 10, json: None };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let mut value =
                || arguments.next().ok_or_else(|| format!("{argument} needs a value\n{USAGE}"));
            match argument.as_str() {
                "--keys" => options.keys = value()?.parse::<usize>()?.max(1),
                "--cost" => options.cost = value()?.parse()?,
                "--json" => options.json = Some(value()?.into()),
                // Cargo passes it to every benchmark.
                "--bench" => {}
                _ => return Err(format!("unknown option {argument}\n{USAGE}").into()),
            }
        }
        Ok(options)
    }
}

fn measure(options: &Options) -> Result<()> {
    let machine = Machine::this().map_err(|error| error.to_string())?;
    let versions = machine::versions(&CRATES).map_err(|error| error.to_string())?;
    let rows = Runtime::new()?.block_on(compare(options))?;
    let report = json!({
        "date": jiff::Timestamp::now().strftime("%Y-%m-%d").to_string(),
        "machine": machine,
        "versions": versions,
        "keys": options.keys,
        "bcrypt_cost": options.cost,
        "rows": rows,
    });
    match &options.json {
        Some(file) => Ok(fs::write(file, serde_json::to_string_pretty(&report)? + "\n")?),
        None => Ok(()),
    }
}

async fn compare(options: &Options) -> Result<Vec<Value>> {
    let setting = Setting::new(options.keys, options.cost).await?;
    // It has moved: all that is measured of it is a hit.
    let moved = setting.import(1).await?.remove(0);
    setting.auth.check(moved.as_bytes()).await?;

    let quiet = Probe::start(&setting.auth, &moved);
    sleep(FLOOD_LASTS / 2).await;
    let quiet = quiet.end().await?;

    let mut rows = vec![first_uses(&setting, &moved, quiet).await?];
    let left = setting.import(1).await?.remove(0);
    let hint = &left[..setting::HINT];
    for (case, hint) in [("unknown hints", ""), ("the hint of a key that is left", hint)] {
        rows.push(flood(&setting, &moved, quiet, case, hint).await?);
    }
    let begun = Instant::now();
    let retries = use_until_admitted(&setting.auth, &left).await?;
    let row = json!({
        "case": "the first use of that key, right after the flood",
        "seconds": begun.elapsed().as_secs_f64(),
        "retries": retries,
    });
    println!("{row}");
    rows.push(row);
    Ok(rows)
}

/// All keys are used, by as many clients at once as there are.
async fn first_uses(setting: &Setting, moved: &Key, quiet: Duration) -> Result<Value> {
    let probe = Probe::start(&setting.auth, moved);
    let (begun, comparisons) = (Instant::now(), setting.comparisons());
    let keys: Arc<[Key]> = setting.keys.as_slice().into();
    let next = Arc::new(AtomicU64::new(0));
    let mut clients = JoinSet::<Result<u64>>::new();
    for _ in 0..CLIENTS {
        let (auth, keys, next) = (setting.auth.clone(), Arc::clone(&keys), Arc::clone(&next));
        clients.spawn(async move {
            let mut retries = 0;
            loop {
                let at = usize::try_from(next.fetch_add(1, Ordering::Relaxed))?;
                let Some(key) = keys.get(at) else { return Ok(retries) };
                retries += use_until_admitted(&auth, key).await?;
            }
        });
    }
    let mut retries = 0;
    for client in clients.join_all().await {
        retries += client?;
    }
    let took = begun.elapsed();
    let p99 = probe.end().await?;
    let row = json!({
        "case": "first uses",
        "comparisons": setting.comparisons() - comparisons,
        "retries": retries,
        "seconds": took.as_secs_f64(),
        "moved_p99_us": micros(p99),
        "p99_of_quiet": p99.as_secs_f64() / quiet.as_secs_f64(),
    });
    println!("{row}");
    Ok(row)
}

/// Unknown keys that begin with `hint`, at a steady rate.
async fn flood(
    setting: &Setting,
    moved: &Key,
    quiet: Duration,
    case: &str,
    hint: &str,
) -> Result<Value> {
    let probe = Probe::start(&setting.auth, moved);
    let (begun, spent) = (Instant::now(), setting.spent());
    let mut ticks = interval(MILLISECOND);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (mut sent, mut digits) = (0_u64, 1_u128);
    while begun.elapsed() < FLOOD_LASTS {
        ticks.tick().await;
        let keys: Vec<Key> = (0..FLOOD / 1000).map(|_| junk(hint, &mut digits)).collect();
        sent += keys.len() as u64;
        join_all(keys.iter().map(|key| async { setting.auth.check(key.as_bytes()).await })).await;
    }
    let took = begun.elapsed().as_secs_f64();
    let p99 = probe.end().await?;
    let resident = machine::resident(std::process::id()).map_err(|error| error.to_string())?;
    let row = json!({
        "case": format!("flood with {case}"),
        "keys_a_second": sent as f64 / took,
        "resident_mib": resident >> 20,
        "cores": (setting.spent() - spent).as_secs_f64() / took,
        "moved_p99_us": micros(p99),
        "p99_of_quiet": p99.as_secs_f64() / quiet.as_secs_f64(),
    });
    println!("{row}");
    Ok(row)
}

/// 64 digits that begin with `hint`, and no two the same.
fn junk(hint: &str, digits: &mut u128) -> Key {
    *digits = digits.wrapping_mul(0x2545_f491_4f6c_dd1d_5851_f42d_4c95_7f2d).wrapping_add(12_345);
    let key = format!("{hint}{digits:032x}{digits:032x}");
    key.chars().take(64).collect()
}

/// Returns how often the client had to retry.
async fn use_until_admitted(auth: &Authenticator, key: &Key) -> Result<u64> {
    let mut retries = 0;
    loop {
        match auth.check(key.as_bytes()).await {
            Ok(_) => return Ok(retries),
            Err(rejection) if rejection.kind() == RejectionKind::Overloaded => {}
            Err(rejection) => return Err(rejection.to_string().into()),
        }
        retries += 1;
        sleep(20 * MILLISECOND).await;
    }
}

/// Uses a key that has moved, again and again.
struct Probe {
    stop: Arc<AtomicBool>,
    times: tokio::task::JoinHandle<Result<Vec<Duration>>>,
}

impl Probe {
    fn start(auth: &Authenticator, key: &Key) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (auth, key, stopped) = (auth.clone(), key.clone(), Arc::clone(&stop));
        let times = tokio::spawn(async move {
            let mut times = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let outcome = auth.check(key.as_bytes()).await;
                times.push(begun.elapsed());
                outcome.map_err(|rejection| rejection.to_string())?;
                sleep(MILLISECOND).await;
            }
            Ok(times)
        });
        Self { stop, times }
    }

    /// The 99th percentile.
    async fn end(self) -> Result<Duration> {
        self.stop.store(true, Ordering::Relaxed);
        let mut times = self.times.await??;
        times.sort();
        times.get(times.len() * 99 / 100).copied().ok_or_else(|| "nothing was measured".into())
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
