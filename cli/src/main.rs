//! Issues, lists, changes, rotates, revokes, imports, verifies and finds API keys from the command line.

mod args;
mod change;
mod destination;
mod doctor;
mod dot_env;
mod failure;
mod follow;
mod global;
mod identity;
mod import;
mod issue;
mod list;
mod manual;
mod migrate;
mod output;
mod places;
mod plan;
mod policy;
mod progress;
mod prune;
mod reconcile;
mod revoke;
mod rotate;
mod rules;
mod scan;
mod session;
mod timestamps;
mod usage;
mod usage_errors;
mod values;
mod verify;
mod webhooks;

use std::process::ExitCode;

use clap::CommandFactory as _;

use self::{
    args::{Cli, Command},
    failure::Failure,
    session::Session,
};

fn main() -> ExitCode {
    let dot_env = dot_env::load();
    let cli = usage_errors::parse_or_exit();
    let outcome = match cli.command {
        Command::Completions(completions) => manual::completions(&completions, Cli::command()),
        Command::Man => manual::man(Cli::command()),
        Command::Rules(rules) => rules::run(&rules),
        // A file .env of the folder that is searched does not matter then.
        Command::Scan(scan) if !scan.checks() => scan::run(&scan, cli.global),
        Command::Scan(scan) => dot_env.map_err(Failure::inconclusive).and_then(|dot_env| {
            dot_env.report();
            scan::run(&scan, cli.global)
        }),
        _ => dot_env.and_then(|dot_env| {
            dot_env.report();
            on_a_store(cli)
        }),
    };
    outcome.unwrap_or_else(|failure| failure.report())
}

fn on_a_store(cli: Cli) -> Result<ExitCode, Failure> {
    runtime()?.block_on(async {
        let Cli { global, command } = cli;
        if let Command::Doctor(doctor) = &command {
            return doctor::run(doctor, &global).await;
        }
        if let Command::Migrate(migrate) = command {
            return migrate::run(migrate, global).await;
        }
        let session = Session::begin(global, false).await?;
        match command {
            Command::Issue(issue) => issue::run(issue, &session).await,
            Command::List(list) => list::keys(list, &session).await,
            Command::Show(show) => list::key(show, &session).await,
            Command::Events(events) => list::events(events, &session).await,
            Command::Update(update) => change::run(update, &session).await,
            Command::Rotate(rotate) => rotate::run(rotate, &session).await,
            Command::Revoke(revoke) => revoke::run(revoke, &session).await,
            Command::Reconcile(reconcile) => reconcile::run(reconcile, &session).await,
            Command::Plan(plan) => plan::run(plan, &session).await,
            Command::Webhooks(command) => webhooks::run(command, &session).await,
            Command::Import(import) => import::run(import, &session).await,
            Command::Prune(prune) => prune::run(prune, &session).await,
            Command::Usage(usage) => usage::run(usage, &session).await,
            Command::Verify(verify) => return verify::run(verify, &session).await,
            Command::Migrate(_)
            | Command::Doctor(_)
            | Command::Completions(_)
            | Command::Man
            | Command::Rules(_)
            | Command::Scan(_) => Ok(()),
        }
        .map(|()| ExitCode::SUCCESS)
    })
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new("the runtime could not be started").because(&error))
}
