//! The issue policy: a file that the service reads too.

use std::{ffi::OsString, fs, path::Path};

use clap::Args;
use tower_api_key::manage::{IssuePolicy, KeyIssuer};

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
}

impl Policy {
    /// `issuer` with the policy and the override.
    pub(crate) fn apply(&self, issuer: KeyIssuer) -> Result<KeyIssuer, Failure> {
        // An empty environment variable counts as unset.
        let file = self.policy_file.as_ref().filter(|file| !file.is_empty()).map(Path::new);
        let Some(file) = file else {
            if self.policy_override.is_some() {
                // The audit would not show it.
                let problem = "--override: there is no policy to override: give --policy, or set \
                    API_KEY_POLICY";
                return Err(Failure::usage(problem));
            }
            return Ok(issuer);
        };
        let name = output::printable_path(file);
        let text = fs::read_to_string(file).map_err(|error| {
            Failure::new(format!("--policy: cannot read {name}")).because(&error)
        })?;
        let policy = text.parse::<IssuePolicy>();
        let issuer = issuer
            .policy(policy.map_err(|error| Failure::usage(format!("--policy: {name}: {error}")))?);
        Ok(match &self.policy_override {
            Some(reason) => issuer.override_policy(reason),
            None => issuer,
        })
    }
}
