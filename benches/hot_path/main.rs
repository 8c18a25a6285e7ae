//! What a request for a cached key costs in process.
//!
//! ```text
//! cargo bench --bench hot_path -- [SECTION]..
//! ```
//!
//! `benches/README.md` explains what it measures and how to read it.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a measurement that fails ends"
)]

mod floor;
mod from_fn;
mod observed;
mod refusals;
mod threads;

#[path = "../http/baseline.rs"]
#[allow(dead_code, reason = "what asks a database is for the benchmark over HTTP")]
mod baseline;
#[path = "../support/service.rs"]
mod service;
#[path = "../support/mod.rs"]
mod support;

use std::{env, process::ExitCode, time::Duration};

use tokio::runtime::{Builder, Runtime};

use self::support::Cases;

type Section = fn(&Runtime);

const SECTIONS: [(&str, Section); 5] = [
    ("floor", floor::measure),
    ("from_fn", from_fn::measure),
    ("observed", observed::measure),
    ("refusals", refusals::measure),
    ("threads", threads::measure),
];

fn main() -> ExitCode {
    let mut arguments: Vec<String> = env::args().skip(1).collect();
    // As `cargo test --benches` calls it.
    if arguments.iter().any(|argument| argument == "--test") {
        return ExitCode::SUCCESS;
    }
    // As cargo calls every benchmark.
    arguments.retain(|argument| argument != "--bench");
    let names = SECTIONS.map(|(name, _)| name);
    if let Some(unknown) = arguments.iter().find(|argument| !names.contains(&argument.as_str())) {
        eprintln!("no section is named {unknown}; choose from {}", names.join(", "));
        return ExitCode::FAILURE;
    }
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let _entered = runtime.enter();
    for (name, measure) in SECTIONS {
        if arguments.is_empty() || arguments.iter().any(|argument| argument == name) {
            println!("\n# {name}\n");
            measure(&runtime);
        }
    }
    ExitCode::SUCCESS
}

fn run(cases: &mut Cases<'_>) {
    let rounds = env::var("ROUNDS").map_or(41, |rounds| rounds.parse().unwrap());
    cases.run(rounds, Duration::from_millis(15));
    cases.print();
    println!();
}
