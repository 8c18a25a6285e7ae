//! Findings of the store diagnosis.

use std::{borrow::Cow, error::Error, time::Duration};

use super::{
    StoreError, StoreErrorKind,
    migrate::{Applied, Migration},
    row::DatabaseRefusal,
    trial::{Failure, Need, Operation},
};

#[cfg(feature = "webhooks")]
use crate::record::{WebhookEndpoint, WebhookState};

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

    /// How many imported keys still have a legacy hash. They are no fault: their clients may come.
    pub(super) fn of_legacy_keys(left: Result<u64, StoreError>) -> Self {
        const CHECK: &str = "legacy";
        match left {
            Ok(left) => {
                let what = "imported keys that keep a legacy hash until their first use";
                Self::ok(CHECK, format!("{left} left of the {what}"))
            }
            Err(error) => {
                let advice = "a service that verifies legacy hashes rejects every unknown key: \
                    give this role the rights named above";
                Self::warning(CHECK, cause(&error), advice)
            }
        }
    }

    /// Whether webhooks get their events.
    #[cfg(feature = "webhooks")]
    pub(super) fn of_webhooks(all: Result<Vec<WebhookEndpoint>, StoreError>) -> Self {
        const CHECK: &str = "webhooks";
        let all = match all {
            Ok(all) => all,
            Err(error) if database_refusal(&error).is_some_and(|it| it.code == "42501") => {
                return Self::ok(CHECK, "this role may not read webhooks, and delivers none");
            }
            Err(error) => {
                let advice = "no events are delivered before this is fixed";
                return Self::warning(CHECK, cause(&error), advice);
            }
        };
        let stopped = all.iter().filter(|webhook| webhook.state == WebhookState::Parked);
        let stopped: Vec<_> = stopped.map(|webhook| webhook.id.to_string()).collect();
        if stopped.is_empty() {
            return Self::ok(
                CHECK,
                match all.len() {
                    0 => "there are no webhooks".to_owned(),
                    1 => "1 webhook, which is not parked".to_owned(),
                    count => format!("{count} webhooks, of which none is parked"),
                },
            );
        }
        let (parked, count) = (stopped.len(), all.len());
        let detail = format!(
            "{parked} of {count} webhooks get no events, because deliveries failed for days: {}",
            stopped.join(", ")
        );
        let advice = "`api-key webhooks list` shows the errors; when the receiver works again, \
            `api-key webhooks replay` resumes the webhook";
        Self::warning(CHECK, detail, advice)
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
                    migrations, run `api-key migrate --adopt`. If they belong to something else, \
                    keep keys in a schema or a file of their own";
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
