use crate::store::{
    StoreError, StoreErrorKind,
    row::{DatabaseRefusal, corrupt},
};

pub(super) fn failed(error: sqlx::Error) -> StoreError {
    match error {
        sqlx::Error::Database(error) => {
            let code = error.code().unwrap_or_default().into_owned();
            let message = error.message().to_owned();
            let unique = error.is_unique_violation();
            let kind = if unique { StoreErrorKind::Conflict } else { kind(&code) };
            let kind = StoreError::new(kind);
            let advice = advice(&code, &message);
            kind.because(DatabaseRefusal { code, message, advice })
        }
        sqlx::Error::ColumnDecode { index, .. } => corrupt(&format_args!("column {index}")),
        // There is no server to be unavailable: all connections are in use.
        sqlx::Error::PoolTimedOut => StoreError::new(StoreErrorKind::Overloaded).because(error),
        sqlx::Error::Io(_) | sqlx::Error::WorkerCrashed | sqlx::Error::PoolClosed => {
            StoreError::new(StoreErrorKind::Unavailable).because(error)
        }
        _ => StoreError::new(StoreErrorKind::Other).because(error),
    }
}

fn advice(code: &str, message: &str) -> Option<&'static str> {
    // Only the code distinguishes "no space left" from other write errors.
    if primary(code) == FULL {
        return Some("free space in the file system of the database");
    }
    let lacks = |what| message.starts_with(what);
    if lacks("no such column") || lacks("no such table") || lacks("no such index") {
        return Some("run `migrate` to create or update the tables");
    }
    None
}

pub(super) fn is_busy(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| primary(&code) == BUSY)
}

/// Whether the error concerns rows of the statement rather than the database.
pub(super) fn is_of_a_row(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| matches!(primary(&code), CONSTRAINT | MISMATCH))
}

/// Maps a SQLite result code to a kind.
fn kind(code: &str) -> StoreErrorKind {
    match primary(code) {
        BUSY | LOCKED | OUT_OF_MEMORY | IO | FULL | CANNOT_OPEN | PROTOCOL => {
            StoreErrorKind::Unavailable
        }
        // Includes foreign keys and `raise`.
        CONSTRAINT => StoreErrorKind::Refused,
        _ => StoreErrorKind::Other,
    }
}

/// The result code without the details in its upper bytes.
fn primary(code: &str) -> u32 {
    code.parse::<u32>().unwrap_or_default() & 0xff
}

const BUSY: u32 = 5;
const LOCKED: u32 = 6;
const OUT_OF_MEMORY: u32 = 7;
const IO: u32 = 10;
const FULL: u32 = 13;
const CANNOT_OPEN: u32 = 14;
const CONSTRAINT: u32 = 19;
const MISMATCH: u32 = 20;
/// Contention on the locks of the write-ahead log.
const PROTOCOL: u32 = 15;
