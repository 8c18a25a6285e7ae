//! What a diagnosis of a store finds.

use std::collections::BTreeSet;

use super::migrate::{Applied, Migration};

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
    pub advice: Option<&'static str>,
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
        advice: &'static str,
    ) -> Self {
        let advice = Some(advice);
        Self { check, severity: Severity::Warning, detail: detail.into(), advice }
    }

    pub(super) fn problem(
        check: &'static str,
        detail: impl Into<String>,
        advice: &'static str,
    ) -> Self {
        let advice = Some(advice);
        Self { check, severity: Severity::Problem, detail: detail.into(), advice }
    }

    /// What the history of the tables says; without one there is nothing more to look at.
    pub(super) fn of_history(migrations: &[Migration], history: &[Applied]) -> Self {
        const CHECK: &str = "schema";
        let migrate = "migrate: `api-key migrate`, or `migrate()` in the service that may";
        match super::migrate::missing(migrations, history) {
            Err(error) => {
                let detail = std::error::Error::source(&error)
                    .map_or_else(|| error.to_string(), ToString::to_string);
                let advice = "restore the tables from a backup, or find out who changed the \
                    migration: nothing is known of what they look like";
                Self::problem(CHECK, detail, advice)
            }
            Ok(missing) if missing.is_empty() => {
                let last = history.iter().map(|(version, _)| version).max();
                let last = last.map_or(0, |version| *version);
                Self::ok(CHECK, format!("up to date, at version {last}"))
            }
            Ok(missing) if missing.len() == migrations.len() => {
                Self::problem(CHECK, "there are no tables of keys here", migrate)
            }
            Ok(missing) => {
                let missing: Vec<_> = missing.iter().map(ToString::to_string).collect();
                let detail = format!("these are missing: {}", missing.join(", "));
                Self::problem(CHECK, detail, migrate)
            }
        }
    }

    /// What became of the `kind` of things that the migrations made, of which `sound` are there and
    /// in order.
    pub(super) fn of_parts(
        check: &'static str,
        expected: &BTreeSet<&'static str>,
        sound: &[String],
        advice: &'static str,
    ) -> Self {
        let missing: Vec<_> =
            expected.iter().filter(|name| !sound.iter().any(|it| it == *name)).copied().collect();
        if missing.is_empty() {
            return Self::ok(check, format!("all {} are there and in order", expected.len()));
        }
        Self::problem(check, format!("gone or out of order: {}", missing.join(", ")), advice)
    }
}

pub(super) const TRIGGERS_GONE: &str = "without them changes of keys go unnoticed by services, or \
    the audit and revocations can be undone: create them again as in the library's migrations, or \
    enable them (`alter table … enable trigger …`)";

pub(super) const INDEXES_GONE: &str = "without them look-ups and lists read every key: create them \
    again as in the library's migrations (`reindex index concurrently …` where one is invalid)";

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
