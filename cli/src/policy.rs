//! What keys may be issued: the issue policy, and the scopes of the service.

use std::{ffi::OsString, fmt::Display, fs, path::Path, str::FromStr};

use clap::Args;
use tower_api_key::{
    manage::{IssuePolicy, KeyIssuer},
    record::ScopeCatalog,
};

use super::{failure::Failure, output, values};

/// Options of commands that give keys something.
#[derive(Args, Debug)]
pub(crate) struct Policy {
    /// The issue policy, a JSON file that says what keys may be issued [default: all]
    ///
    /// What exceeds it is refused. Use the file that the service reads.
    #[arg(long = "policy", value_name = "FILE", env = "API_KEY_POLICY")]
    policy_file: Option<OsString>,

    /// Exceed the issue policy for this reason, which the audit keeps
    #[arg(long = "override", value_name = "REASON", value_parser = values::text)]
    policy_override: Option<String>,

    /// The scopes of the service, a JSON file that the service writes [default: any scope]
    ///
    /// Scopes that are not in it are refused, with or without --override. In Rust, the service
    /// writes it with `Scope::catalog().to_json()`.
    #[arg(long = "scope-catalog", value_name = "FILE", env = "API_KEY_SCOPES")]
    scope_catalog: Option<OsString>,
}

impl Policy {
    /// `issuer` with the policy, the override and the scopes.
    pub(crate) fn apply(&self, issuer: KeyIssuer) -> Result<KeyIssuer, Failure> {
        let issuer = match read::<ScopeCatalog>("--scope-catalog", self.scope_catalog.as_ref())? {
            Some(catalog) => issuer.scopes(catalog),
            None => issuer,
        };
        let policy = read::<IssuePolicy>("--policy", self.policy_file.as_ref())?;
        match (policy, &self.policy_override) {
            (Some(policy), Some(reason)) => Ok(issuer.policy(policy).override_policy(reason)),
            (Some(policy), None) => Ok(issuer.policy(policy)),
            (None, None) => Ok(issuer),
            (None, Some(_)) => {
                // The audit would not show it.
                let problem = "--override: there is no policy to override: give --policy, or set \
                    API_KEY_POLICY";
                Err(Failure::usage(problem))
            }
        }
    }
}

/// Reads the file that `option` names. An empty environment variable counts as unset.
fn read<T: FromStr<Err: Display>>(
    option: &str,
    file: Option<&OsString>,
) -> Result<Option<T>, Failure> {
    let Some(file) = file.filter(|file| !file.is_empty()).map(Path::new) else { return Ok(None) };
    let name = output::printable_path(file);
    let text = fs::read_to_string(file)
        .map_err(|error| Failure::new(format!("{option}: cannot read {name}")).because(&error))?;
    let read = text.parse();
    read.map(Some).map_err(|error| Failure::usage(format!("{option}: {name}: {error}")))
}
