use crate::store::{
    StoreError, StoreErrorKind,
    row::{Refusal, corrupt},
};

pub(super) fn failed(error: sqlx::Error) -> StoreError {
    match error {
        sqlx::Error::Database(error) => {
            let code = error.code().unwrap_or_default().into_owned();
            let message = error.message().to_owned();
            let kind = StoreError::new(kind(&code));
            let advice = advice(&code, &message);
            kind.because(Refusal { code, message, advice })
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

/// Rows may be missing where an error would be right.
pub(super) fn hidden(table: &str, role: &str) -> StoreError {
    let problem = format!(
        "row-level security hides rows of {table} from role {role:?}: {HIDDEN_ROWS_ADVICE}"
    );
    StoreError::new(StoreErrorKind::Other).because(problem)
}

const HIDDEN_ROWS_ADVICE: &str = "grant the role BYPASSRLS, make it the owner of the table, or \
    disable row-level security on the table";

/// What an SQLSTATE means for whoever asked.
fn kind(code: &str) -> StoreErrorKind {
    match code {
        UNIQUE_VIOLATION | REVOKED_FOR_GOOD => StoreErrorKind::Conflict,
        // A standby, or a primary that is no more; the next connection may find the new one.
        READ_ONLY | LOCK_NOT_AVAILABLE | IDLE_IN_TRANSACTION => StoreErrorKind::Unavailable,
        _ => match code.get(..2) {
            // Connection, rollback (deadlocks included), resources, operator's intervention
            // (timeouts included).
            Some("08" | "40" | "53" | "57") => StoreErrorKind::Unavailable,
            // Constraints (foreign keys included), values, `with check option`, `raise exception`.
            Some("22" | "23" | "44" | "P0") => StoreErrorKind::Refused,
            _ => StoreErrorKind::Other,
        },
    }
}

fn advice(code: &str, message: &str) -> Option<&'static str> {
    Some(match code {
        NO_RIGHT if message.contains("row-level security") => HIDDEN_ROWS_ADVICE,
        NO_RIGHT => "grant the role what it lacks; `api-key doctor` lists it",
        LOCK_NOT_AVAILABLE => {
            "another session keeps the rows or the table locked; \
            `select * from pg_locks where not granted` and `pg_blocking_pids(pid)` say which"
        }
        READ_ONLY => {
            "the server is a standby, or may only be read: keys are changed on the primary, so give what \
            manages keys a store of its own that connects to the primary"
        }
        CANCELED => "the statement took longer than its `statement_timeout`, or was cancelled",
        UNDEFINED_COLUMN => {
            "`migrate` brings the tables up to date; if the table is another application's, give \
            this library a schema of its own"
        }
        UNDEFINED_TABLE | UNDEFINED_SCHEMA => {
            "`migrate` makes the tables; if they are in another schema, name that"
        }
        _ => return None,
    })
}

/// Whether the error is about rows of the statement rather than about the database: another batch
/// without them can succeed.
pub(super) fn is_of_a_row(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    // Data that makes no sense, a constraint, an exception that a trigger raised.
    code.is_some_and(|code| matches!(code.get(..2), Some("22" | "23" | "P0" | "TK")))
}

pub(super) fn is_locked(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| code == LOCK_NOT_AVAILABLE)
}

/// Whether a transaction of another user of the connection was left open on it.
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
/// What the trigger on `api_keys` says of a change to a revocation.
const REVOKED_FOR_GOOD: &str = "TK001";
