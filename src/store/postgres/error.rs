use crate::store::{
    StoreError, StoreErrorKind,
    row::{Refusal, corrupt},
};

pub(super) fn failed(error: sqlx::Error) -> StoreError {
    match error {
        sqlx::Error::Database(error) => {
            let code = error.code().unwrap_or_default().into_owned();
            let message = error.message().to_owned();
            StoreError::new(kind(&code)).because(Refusal { code, message })
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

/// What an SQLSTATE means for whoever asked.
fn kind(code: &str) -> StoreErrorKind {
    match code {
        UNIQUE_VIOLATION | REVOKED_FOR_GOOD => StoreErrorKind::Conflict,
        // A standby, or a primary that is no more; the next connection may find the new one.
        READ_ONLY | LOCK_NOT_AVAILABLE => StoreErrorKind::Unavailable,
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

const UNIQUE_VIOLATION: &str = "23505";
pub(super) const UNDEFINED_TABLE: &str = "42P01";
const READ_ONLY: &str = "25006";
const LOCK_NOT_AVAILABLE: &str = "55P03";
/// What the trigger on `api_keys` says of a change to a revocation.
const REVOKED_FOR_GOOD: &str = "TK001";
