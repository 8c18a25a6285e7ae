//! The structure of a database, compared with that of the migrations.

use std::{collections::BTreeSet, fmt};

use super::{
    StoreError, StoreErrorKind,
    doctor::{Finding, History, Severity},
    migrate::Migration,
};

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
    severity: Severity,
}

impl Difference {
    /// Whether our statements cannot work on the table.
    pub(super) fn is_of_a_table(&self) -> bool {
        self.part.kind == "column" && self.severity == Severity::Problem
    }
}

/// Compares the parts that were `found` with those of the migrations, and adds a finding for each
/// kind that a database has.
pub(super) fn compare(
    expected: &[Part],
    found: &[Part],
    history: History,
    findings: &mut Vec<Finding>,
) -> Vec<Difference> {
    let mut differences = differences(expected, found);
    if history == History::Newer {
        // A newer release may have replaced it.
        differences.iter_mut().for_each(|it| it.severity = Severity::Warning);
    }
    for (check, kinds, advice) in [
        ("tables", ["column", "constraint"].as_slice(), TABLES_DIFFER),
        ("triggers", &["trigger"], TRIGGERS_GONE),
        // SQLite has none.
        ("functions", &["function"], TRIGGERS_GONE),
        ("indexes", &["index"], INDEXES_GONE),
    ] {
        if expected.iter().any(|part| kinds.contains(&&*part.kind)) {
            findings.push(finding(check, kinds, expected, &differences, advice));
        }
    }
    differences
}

/// Differences that an error lists.
const LISTED: usize = 10;

/// Refuses a structure that is not exactly that of the migrations, and names what differs.
pub(super) fn require(expected: &[Part], found: &[Part]) -> Result<(), StoreError> {
    let differences = differences(expected, found);
    if differences.is_empty() {
        return Ok(());
    }
    let mut listed: Vec<_> = differences.iter().take(LISTED).map(ToString::to_string).collect();
    if let Some(more) = differences.len().checked_sub(LISTED).filter(|more| *more > 0) {
        listed.push(format!("and {more} more"));
    }
    let problem = format!("not as the migrations make them: {}", listed.join("; "));
    Err(StoreError::new(StoreErrorKind::Migration).because(problem))
}

/// The finding for the parts of these `kinds`, given the differences from `expected`.
fn finding(
    check: &'static str,
    kinds: &[&str],
    expected: &[Part],
    differences: &[Difference],
    advice: &'static str,
) -> Finding {
    let ours: Vec<_> = differences.iter().filter(|it| kinds.contains(&&*it.part.kind)).collect();
    let Some(severity) = ours.iter().map(|it| it.severity).max() else {
        let number = expected.iter().filter(|part| kinds.contains(&&*part.kind)).count();
        return Finding::ok(check, format!("all {number} are present and correct"));
    };
    let said: Vec<_> = ours.iter().map(ToString::to_string).collect();
    let detail = format!("missing or different: {}", said.join("; "));
    Finding { check, severity, detail, advice: Some(advice.into()) }
}

/// The `expected` parts that are missing from `found` or different. Additional parts belong to the
/// application.
fn differences(expected: &[Part], found: &[Part]) -> Vec<Difference> {
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

const TRIGGERS_GONE: &str = "without them services miss changes to keys, or the audit \
    is incomplete and revocations can be undone: recreate them from the library's migrations, or \
    enable them (`alter table … enable trigger …`)";

const INDEXES_GONE: &str = "without them look-ups and lists scan all keys: recreate \
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
