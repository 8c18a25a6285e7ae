//! What came of an import.

use std::{collections::BTreeMap, fmt::Display};

use serde_json::{Value, json};
use tower_api_key::manage::ManageError;

use super::fields;

/// What is wrong with a line. It quotes no value.
pub(super) struct Problem {
    /// The field, or `line`, or `refused`.
    kind: &'static str,
    text: String,
}

impl Problem {
    pub(super) fn new(kind: &'static str, text: impl Display) -> Self {
        let text = match kind {
            "line" => text.to_string(),
            field => format!("{field}: {text}"),
        };
        Self { kind, text }
    }

    /// A problem whose text names the field.
    pub(super) fn of(kind: &'static str, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }
}

impl From<&ManageError> for Problem {
    fn from(error: &ManageError) -> Self {
        let field = match error.field() {
            Some("expires_at") => Some("expires"),
            Some("key_prefix") => Some("prefix"),
            Some("key_last4") => Some("last4"),
            Some("legacy_hint") => Some("hint"),
            field => field,
        };
        let kind = field.and_then(fields::field).map_or("refused", |(field, _)| field);
        Self::of(kind, error.to_string())
    }
}

/// How many problems a trial quotes.
const QUOTED: usize = 20;

#[derive(Default)]
pub(super) struct Report {
    /// Nothing was stored.
    pub(super) is_trial: bool,
    pub(super) imported: u64,
    pub(super) known: u64,
    invalid: BTreeMap<&'static str, u64>,
    first: Vec<(u64, Problem)>,
}

impl Report {
    pub(super) fn trial() -> Self {
        Self { is_trial: true, ..Self::default() }
    }

    /// Whether the problem is to be told, because it is one of the first.
    pub(super) fn add(&mut self, line: u64, problem: Problem) -> bool {
        *self.invalid.entry(problem.kind).or_default() += 1;
        let is_told = !self.is_trial || self.first.len() < QUOTED;
        if self.is_trial && is_told {
            self.first.push((line, problem));
        }
        is_told
    }

    pub(super) fn invalid(&self) -> u64 {
        self.invalid.values().sum()
    }

    pub(super) fn json(&self) -> Value {
        let mut report = json!({
            "imported": self.imported,
            "known": self.known,
            "invalid": self.invalid(),
        });
        if self.is_trial {
            let problem = |(line, problem): &(u64, Problem)| json!({ "line": line, "kind": problem.kind, "problem": problem.text });
            let problems: Vec<_> = self.first.iter().map(problem).collect();
            super::output::set(&mut report, "dry_run", json!(true));
            super::output::set(&mut report, "kinds", json!(self.invalid));
            super::output::set(&mut report, "problems", json!(problems));
        }
        report
    }

    pub(super) fn text(&self) -> String {
        let Self { imported, known, .. } = self;
        let invalid = self.invalid();
        if self.is_trial {
            return format!(
                "nothing was stored: would import {imported} keys, skip {known} already known and \
                {invalid} invalid lines"
            );
        }
        format!(
            "imported {imported} keys, skipped {known} already known and {invalid} invalid lines"
        )
    }

    /// How many lines are invalid for which reason.
    pub(super) fn summary(&self) -> String {
        let kinds: Vec<_> =
            self.invalid.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        format!("{} lines are invalid: {}", self.invalid(), kinds.join(", "))
    }
}
