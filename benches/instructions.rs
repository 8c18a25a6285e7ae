//! The instructions of a request: the same figure whatever else the machine is doing.
//!
//! `cargo bench --bench instructions` runs itself under callgrind and compares with
//! `benches/instructions.txt`; with `-- --write` it writes that file instead. A difference beyond
//! the tolerance, in either direction, is an error: gains must be recorded, too.
//!
//! What differs between machines is excluded:
//!
//! - libc. It chooses its `memcpy` by the processor, and its allocator differs between versions;
//!   `tests/allocations.rs` counts allocations.
//! - The processor. Wherever there is AVX2, valgrind emulates a Haswell, on which `sha2` uses no
//!   SHA instructions, and `memchr` uses AVX2.
//! - The compiler. The file names its version, and other versions refuse to compare.
//! - Chance and time. Keys are the same in every run, and every record stays fresh.

#![allow(
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a measurement that fails ends"
)]

#[path = "support/service.rs"]
mod service;

use std::{
    collections::HashMap,
    env,
    error::Error,
    fs,
    io::ErrorKind,
    path::Path,
    process::{Command, ExitCode},
};

use axum::Router;
use http::{HeaderValue, StatusCode};
use tempfile::NamedTempFile;
use tokio::runtime::Builder;
use tower_api_key::layer::RateLimitHeaders;

use self::service::{Service, ask};

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// The effect that a change elsewhere in the program may have on inlining.
const TOLERANCE: f64 = 0.03;
const FEW: u32 = 200;
const MANY: u32 = 1_200;
const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.txt");
const ACCEPT: &str = "\
if the change is intended, write the new counts and commit them:
cargo bench --bench instructions -- --write";

const SCENARIOS: [&str; 7] = [
    "bare router",
    "hit",
    "hit, headers off",
    "malformed key",
    "unknown key",
    "revoked key",
    "429",
];
/// Whether a key was ever issued must not show in the time of its refusal. 200 instructions take
/// about 50 ns, which no client can measure.
const INDISTINGUISHABLE: (&str, &str, f64) = ("unknown key", "revoked key", 200.0);

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let outcome = match arguments.as_slice() {
        [run, scenario, turns] if run == "run" => {
            serve(scenario, turns.parse().unwrap());
            Ok(())
        }
        // As `cargo test --benches` calls it.
        arguments if arguments.iter().any(|argument| argument == "--test") => Ok(()),
        arguments if arguments.iter().any(|argument| argument == "--write") => write(),
        _ => compare(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn write() -> Result<()> {
    let mut text = format!("{}\n", compiler()?);
    for scenario in SCENARIOS {
        text += &format!("{scenario}: {}\n", instructions(scenario)?);
    }
    print!("{text}");
    Ok(fs::write(COMMITTED, text)?)
}

fn compare() -> Result<()> {
    let committed = fs::read_to_string(COMMITTED)?;
    let (before, compiler) = (committed.lines().next().unwrap_or_default(), compiler()?);
    if before != compiler {
        return Err(format!(
            "{COMMITTED} is of {before}, and this is {compiler}: their instructions cannot be \
             compared. Take the former (RUSTUP_TOOLCHAIN chooses it), or {ACCEPT}"
        )
        .into());
    }
    let mut differing = Vec::new();
    let mut counts = HashMap::new();
    for scenario in SCENARIOS {
        let line =
            committed.lines().find_map(|line| line.strip_prefix(scenario)?.strip_prefix(": "));
        let before: f64 =
            line.ok_or_else(|| format!("no count of {scenario}; {ACCEPT}"))?.parse()?;
        let now = instructions(scenario)?;
        counts.insert(scenario, now);
        let change = now / before - 1.0;
        println!("{scenario}: {now} instructions, {before} before, {:+.2} %", change * 100.0);
        if change.abs() > TOLERANCE {
            let verb = if change > 0.0 { "grew" } else { "shrank" };
            let percent = change.abs() * 100.0;
            differing.push(format!("{scenario}: {verb} by {percent:.1} %, from {before} to {now}"));
        }
    }
    let (one, other, most) = INDISTINGUISHABLE;
    let apart = (counts[one] - counts[other]).abs();
    if apart > most {
        return Err(format!("{one} and {other} can be told apart by {apart} instructions").into());
    }
    if differing.is_empty() {
        return Ok(());
    }
    let tolerance = TOLERANCE * 100.0;
    Err(format!("{}\nmore than {tolerance} %: {ACCEPT}", differing.join("\n")).into())
}

/// `rustc 1.95.0 on x86_64`
fn compiler() -> Result<String> {
    let output = Command::new("rustc").arg("--version").output()?;
    let text = String::from_utf8(output.stdout)?;
    let version = text.split(' ').nth(1).ok_or("rustc tells no version")?;
    Ok(format!("rustc {version} on {}", env::consts::ARCH))
}

/// The instructions of one request.
fn instructions(scenario: &str) -> Result<f64> {
    let [few, many] = [FEW, MANY].map(|turns| instructions_of_turns(scenario, turns));
    Ok(((many? - few?) as f64 / f64::from(MANY - FEW)).round())
}

fn instructions_of_turns(scenario: &str, turns: u32) -> Result<u64> {
    let this = env::current_exe()?;
    let profile = NamedTempFile::new()?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--compress-strings=no", "--compress-pos=no"])
        .arg(format!("--callgrind-out-file={}", profile.path().display()))
        .arg(&this)
        .args(["run", scenario, &turns.to_string()])
        .output()
        .map_err(|error| match error.kind() {
            ErrorKind::NotFound => "valgrind is missing: apt-get install valgrind".into(),
            _ => format!("valgrind: {error}"),
        })?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    own(&fs::read_to_string(profile.path())?, &this)
}

/// The sum of the instructions executed in `program` itself, from a profile in
/// [callgrind's format](https://valgrind.org/docs/manual/cl-format.html).
fn own(profile: &str, program: &Path) -> Result<u64> {
    let program = format!("ob={}", program.display());
    let mut is_own = false;
    let mut sum = 0;
    let mut lines = profile.lines();
    while let Some(line) = lines.next() {
        if line.starts_with("ob=") {
            is_own = line == program;
        } else if line.starts_with("calls=") {
            // The cost of a call is counted in the callee.
            lines.next();
        } else if is_own && line.starts_with(|first: char| first.is_ascii_digit()) {
            sum += line.rsplit(' ').next().unwrap_or_default().parse::<u64>()?;
        }
    }
    if sum == 0 { Err("nothing was counted".into()) } else { Ok(sum) }
}

fn serve(scenario: &str, turns: u32) {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let quota = if scenario == "429" { service::tight() } else { service::roomy() };
    let service = Service::new(&runtime, 1, quota);
    let (bare, layer) = (service::bare(), service.layer());
    let hot = service.hot().clone();
    let (router, key, status): (Router, HeaderValue, StatusCode) = match scenario {
        "bare router" => (bare, hot, StatusCode::OK),
        "hit" => (bare.layer(layer), hot, StatusCode::OK),
        "hit, headers off" => {
            (bare.layer(layer.rate_limit_headers(RateLimitHeaders::Off)), hot, StatusCode::OK)
        }
        "malformed key" => (bare.layer(layer), service.malformed(), StatusCode::UNAUTHORIZED),
        "unknown key" => (bare.layer(layer), service.unknown, StatusCode::UNAUTHORIZED),
        "revoked key" => (bare.layer(layer), service.revoked, StatusCode::UNAUTHORIZED),
        "429" => (bare.layer(layer), hot, StatusCode::TOO_MANY_REQUESTS),
        other => panic!("there is no {other:?}"),
    };
    for _ in 0..turns {
        assert_eq!(ask(&router, &key), status);
    }
}
