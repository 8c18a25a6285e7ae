//! How other tenants are affected by one that does the worst its key allows, or by a flood of
//! unknown keys.
//!
//! ```text
//! cargo bench --bench tenants --features admin -- [--rounds N] [--json FILE]
//! ```
//!
//! `benches/README.md` explains what it measures and how to read it.

#![allow(clippy::disallowed_methods, reason = "real time is what is measured")]

mod attack;
mod setting;

#[path = "../../tests/support/servers/mod.rs"]
mod harness;
#[path = "../support/machine.rs"]
mod machine;
#[path = "../support/stats.rs"]
mod stats;

use std::{
    env,
    error::Error,
    fs,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use serde::Serialize;
use serde_json::json;
use tokio::runtime::{Builder, Runtime};

use self::{
    attack::{Attack, Attacker, Client},
    machine::Machine,
    setting::Setting,
    stats::median,
};

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

const USAGE: &str = "\
cargo bench --bench tenants --features admin -- [OPTIONS]

  --rounds N     how often each attack is measured; 9
  --json FILE    writes the figures to this file";

/// Crates whose versions matter.
const CRATES: [&str; 4] = ["axum", "hyper", "sqlx", "tokio"];

/// Keys of other tenants that send a request in each round, none of them cached.
const KEYS: usize = 60;

struct Options {
    rounds: usize,
    json: Option<PathBuf>,
}

/// Results of all rounds together.
#[derive(Serialize)]
struct Row {
    case: &'static str,
    admitted: usize,
    refused: usize,
    p50_us: f64,
    p99_us: f64,
    /// The median over the rounds of p99 under attack divided by p99 without one in the same round.
    p99_of_quiet: f64,
    /// Resident memory in MiB of this process, which is the service and the clients of the others:
    /// the maximum at the end of a round.
    resident_mib: u64,
    /// Its growth since before the first round.
    grown_mib: u64,
    /// The attacker's responses, in all rounds.
    attacker: attack::Report,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let outcome = match arguments.as_slice() {
        [attack, arguments @ ..] if attack == "attack" => attack::run(arguments),
        // As `cargo test --benches` calls it.
        arguments if arguments.iter().any(|argument| argument == "--test") => Ok(()),
        arguments => Options::parse(arguments).and_then(|options| measure(&options)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self> {
        let mut options = Self { rounds: 9, json: None };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let mut value =
                || arguments.next().ok_or_else(|| format!("{argument} needs a value\n{USAGE}"));
            match argument.as_str() {
                "--rounds" => options.rounds = value()?.parse::<usize>()?.max(1),
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
    let service = Runtime::new()?;
    let setting = service.block_on(Setting::new())?;
    // The clients of the others have threads of their own.
    let clients = Builder::new_current_thread().enable_all().build()?;
    let rows = clients.block_on(compare(&setting, options.rounds))?;
    let report = json!({
        "date": jiff::Timestamp::now().strftime("%Y-%m-%d").to_string(),
        "machine": machine,
        "versions": versions,
        "rounds": options.rounds,
        "keys": KEYS,
        "rows": rows,
    });
    match &options.json {
        Some(file) => Ok(fs::write(file, serde_json::to_string_pretty(&report)? + "\n")?),
        None => Ok(()),
    }
}

async fn compare(setting: &Setting, rounds: usize) -> Result<Vec<Row>> {
    println!(
        "{:<22} {:>8} {:>8} {:>9} {:>9} {:>9} {:>9} {:>9}   the attacker got",
        "", "admitted", "refused", "p50 us", "p99 us", "of quiet", "MiB", "grown"
    );
    let mut rows = Vec::new();
    for attack in Attack::ALL {
        rows.push(against(setting, attack, rounds).await?);
    }
    Ok(rows)
}

/// The memory of this process.
fn resident_mib() -> Result<u64> {
    let resident = machine::resident(std::process::id()).map_err(|error| error.to_string())?;
    Ok(resident >> 20)
}

/// Interleaved: each round uses 60 keys without an attack, then 60 others under it.
async fn against(setting: &Setting, attack: Attack, rounds: usize) -> Result<Row> {
    let (mut quiet, mut attacked) = (Round::default(), Round::default());
    let mut ratios = Vec::new();
    let mut report = attack::Report::default();
    let before = resident_mib()?;
    let mut most = before;
    for _ in 0..rounds {
        let without = ask(setting, keys(setting, attack).await?).await?;
        let keys = keys(setting, attack).await?;
        let mut attacker = Attacker::start(setting, attack).await?;
        attacker.is_at_work().await?;
        let under = ask(setting, keys).await?;
        most = most.max(resident_mib()?);
        report.add(&attacker.stop().await?);
        ratios.push(under.percentile(99) / without.percentile(99));
        quiet.add(without);
        attacked.add(under);
    }
    let row = Row {
        case: attack.name(),
        admitted: attacked.times.len(),
        refused: attacked.refused,
        p50_us: attacked.percentile(50),
        p99_us: attacked.percentile(99),
        p99_of_quiet: median(ratios),
        resident_mib: most,
        grown_mib: most - before,
        attacker: report,
    };
    println!(
        "{:<22} {:>8} {:>8} {:>9.0} {:>9.0} {:>9.2} {:>9} {:>9}   {:?}",
        row.case,
        row.admitted,
        row.refused,
        row.p50_us,
        row.p99_us,
        row.p99_of_quiet,
        row.resident_mib,
        row.grown_mib,
        row.attacker
    );
    println!(
        "{:<22} {:>8} {:>8} {:>9.0} {:>9.0}",
        "  without it",
        quiet.times.len(),
        quiet.refused,
        quiet.percentile(50),
        quiet.percentile(99)
    );
    Ok(row)
}

#[derive(Default)]
struct Round {
    times: Vec<f64>,
    refused: usize,
}

impl Round {
    fn add(&mut self, other: Self) {
        self.times.extend(other.times);
        self.refused += other.refused;
    }

    /// In microseconds, of the admitted requests.
    fn percentile(&self, percent: usize) -> f64 {
        let mut times = self.times.clone();
        times.sort_by(f64::total_cmp);
        let at = (times.len() * percent).div_ceil(100).saturating_sub(1);
        times.get(at).copied().unwrap_or(f64::NAN)
    }
}

/// Keys of the others for one half of a round. Depending on `attack`, the service has not seen them
/// or has answered each once.
async fn keys(setting: &Setting, attack: Attack) -> Result<Vec<String>> {
    let keys = setting.new_keys(KEYS).await?;
    if attack.is_on_known_keys() && ask(setting, keys.clone()).await?.refused > 0 {
        return Err("a good key was refused without an attack".into());
    }
    Ok(keys)
}

/// Sends a request with each of these keys, one after another over one connection.
async fn ask(setting: &Setting, keys: Vec<String>) -> Result<Round> {
    let mut client = Client::connect(setting.address).await?;
    let mut round = Round::default();
    for key in keys {
        let begin = Instant::now();
        let status = client.get("/orders", &key).await?;
        if status == 200 {
            round.times.push(begin.elapsed().as_secs_f64() * 1e6);
        } else {
            round.refused += 1;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(round)
}
