//! Findings of the store diagnosis.

use std::{borrow::Cow, collections::BTreeSet, error::Error, fmt, time::Duration};

use super::{
    StoreError, StoreErrorKind,
    migrate::{Applied, Migration},
    row::DatabaseRefusal,
    trial::{Failure, Need, Operation},
};

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// The name of the check, such as `triggers`.
    pub check: &'static str,
    /// How serious the finding is.
    pub severity: Severity,
    /// What was found.
    pub detail: String,
    /// How to fix it.
    pub advice: Option<Cow<'static, str>>,
}

/// The severity of a [`Finding`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Severity {
    /// As expected.
    Ok,
    /// Degraded: something does not work, or not as well as it could.
    Warning,
    /// Keys cannot be looked up, or changes to them go unnoticed.
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

    /// The check itself could not be made.
    pub(super) fn blocked(check: &'static str, error: &dyn Error) -> Self {
        let advice = "check that the database is running and that this role can read its tables; \
            the remaining checks were not made";
        Self::problem(check, error.to_string(), advice)
    }

    /// The diagnosis timed out.
    pub(super) fn late() -> Self {
        let advice = "check whether another session keeps the tables locked; the remaining checks \
            were not made";
        let detail = format!("the checks took longer than {PATIENCE:?}");
        Self::problem("database", detail, advice)
    }

    /// The findings of a trial. `advise` returns what to do about the error of a statement.
    /// `hears`: whether a service learns of changes without polling.
    pub(super) fn of_trial(
        failures: &[Failure],
        hears: bool,
        advise: impl Fn(Need, &StoreError) -> String,
    ) -> Vec<Self> {
        let mut findings: Vec<(Self, Vec<&'static str>)> = Vec::new();
        for Failure { operation, error } in failures {
            let severity = match operation.need() {
                // The key of such a row is refused, too.
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
            let detail = format!("all work (tried, then rolled back): {}", names.join(", "));
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

    /// The finding for the parts of these `kinds`, given the differences from `expected`.
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
            return Self::ok(check, format!("all {number} are present and correct"));
        };
        let said: Vec<_> = ours.iter().map(ToString::to_string).collect();
        let detail = format!("missing or different: {}", said.join("; "));
        Self { check, severity, detail, advice: Some(advice.into()) }
    }
}

/// The state of the migration history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum History {
    /// All migrations have been applied.
    Complete,
    /// A newer release has applied more migrations.
    Newer,
    /// There are no tables.
    Missing,
    /// There are tables that another program created.
    Foreign,
    /// Migrations are missing or were changed.
    Broken,
}

impl History {
    /// `has_tables`: whether a table with one of our names exists.
    pub(super) fn of(
        migrations: &[Migration],
        applied: &[Applied],
        has_tables: bool,
    ) -> (Self, Finding) {
        const CHECK: &str = "schema";
        let migrate = "run `api-key migrate`, or call `migrate()` from a service with the rights";
        let last = applied.iter().map(|(version, _)| *version).max().unwrap_or_default();
        let known = migrations.iter().map(|migration| migration.version).max().unwrap_or_default();
        match super::migrate::missing(migrations, applied) {
            Err(error) => {
                let advice = "restore the tables from a backup, or find out who changed the \
                    migration: the state of the tables is unknown";
                (Self::Broken, Finding::problem(CHECK, cause(&error), advice))
            }
            Ok(missing) if missing.is_empty() && last > known => {
                let detail = format!("at version {last}; this release knows {known}");
                let advice = "upgrade this program: the differences it reports may be changes made \
                    by the newer release";
                (Self::Newer, Finding::warning(CHECK, detail, advice))
            }
            Ok(missing) if missing.is_empty() => {
                (Self::Complete, Finding::ok(CHECK, format!("up to date, at version {last}")))
            }
            Ok(missing) if missing.len() == migrations.len() && has_tables => {
                let detail = "there are tables, but not their history, `_api_key_migrations`: \
                    another program made them";
                let advice = "if another migration tool created them from the library's \
                    migrations, keep using that tool and never call `migrate`. If they belong to \
                    something else, keep keys in a schema or a file of their own";
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

/// A part of the schema: a column, a constraint, an index, a trigger or a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) kind: String,
    /// The table it belongs to, if any.
    pub(super) relation: String,
    pub(super) name: String,
    pub(super) definition: String,
}

/// A part that differs from the migrations.
#[derive(Clone, Debug)]
pub(super) struct Difference {
    part: Part,
    /// The definition found instead, if any.
    found: Option<String>,
    pub(super) severity: Severity,
}

impl Difference {
    /// Whether our statements cannot work on the table.
    pub(super) fn is_of_a_table(&self) -> bool {
        self.part.kind == "column" && self.severity == Severity::Problem
    }
}

/// The `expected` parts that are missing from `found` or different. Additional parts belong to the
/// application.
pub(super) fn differences(expected: &[Part], found: &[Part]) -> Vec<Difference> {
    let differs = |part: &Part| {
        let same = |other: &&Part| other.kind == part.kind && other.relation == part.relation;
        let there = found.iter().filter(same).find(|other| other.name == part.name);
        let definition = part.definition.as_str();
        let found = match there {
            Some(there) if there.definition == definition => return None,
            Some(there) => Some(there.definition.clone()),
            // Another tool may have given the constraint a different name.
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

/// A missing check constraint affects no request; statements, the feed and the audit depend on
/// everything else.
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
                // For example `(disabled)`.
                Some(state) => write!(f, " is {}", state.trim().trim_matches(['(', ')'])),
                None => f.write_str(" is not as the migrations make it"),
            },
        }
    }
}

/// Deadline of the diagnosis.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

const OPERATIONS: &str = "operations";

/// The text of the error's cause.
fn cause(error: &StoreError) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

/// The database's code and message, if it refused a statement.
pub(super) fn database_refusal(error: &StoreError) -> Option<&DatabaseRefusal> {
    error.source()?.downcast_ref()
}

pub(super) const NO_EFFECT: &str = "the statement succeeded without effect: a trigger, rule or \
    policy of the application changes what it does; remove it";

pub(super) const UNREADABLE: &str = "the key of that row is refused: correct the column, or delete \
    the row";

pub(super) const TRIGGERS_GONE: &str = "without them services miss changes to keys, or the audit \
    is incomplete and revocations can be undone: recreate them from the library's migrations, or \
    enable them (`alter table … enable trigger …`)";

pub(super) const INDEXES_GONE: &str = "without them look-ups and lists scan all keys: recreate \
    them from the library's migrations (`reindex index concurrently …` for an invalid one)";

pub(super) const TABLES_DIFFER: &str = "change the tables to match the library's migrations. If \
    they belong to another program, keep keys in a schema or a file of their own";

/// The names of the objects of this `kind` ("trigger", "index") that exist after all `migrations`.
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
