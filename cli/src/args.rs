use clap::{Parser, Subcommand};

use super::{
    change::Update, doctor::Doctor, global::Global, import::Import, issue::Issue, list,
    manual::Completions, migrate::Migrate, plan::Plan, prune::Prune, reconcile::Reconcile,
    revoke::Revoke, rotate::Rotate, rules::Rules, scan::Scan, usage::Usage, verify::Verify,
    webhooks::WebhooksCommand,
};

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed: the database, a file, a stream
  2  invalid input: an option, a line of an import
  3  no such key, plan or webhook
  4  conflict: the key's state does not allow this, or another process changed the key
  5  verify: the key is rejected
  6  doctor: the database has a problem
  scan has its own: 0 no key, 1 a key was found, 2 not everything was searched
  141  the reader of standard output ended, as in `api-key list | head`

Environment:
  DATABASE_URL    the database, as --database-url
  API_KEY_PREFIX  the prefix of new keys, as --key-prefix
  API_KEY_SCHEMA  the schema of the tables, as --schema
  API_KEY_POLICY  the issue policy, as --policy
  API_KEY_SCOPES  the scopes of the service, as --scope-catalog
  API_KEY_WEBHOOK_NETWORKS
                  networks that webhooks may reach, as --allow-network
  NO_COLOR        disables colours, even on a terminal

Variables are also read from a file .env in this folder or a parent folder, if it belongs to you
or root. The environment takes precedence over the file.

Streams: the answer goes to standard output; for `issue` and `rotate` it is the key alone, once.
Everything else goes to standard error. With --json the answer is one JSON object on one line.

Times: write a duration as 30d, 12h, 10m or 1w; a day has 24 hours. Write a date as
2026-12-31, which is its first instant, or as 2026-12-31T12:00Z. Both are in UTC.";

const FIRST_STEPS: &str = "\
Issues, lists, changes, rotates, revokes, imports, verifies and finds API keys.

The database, PostgreSQL or a SQLite file, stores only hashes of keys: a key cannot be read from it,
and a lost key cannot be shown again. Every change of a key is recorded in the audit, in the same
transaction: who, what, when, from where, why. Triggers record changes made in SQL.

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
    after_help = "`api-key --help` lists exit codes, environment variables and time formats.",
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
    Migrate(Migrate),
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
    Webhooks(WebhooksCommand),
    Scan(Scan),
    Rules(Rules),
    Usage(Usage),
    Doctor(Doctor),
    Completions(Completions),
    /// Print the man page: `api-key man > api-key.1`
    Man,
}
