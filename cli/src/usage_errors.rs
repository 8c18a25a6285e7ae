//! Errors in the arguments of the program.

use std::{env, io::Write as _, process};

use clap::Parser as _;
use tower_api_key::record::KeyId;

use super::args::Cli;

/// Parses the program's arguments. Exits if they are invalid.
pub(crate) fn parse_or_exit() -> Cli {
    Cli::try_parse().unwrap_or_else(|error| {
        if !error.use_stderr() {
            error.exit();
        }
        // The error quotes the arguments, one of which may be a key given by mistake.
        let mut text = error.render().ansi().to_string();
        let given = env::args()
            .skip(1)
            .flat_map(|argument| argument.split('=').map(str::to_owned).collect::<Vec<_>>());
        for secret in given.filter(|part| may_be_key(part)) {
            text = text.replace(&secret, "[hidden: may be a key]");
        }
        let _ = write!(anstream::stderr(), "{text}");
        process::exit(error.exit_code());
    })
}

/// Whether `part` is as long as a key and not an id.
fn may_be_key(part: &str) -> bool {
    part.len() >= 20 && !part.starts_with("--") && part.parse::<KeyId>().is_err()
}
