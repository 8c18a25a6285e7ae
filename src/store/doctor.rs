//! What a diagnosis of a store finds.

use std::{borrow::Cow, collections::BTreeSet, error::Error, fmt, time::Duration};

use super::{
    StoreError, StoreErrorKind,
    migrate::{Applied, Migration},
    row::Refusal,
    trial::{Failure, Need, Operation},
};

/// Something that a diagnosis has looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// What was looked at, such as `triggers`.
    pub check: &'static str,
    /// Whether it is as it should be.
    pub severity: Severity,
    /// What was found.
    pub detail: String,
    /// What to do.
    pub advice: Option<Cow<'static, str>>,
}

/// How bad a [`Finding`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Severity {
    /// As it should be.
    Ok,
    /// It works, but not as well as it could, or not everything does.
    Warning,
    /// Keys are not looked up, or changes of them go unnoticed.
    Problem,
}

impl Severity {
    /// Its name: `ok`, `warning` or `problem`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}

impl Finding {
    pub(super) fn ok(check: &'static str, detail: impl Into<String>) -> Self {
        Self { check, severity: Severity::Ok, detail: detail.into(), advice: None }
    }

    pub(super) fn warning(
        check: &'static str,
        detail: impl Into<String>,
        advice: impl Into<Cow<'static, str>>,
    ) -> Self {
        let advice = Some(advice.into());
        Self { check, severity: Severity::Warning, detail: detail.into(), advice }
    }

    pub(super) fn problem(
        check: &'static str,
        detail: impl Into<String>,
        advice: impl Into<Cow<'static, str>>,
    ) -> Self {
        let advice = Some(advice.into());
        Self { check, severity: Severity::Problem, detail: detail.into(), advice }
    }

    /// One that no check could be made for.
    pub(super) fn blocked(check: &'static str, error: &dyn Error) -> Self {
        let advice = "is the database running, and may this role read its tables? What was not \
            checked may be wrong, too";
        Self::problem(check, error.to_string(), advice)
    }

    /// The examination took too long.
    pub(super) fn late() -> Self {
        let advice = "does another session keep the tables locked? What was not checked may be \
            wrong, too";
        let detail = format!("the checks took longer than {PATIENCE:?}");
        Self::problem("database", detail, advice)
    }

    /// What the operations of a trial say. `advise` says what to do about the error of a statement;
    /// without polling, a service `hears` of changes or not.
    pub(super) fn of_trial(
        failures: &[Failure],
        hears: bool,
        advise: impl Fn(Need, &StoreError) -> String,
    ) -> Vec<Self> {
        let mut findings: Vec<(Self, Vec<&'static str>)> = Vec::new();
        for Failure { operation, error } in failures {
            let severity = match operation.need() {
                // A key of such a row is not let in either.
                _ if error.kind() == StoreErrorKind::Corrupt => Severity::Problem,
                Need::LookUps => Severity::Problem,
                Need::Feed if !hears => Severity::Problem,
                Need::Feed | Need::Management => Severity::Warning,
            };
            let (detail, advice) = (cause(error), advise(operation.need(), error));
            let alike = findings.iter_mut().find(|(finding, _)| {
                finding.severity == severity
                    && finding.detail == detail
                    && finding.advice.as_deref() == Some(advice.as_str())
            });
            match alike {
                Some((_, names)) => names.push(operation.name()),
                None => {
                    let advice = Some(advice.into());
                    let finding = Self { check: OPERATIONS, severity, detail, advice };
                    findings.push((finding, vec![operation.name()]));
                }
            }
        }
        if findings.is_empty() {
            let names: Vec<_> = Operation::ALL.iter().map(|it| it.name()).collect();
            let detail = format!("all work, tried and rolled back: {}", names.join(", "));
            return vec![Self::ok(OPERATIONS, detail)];
        }
        findings.sort_by_key(|(finding, _)| std::cmp::Reverse(finding.severity));
        findings
            .into_iter()
            .map(|(finding, names)| {
                let fails = if names.len() == 1 { "fails" } else { "fail" };
                let detail = format!("{} {fails}: {}", names.join(", "), finding.detail);
                Self { detail, ..finding }
            })
            .collect()
    }

    /// What became of the parts of `kinds`, given those that differ from `expected`.
    pub(super) fn of_parts(
        check: &'static str,
        kinds: &[&str],
        expected: &[Part],
        differences: &[Difference],
        advice: &'static str,
    ) -> Self {
        let ours: Vec<_> =
            differences.iter().filter(|it| kinds.contains(&&*it.part.kind)).collect();
        let Some(severity) = ours.iter().map(|it| it.severity).max() else {
            let number = expected.iter().filter(|part| kinds.contains(&&*part.kind)).count();
            return Self::ok(check, format!("all {number} are there and in order"));
        };
        let said: Vec<_> = ours.iter().map(ToString::to_string).collect();
        let detail = format!("gone or out of order: {}", said.join("; "));
        Self { check, severity, detail, advice: Some(advice.into()) }
    }
}

/// What the history of the tables says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum History {
    /// Every migration has been applied.
    Complete,
    /// A newer release has applied more.
    Newer,
    /// There are no tables.
    Missing,
    /// There are tables, which something else made.
    Foreign,
    /// Migrations are missing, or were changed.
    Broken,
}

impl History {
    /// `has_tables`: there is a table named as ours.
    pub(super) fn of(
        migrations: &[Migration],
        applied: &[Applied],
        has_tables: bool,
    ) -> (Self, Finding) {
        const CHECK: &str = "schema";
        let migrate = "migrate: `api-key migrate`, or `migrate()` in the service that may";
        let last = applied.iter().map(|(version, _)| *version).max().unwrap_or_default();
        let known = migrations.iter().map(|migration| migration.version).max().unwrap_or_default();
        match super::migrate::missing(migrations, applied) {
            Err(error) => {
                let advice = "restore the tables from a backup, or find out who changed the \
                    migration: nothing is known of what they look like";
                (Self::Broken, Finding::problem(CHECK, cause(&error), advice))
            }
            Ok(missing) if missing.is_empty() && last > known => {
                let detail = format!("at version {last}; this release knows {known}");
                let advice = "upgrade this program: what it finds different may be as the newer \
                    release has made it";
                (Self::Newer, Finding::warning(CHECK, detail, advice))
            }
            Ok(missing) if missing.is_empty() => {
                (Self::Complete, Finding::ok(CHECK, format!("up to date, at version {last}")))
            }
            Ok(missing) if missing.len() == migrations.len() && has_tables => {
                let detail = "there are tables, but not their history, `_api_key_migrations`: \
                    another program made them";
                let advice = "if another migration tool made them from the library's migrations, \
                    go on with that one and never call `migrate`. If they belong to something \
                    else, give keys a schema or a file of their own";
                (Self::Foreign, Finding::warning(CHECK, detail, advice))
            }
            Ok(missing) if missing.len() == migrations.len() => (
                Self::Missing,
                Finding::problem(CHECK, "there are no tables of keys here", migrate),
            ),
            Ok(missing) => {
                let missing: Vec<_> = missing.iter().map(ToString::to_string).collect();
                let detail = format!("these are missing: {}", missing.join(", "));
                (Self::Broken, Finding::problem(CHECK, detail, migrate))
            }
        }
    }
}

/// A part of the tables: a column, a constraint, an index, a trigger, a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) kind: String,
    /// The table it is of, where it is of one.
    pub(super) relation: String,
    pub(super) name: String,
    pub(super) definition: String,
}

/// A part that is not as the migrations make it.
#[derive(Clone, Debug)]
pub(super) struct Difference {
    part: Part,
    /// What is there instead.
    found: Option<String>,
    pub(super) severity: Severity,
}

impl Difference {
    /// Whether statements of ours cannot work on the table.
    pub(super) fn is_of_a_table(&self) -> bool {
        self.part.kind == "column" && self.severity == Severity::Problem
    }
}

/// Which of the `expected` parts are not `found`, or not as they should be. What else is there is
/// the application's own.
pub(super) fn differences(expected: &[Part], found: &[Part]) -> Vec<Difference> {
    let differs = |part: &Part| {
        let same = |other: &&Part| other.kind == part.kind && other.relation == part.relation;
        let there = found.iter().filter(same).find(|other| other.name == part.name);
        let definition = part.definition.as_str();
        let found = match there {
            Some(there) if there.definition == definition => return None,
            Some(there) => Some(there.definition.clone()),
            // Another tool may have named it differently.
            None if part.kind == "constraint"
                && found.iter().filter(same).any(|other| other.definition == definition) =>
            {
                return None;
            }
            None => None,
        };
        let severity = severity(part, found.as_deref());
        Some(Difference { part: part.clone(), found, severity })
    };
    expected.iter().filter_map(differs).collect()
}

/// A check that is not made lets nobody in and keeps nobody out; the rest is what statements, the
/// feed or the audit depend on.
fn severity(part: &Part, found: Option<&str>) -> Severity {
    let base = |definition: &str| {
        let end = [" not null", " default "].iter().filter_map(|it| definition.find(it)).min();
        definition.get(..end.unwrap_or(definition.len())).map(str::to_owned)
    };
    let harmless = match (&*part.kind, found) {
        ("constraint", _) => part.definition.starts_with("CHECK"),
        ("column", Some(found)) => base(found) == base(&part.definition),
        ("index", Some(found)) => !found.ends_with(INVALID),
        _ => false,
    };
    if harmless { Severity::Warning } else { Severity::Problem }
}

const INVALID: &str = "(invalid)";

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Part { kind, relation, name, definition } = &self.part;
        write!(f, "{kind} {name}")?;
        if !relation.is_empty() {
            write!(f, " of {relation}")?;
        }
        match &self.found {
            None => f.write_str(" is missing"),
            Some(found) if kind == "column" => write!(f, " is {found}, not {definition}"),
            Some(found) => match found.strip_prefix(definition.as_str()) {
                // Such as `(disabled)`.
                Some(state) => write!(f, " is {}", state.trim().trim_matches(['(', ')'])),
                None => f.write_str(" is not as the migrations make it"),
            },
        }
    }
}

/// How long an examination may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

const OPERATIONS: &str = "operations";

/// What an error says of its cause.
fn cause(error: &StoreError) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

/// The code and the message of the database, where it refused a statement.
pub(super) fn refusal(error: &StoreError) -> Option<&Refusal> {
    error.source()?.downcast_ref()
}

pub(super) const NO_EFFECT: &str = "the statement succeeded without effect: a trigger, a rule or a \
    policy of the application's changes what it does; take that away";

pub(super) const UNREADABLE: &str = "the key of that row is not let in: set the column right, or \
    delete the row";

pub(super) const TRIGGERS_GONE: &str = "without them changes of keys go unnoticed by services, or \
    the audit and revocations can be undone: create them again as in the library's migrations, or \
    enable them (`alter table … enable trigger …`)";

pub(super) const INDEXES_GONE: &str = "without them look-ups and lists read every key: create them \
    again as in the library's migrations (`reindex index concurrently …` where one is invalid)";

pub(super) const TABLES_DIFFER: &str = "bring the tables to what the library's migrations make. \
    Tables of another program take a schema or a file of their own for keys";

/// The names of the `kind` ("trigger", "index") of things that `migrations` leave behind.
pub(super) fn made_by(migrations: &'static [Migration], kind: &str) -> BTreeSet<&'static str> {
    let mut made = BTreeSet::new();
    for line in migrations.iter().flat_map(|migration| migration.sql.lines()) {
        let mut words = line.split([' ', ';', '(']);
        let verb = words.next();
        let mut next = words.next();
        if next == Some("unique") {
            next = words.next();
        }
        match (verb, next, words.next()) {
            (Some("create"), Some(what), Some(name)) if what == kind => made.insert(name),
            (Some("drop"), Some(what), Some(name)) if what == kind => made.remove(name),
            _ => false,
        };
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_migrations_make_is_read_from_them() {
        const MIGRATIONS: &[Migration] = &[
            Migration {
                version: 1,
                description: "one",
                sql: "create index a on t (x);\ncreate unique index b on t (y);\n  create index c",
            },
            Migration {
                version: 2,
                description: "two",
                sql: "drop index a;\ncreate trigger d after insert on t\n-- create index e",
            },
        ];
        assert_eq!(made_by(MIGRATIONS, "index"), BTreeSet::from(["b"]));
        assert_eq!(made_by(MIGRATIONS, "trigger"), BTreeSet::from(["d"]));
    }
}
