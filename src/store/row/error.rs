//! Error details that are safe to show.

use std::{error::Error, fmt};

use crate::store::{StoreError, StoreErrorKind};

/// The transaction is unusable because an earlier statement failed or was cancelled.
pub(in crate::store) fn ended() -> StoreError {
    StoreError::new(StoreErrorKind::Other).because("the transaction already failed")
}

/// An error that names an invalid place without its value.
pub(in crate::store) fn corrupt(place: &(impl fmt::Display + ?Sized)) -> StoreError {
    StoreError::new(StoreErrorKind::Corrupt).because(place.to_string())
}

pub(super) fn unstorable(error: impl Error + Send + Sync + 'static) -> StoreError {
    StoreError::new(StoreErrorKind::Other).because(error)
}

/// The code and message of a database error.
///
/// The driver's own error also carries, and prints, the values of the row.
#[derive(Debug)]
pub(in crate::store) struct DatabaseRefusal {
    pub(in crate::store) code: String,
    pub(in crate::store) message: String,
    /// How to fix it.
    pub(in crate::store) advice: Option<&'static str>,
}

impl fmt::Display for DatabaseRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (code {})", self.message, self.code)?;
        self.advice.map_or(Ok(()), |advice| write!(f, ": {advice}"))
    }
}

impl Error for DatabaseRefusal {}
