//! The cost of an uncached key: look-ups among a million keys in PostgreSQL, a herd of requests for
//! one of them, the memory of a cached key, writing last uses, and the latency of a client with a
//! known key during many changes.
//!
//! ```text
//! cargo bench --bench cold -- [--rounds N] [--keys N] [--json FILE]
//! ```
//!
//! `benches/README.md` explains what it measures and how to read it.

#![allow(clippy::disallowed_methods, reason = "what is measured is real time")]

mod changes;
mod herd;
mod lookups;
mod memory;
mod setting;
mod usage;

#[path = "../../tests/support/servers/mod.rs"]
mod harness;
#[path = "../support/machine.rs"]
mod machine;
#[path = "../support/stats.rs"]
mod stats;

use std::{env, error::Error, fs, path::PathBuf, process::ExitCode};

use serde_json::json;

use self::{machine::Machine, setting::Setting};

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

const USAGE: &str = "\
cargo bench --bench cold -- [OPTIONS]

  --rounds N     how often each case is measured, for its median; 7
  --keys N       how many keys there are; 1000000
  --json FILE    writes the figures to this file";

/// Crates whose versions matter.
const CRATES: [&str; 4] = ["moka", "sha2", "sqlx", "tokio"];

struct Options {
    rounds: usize,
    keys: usize,
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let outcome = match arguments.as_slice() {
        [memory, case, keys] if memory == "memory" => memory::report(case, keys),
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
        let mut options = Self { rounds: 7, keys: 1_000_000, json: None };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let mut value =
                || arguments.next().ok_or_else(|| format!("{argument} needs a value\n{USAGE}"));
            match argument.as_str() {
                "--rounds" => options.rounds = value()?.parse::<usize>()?.max(1),
                "--keys" => options.keys = value()?.parse::<usize>()?.max(setting::KNOWN),
                "--json" => options.json = Some(value()?.into()),
                // As cargo calls every benchmark.
                "--bench" => {}
                _ => return Err(format!("unknown option {argument}\n{USAGE}").into()),
            }
        }
        Ok(options)
    }
}

fn measure(options: &Options) -> Result<()> {
    let machine = Machine::this()?;
    let mut versions = machine::versions(&CRATES)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let setting = runtime.block_on(Setting::new(options.keys))?;
    versions.insert("postgresql".into(), setting.postgres.clone());
    let (lookups, herd, usage, changes) = runtime.block_on(async {
        let lookups = lookups::measure(&setting, options.rounds).await?;
        let herd = herd::measure(&setting, options.rounds).await?;
        let usage = usage::measure(&setting, options.rounds).await?;
        let changes = changes::measure(&setting, options.rounds).await?;
        Ok::<_, Box<dyn Error>>((lookups, herd, usage, changes))
    })?;
    let memory = memory::measure(&setting, options.keys)?;
    let report = json!({
        "date": jiff::Timestamp::now().strftime("%Y-%m-%d").to_string(),
        "machine": machine,
        "versions": versions,
        "rounds": options.rounds,
        "keys": options.keys,
        "lookups": lookups,
        "herd": herd,
        "memory": memory,
        "usage": usage,
        "changes": changes,
    });
    match &options.json {
        Some(file) => Ok(fs::write(file, serde_json::to_string_pretty(&report)? + "\n")?),
        None => Ok(()),
    }
}
