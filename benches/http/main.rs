//! What keys cost over HTTP: servers as processes of their own, loaded by wrk in turn.
//!
//! ```text
//! cargo bench --bench http -- [--rounds N] [--seconds S] [--only NAME].. [--peers] [--json FILE] [--plot]
//! ```
//!
//! `benches/README.md` explains what it measures and how to read it.

#![allow(clippy::disallowed_methods, reason = "what is measured is real time")]

mod baseline;
mod contenders;
mod options;
mod peers;
mod plot;
mod process;
mod report;
mod servers;
mod setting;
mod wrk;

#[path = "../../tests/support/servers/mod.rs"]
mod harness;
#[path = "../support/machine.rs"]
mod machine;
#[path = "../support/stats.rs"]
mod stats;

use std::{env, error::Error, fs, process::ExitCode, time::Duration};

use self::{
    contenders::Running,
    options::Options,
    process::Cpu,
    report::{Load, Report, Round},
    setting::Setting,
};

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let outcome = match arguments.as_slice() {
        [serve, name] if serve == "serve" => servers::serve(name),
        // As `cargo test --benches` calls it.
        arguments if arguments.iter().any(|argument| argument == "--test") => Ok(()),
        arguments => Options::parse(arguments).and_then(|options| match options.plot {
            true => plot(&options),
            false => measure(&options),
        }),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn plot(options: &Options) -> Result<()> {
    let report = serde_json::from_str(&fs::read_to_string(options.figures())?)?;
    fs::write(plot::PATH, plot::draw(&report))?;
    println!("{} was drawn from {}", plot::PATH, options.figures().display());
    Ok(())
}

fn measure(options: &Options) -> Result<()> {
    // wrk may be missing, so check before anything that takes long.
    wrk::version()?;
    let contenders = contenders::chosen(options)?;
    let setting = Setting::new()?;
    let mut report = Report::begin(options, &contenders, &setting.postgres)?;
    for pinned in [true, false] {
        let servers = contenders.iter().map(|contender| contender.start(&setting, pinned));
        let servers = servers.collect::<Result<Vec<_>>>()?;
        for server in &servers {
            server.check(&setting)?;
        }
        for keys in [1, setting::KEYS] {
            // Peers run with one key only: each look-up costs them the same.
            let servers: Vec<_> =
                servers.iter().filter(|server| keys == 1 || !server.contender.is_peer()).collect();
            let load = compare(&servers, &setting, pinned, keys, options)?;
            load.print();
            report.loads.push(load);
        }
    }
    match &options.json {
        Some(file) => Ok(fs::write(file, serde_json::to_string_pretty(&report)? + "\n")?),
        None => Ok(()),
    }
}

/// Every round loads each server once, in varying order.
fn compare(
    servers: &[&Running<'_>],
    setting: &Setting,
    pinned: bool,
    keys: usize,
    options: &Options,
) -> Result<Load> {
    let mut rounds = vec![Vec::new(); servers.len()];
    for round in 0..options.rounds {
        for turn in 0..servers.len() {
            let at = (round + turn) % servers.len();
            if let (Some(server), Some(rounds)) = (servers.get(at), rounds.get_mut(at)) {
                rounds.push(run(server, setting, pinned, keys, options.seconds)?);
            }
        }
        eprint!("\r{} of {} rounds ", round + 1, options.rounds);
    }
    eprintln!();
    Ok(Load::new(pinned, keys, servers, &rounds))
}

/// One server under load, warm.
fn run(
    server: &Running<'_>,
    setting: &Setting,
    pinned: bool,
    keys: usize,
    time: Duration,
) -> Result<Round> {
    let authorizations = server.authorizations(setting, keys)?;
    let load = |time| wrk::load(&server.process.address, &authorizations, pinned, time);
    // Refreshes what has become stale during the turns of the other servers.
    while load(Duration::from_secs(1))?.requests < keys as u64 && server.contender.caches() {}
    server.settle(setting)?;
    let (cpu, database) = (server.process.cpu()?, setting.database_cpu()?);
    let seen = load(time * server.contender.slowness())?;
    let (cpu_after, database_after) = (server.process.cpu()?, setting.database_cpu()?);
    server.settle(setting)?;
    if seen.errors > 0 || seen.requests == 0 {
        let (name, all) = (server.contender.name(), seen.requests);
        return Err(format!("{name}: {} errors beside {all} answers", seen.errors).into());
    }
    Ok(Round::new(&seen, cpu.until(&cpu_after), Cpu::until(&database, &database_after)))
}
