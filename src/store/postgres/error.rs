use crate::store::{
    StoreError, StoreErrorKind,
    row::{DatabaseRefusal, corrupt},
};

pub(super) fn failed(error: sqlx::Error) -> StoreError {
    match error {
        sqlx::Error::Database(error) => {
            let code = error.code().unwrap_or_default().into_owned();
            let message = error.message().to_owned();
            let kind = StoreError::new(kind(&code));
            let advice = advice(&code, &message);
            kind.because(DatabaseRefusal { code, message, advice })
        }
        sqlx::Error::ColumnDecode { index, .. } => corrupt(&format_args!("column {index}")),
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed => StoreError::new(StoreErrorKind::Unavailable).because(error),
        _ => StoreError::new(StoreErrorKind::Other).because(error),
    }
}

/// An error for row-level security, which would otherwise make rows look missing.
pub(super) fn hidden(table: &str, role: &str) -> StoreError {
    let problem = format!(
        "row-level security hides rows of {table} from role {role:?}: {HIDDEN_ROWS_ADVICE}"
    );
    StoreError::new(StoreErrorKind::Other).because(problem)
}

const HIDDEN_ROWS_ADVICE: &str = "grant the role BYPASSRLS, make it the owner of the table, or \
    disable row-level security on the table";

/// Maps an SQLSTATE to a kind.
fn kind(code: &str) -> StoreErrorKind {
    match code {
        UNIQUE_VIOLATION | REVOKED_FOR_GOOD => StoreErrorKind::Conflict,
        // A standby, or a former primary; the next connection may reach the new one.
        READ_ONLY | LOCK_NOT_AVAILABLE | IDLE_IN_TRANSACTION => StoreErrorKind::Unavailable,
        _ => match code.get(..2) {
            // Connection, rollback (including deadlocks), resources, operator intervention
            // (including timeouts).
            Some("08" | "40" | "53" | "57") => StoreErrorKind::Unavailable,
            // Constraints (including foreign keys), values, `with check option`, `raise exception`.
            Some("22" | "23" | "44" | "P0") => StoreErrorKind::Refused,
            _ => StoreErrorKind::Other,
        },
    }
}

fn advice(code: &str, message: &str) -> Option<&'static str> {
    Some(match code {
        NO_RIGHT if message.contains("row-level security") => HIDDEN_ROWS_ADVICE,
        NO_RIGHT => "grant the role the missing privileges; `api-key doctor` lists them",
        LOCK_NOT_AVAILABLE => {
            "another session keeps the rows or the table locked; \
            `select * from pg_locks where not granted` and `pg_blocking_pids(pid)` show which"
        }
        READ_ONLY => {
            "the server is a standby or read-only: keys are changed on the primary, so \
            manage them through a separate store that connects to the primary"
        }
        CANCELED => "the statement took longer than its `statement_timeout`, or was cancelled",
        UNDEFINED_COLUMN => {
            "run `migrate` to update the tables; if the table belongs to another application, \
            use a separate schema for this library"
        }
        UNDEFINED_TABLE | UNDEFINED_SCHEMA => {
            "run `migrate` to create the tables; if they are in another schema, name it"
        }
        _ => return None,
    })
}

/// Whether the error concerns rows of the statement rather than the database: a batch without those
/// rows can succeed.
pub(super) fn is_of_a_row(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    // Invalid data, a constraint, or an exception raised by a trigger.
    code.is_some_and(|code| matches!(code.get(..2), Some("22" | "23" | "P0" | "TK")))
}

pub(super) fn is_locked(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| code == LOCK_NOT_AVAILABLE)
}

/// Whether another user of the connection left a transaction open on it.
pub(super) fn is_left_open(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| matches!(&*code, "25001" | "25P02"))
}

const UNIQUE_VIOLATION: &str = "23505";
const NO_RIGHT: &str = "42501";
const UNDEFINED_COLUMN: &str = "42703";
const UNDEFINED_SCHEMA: &str = "3F000";
pub(super) const UNDEFINED_TABLE: &str = "42P01";
const READ_ONLY: &str = "25006";
const IDLE_IN_TRANSACTION: &str = "25P03";
const LOCK_NOT_AVAILABLE: &str = "55P03";
const CANCELED: &str = "57014";
/// Raised by the trigger on `api_keys` when a revocation would be changed.
const REVOKED_FOR_GOOD: &str = "TK001";
