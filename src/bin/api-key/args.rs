use std::{env, io::Write as _, process};

use clap::{Parser, Subcommand};

use tower_api_key::record::KeyId;

use super::{
    change::Update, doctor::Doctor, global::Global, import::Import, issue::Issue, list,
    manual::Completions, plan::Plan, prune::Prune, reconcile::Reconcile, revoke::Revoke,
    rotate::Rotate, verify::Verify,
};

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed: the database, a file, a stream
  2  what was asked for makes no sense: an option, a line of an import
  3  there is no such key, or plan
  4  the key is in a state in which this cannot be done, or somebody else changed it
  5  verify: the key is turned away
  6  doctor: something is wrong with the database

Environment:
  DATABASE_URL    the database, as --database-url
  API_KEY_PREFIX  the prefix of new keys, as --key-prefix
  NO_COLOR        no colours, on a terminal either

Both variables are also read from a file .env in this folder or one above it. What is set
in the environment wins.

Streams: standard output has the answer, and of `issue` and `rotate` the key alone, once.
Everything else is on standard error. With --json the answer is one JSON object in one line.

Times: a duration is written as 30d, 12h, 1w or \"90 days\", and a day has 24 hours. A date is
written as 2026-12-31, which is its first instant, or as 2026-12-31T12:00Z. Both are in UTC.";

const FIRST_STEPS: &str = "\
Issues, lists, changes, rotates, revokes, imports and verifies API keys.

The keys are in PostgreSQL or in a file of SQLite, as hashes: nobody can read a key there, and a
key that was lost cannot be shown again. Every change of a key is written down in the audit, in the
same transaction: who, what, when, from where, why. Triggers write down what is changed in SQL.

The first key of a new installation:

  export DATABASE_URL=postgres://app@localhost/app
  api-key migrate
  api-key issue --consumer acme --name ci --scope orders:read --expires 30d";

/// Manages API keys
#[derive(Debug, Parser)]
#[command(
    name = "api-key",
    version,
    long_about = FIRST_STEPS,
    after_long_help = EXIT_CODES,
    after_help = "`api-key --help` has exit codes, environment and how times are written.",
    max_term_width = 100
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Bring the database's tables up to date
    ///
    /// Any number of processes may do so at once. When nothing is missing, nothing is locked. A file
    /// of SQLite is made where there is none, by this command alone.
    Migrate,
    Issue(Issue),
    List(list::List),
    Show(list::Show),
    Update(Update),
    Rotate(Rotate),
    Revoke(Revoke),
    Reconcile(Reconcile),
    Import(Import),
    Plan(Plan),
    Prune(Prune),
    Verify(Verify),
    Events(list::Events),
    Doctor(Doctor),
    Completions(Completions),
    /// Print the man page: `api-key man > api-key.1`
    Man,
}

/// The arguments of the program. Where they make no sense, the program ends here.
pub(crate) fn parse() -> Cli {
    Cli::try_parse().unwrap_or_else(|error| {
        if !error.use_stderr() {
            error.exit();
        }
        // The error shows what was given, which may be a key that somebody gave as an argument.
        let mut text = error.render().ansi().to_string();
        let given = env::args()
            .skip(1)
            .flat_map(|argument| argument.split('=').map(str::to_owned).collect::<Vec<_>>());
        for secret in given.filter(|part| may_be_key(part)) {
            text = text.replace(&secret, "[hidden: it may be a key]");
        }
        let _ = write!(anstream::stderr(), "{text}");
        process::exit(error.exit_code());
    })
}

/// Whether it is as long as keys are. Ids are not.
fn may_be_key(part: &str) -> bool {
    part.len() >= 20 && !part.starts_with("--") && part.parse::<KeyId>().is_err()
}
