use clap::Args;

use super::values;

/// Options common to all commands.
#[derive(Args, Debug)]
pub(crate) struct Global {
    /// The database: `postgres://user@host/name`, `sqlite:keys.db`
    ///
    /// Keep a password in DATABASE_URL, in a file .env or in PostgreSQL's .pgpass: other users of
    /// the machine can read a program's arguments.
    #[arg(long, value_name = "URL", env = "DATABASE_URL", hide_env_values = true, global = true)]
    pub(crate) database_url: Option<String>,

    /// The schema of the tables in PostgreSQL [default: found along the search path]
    ///
    /// `migrate` creates it if it is missing. A schema of their own keeps the tables apart from
    /// those of the application.
    #[arg(long, value_name = "NAME", env = "API_KEY_SCHEMA", global = true)]
    pub(crate) schema: Option<String>,

    /// Answer with one JSON object on one line
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// Who makes the change, for the audit [default: user@host]
    #[arg(long, value_name = "NAME", global = true, value_parser = values::text)]
    pub(crate) actor: Option<String>,
}
