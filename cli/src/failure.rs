use std::{error::Error, io::Write as _, process::ExitCode};

use tower_api_key::{
    manage::{ManageError, ManageErrorKind},
    store::{StoreError, StoreErrorKind},
};

/// Why a command failed: a one-line message and an exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    /// Empty if there is nothing to report.
    message: String,
}

pub(crate) const USAGE: u8 = 2;
pub(crate) const NOT_FOUND: u8 = 3;
pub(crate) const CONFLICT: u8 = 4;
pub(crate) const REJECTED: u8 = 5;
pub(crate) const UNHEALTHY: u8 = 6;
/// The exit code that a shell reports for a program ended by SIGPIPE.
const PIPE_CLOSED: u8 = 141;

impl Failure {
    /// The database, a file or a stream failed.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { code: 1, message: message.into() }
    }

    /// The reader of standard output ended, as in `api-key list | head`.
    pub(crate) fn pipe_closed() -> Self {
        Self { code: PIPE_CLOSED, message: String::new() }
    }

    /// The input is invalid.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { code: USAGE, message: message.into() }
    }

    /// There is no such key or plan.
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self { code: NOT_FOUND, message: message.into() }
    }

    /// For `scan`, whose exit code 1 means that a key was found.
    pub(crate) fn inconclusive(self) -> Self {
        if self.code == 1 { Self { code: USAGE, ..self } } else { self }
    }

    /// A command failed with this exit code.
    pub(crate) fn with_code(code: u8, error: &(dyn Error + 'static)) -> Self {
        let failure = Self { code, message: error.to_string() };
        match error.source() {
            Some(source) => failure.because(source).advise("Run `api-key doctor` for details"),
            None => failure,
        }
    }

    /// Appends the error's text and those of its sources.
    pub(crate) fn because(mut self, error: &(dyn Error + 'static)) -> Self {
        let mut cause = Some(error);
        while let Some(error) = cause {
            let text = error.to_string();
            // Some errors include the text of their source.
            if !self.message.ends_with(&text) {
                self.message = format!("{}: {text}", self.message);
            }
            cause = error.source();
        }
        self
    }

    /// Appends what to do.
    pub(crate) fn advise(self, advice: &str) -> Self {
        Self { message: format!("{}. {advice}", self.message), ..self }
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    pub(crate) fn report(&self) -> ExitCode {
        if self.message.is_empty() {
            return ExitCode::from(self.code);
        }
        // Messages of a database may span lines.
        let message = self.message.replace(['\n', '\r'], " ");
        let style = anstyle::AnsiColor::Red.on_default().bold();
        // If standard error is closed, the message is lost.
        let _ = writeln!(anstream::stderr(), "{style}api-key:{style:#} {message}");
        ExitCode::from(self.code)
    }
}

impl From<ManageError> for Failure {
    fn from(error: ManageError) -> Self {
        let code = match error.kind() {
            ManageErrorKind::Invalid | ManageErrorKind::ExceedsPolicy => USAGE,
            ManageErrorKind::NotFound => NOT_FOUND,
            ManageErrorKind::Conflict
            | ManageErrorKind::Outdated
            | ManageErrorKind::Repeated
            | ManageErrorKind::IdempotencyKeyReused
            | ManageErrorKind::TooManyKeys
            | ManageErrorKind::TooManyChanges => CONFLICT,
            _ => 1,
        };
        let message = match error.field().and_then(option) {
            Some(option) => format!("{option}: {}", error.detail()),
            None => error.to_string(),
        };
        let failure = Self { code, message };
        if error.kind() == ManageErrorKind::ExceedsPolicy
            || (error.kind() == ManageErrorKind::TooManyKeys && error.field().is_some())
        {
            return failure
                .advise("--override REASON does it all the same, and tells the audit why");
        }
        match error.source() {
            Some(source) if code == 1 => failure.because(source).advise(
                "`api-key doctor` diagnoses the database, `api-key migrate` brings its tables up \
                to date",
            ),
            _ => failure,
        }
    }
}

/// The option that sets a field.
fn option(field: &str) -> Option<&'static str> {
    Some(match field {
        "consumer_id" => "--consumer",
        "name" => "--name",
        "scopes" => "--scope",
        "rate_limits" => "--rate-limit",
        "plan" => "--plan",
        "expires_at" => "--expires",
        "not_before" => "--not-before",
        "created_by" => "--created-by",
        "reason" => "--reason",
        "policy_override" => "--override",
        "key_prefix" => "--prefix",
        "key_last4" => "--last4",
        "limit" => "--limit",
        "from" => "--from",
        _ => return None,
    })
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let advice = match error.kind() {
            StoreErrorKind::Unavailable => "Is the database running, and is --database-url right?",
            StoreErrorKind::Overloaded => "The database is busy with other sessions; try again",
            StoreErrorKind::Migration => "Nothing was changed; try again",
            _ => "Run `api-key doctor` for details",
        };
        Self::new("the database").because(&error).advise(advice)
    }
}
