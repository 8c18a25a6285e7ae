use clap::Args;

use super::values;

/// Options of every command.
#[derive(Args, Debug)]
pub(crate) struct Global {
    /// The database: `postgres://user@host/name`, `sqlite:keys.db`
    ///
    /// A password is better kept in DATABASE_URL, in a file .env or in PostgreSQL's own .pgpass:
    /// everybody on the machine can read the arguments of a program.
    #[arg(long, value_name = "URL", env = "DATABASE_URL", hide_env_values = true, global = true)]
    pub(crate) database_url: Option<String>,

    /// The schema of the tables in PostgreSQL [default: where they are along the search path]
    ///
    /// `migrate` creates it where it is missing. A schema that nothing else uses keeps the tables
    /// apart from the application's own.
    #[arg(long, value_name = "NAME", env = "API_KEY_SCHEMA", global = true)]
    pub(crate) schema: Option<String>,

    /// Answer with one JSON object in one line
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// Who makes the change, for the audit [default: user@host]
    #[arg(long, value_name = "NAME", global = true, value_parser = values::text)]
    pub(crate) actor: Option<String>,
}
