use std::{error::Error, fmt, sync::Arc};

use crate::rate_limit::InvalidPlanName;

/// A store operation failed.
///
/// Neither `Display` nor `Debug` shows values of the record. The driver's own error is the
/// [`source`](Error::source), shared by clones.
#[derive(Clone)]
pub struct StoreError {
    pub(super) kind: StoreErrorKind,
    pub(super) source: Option<Arc<dyn Error + Send + Sync>>,
}

impl StoreError {
    /// An error of this kind.
    #[must_use]
    pub const fn new(kind: StoreErrorKind) -> Self {
        Self { kind, source: None }
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { source: Some(source.into().into()), ..self }
    }

    /// What went wrong.
    #[must_use]
    pub const fn kind(&self) -> StoreErrorKind {
        self.kind
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            StoreErrorKind::Unavailable => "key store unavailable",
            StoreErrorKind::Overloaded => "key store overloaded: too many concurrent operations",
            StoreErrorKind::Conflict => "the key already exists, or was changed concurrently",
            StoreErrorKind::Corrupt => "the key store returned an invalid record",
            StoreErrorKind::Refused => "a key store constraint or trigger refused the change",
            StoreErrorKind::Migration => "the tables of the key store could not be migrated",
            StoreErrorKind::Unsupported => "the key store does not support this",
            StoreErrorKind::Other => "the key store failed",
        })
    }
}

impl fmt::Debug for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("StoreError");
        debug.field("kind", &self.kind);
        if let Some(source) = &self.source {
            // A driver's `Debug` may print values of the row.
            debug.field("source", &format_args!("{source}"));
        }
        debug.finish()
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

impl From<InvalidPlanName> for StoreError {
    fn from(error: InvalidPlanName) -> Self {
        Self::new(StoreErrorKind::Other).because(error)
    }
}

/// The kind of a [`StoreError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// No connection, no answer in time, or shutting down. Retrying may help.
    Unavailable,
    /// The store is reachable, but this process already uses all the capacity it may. Retrying will
    /// help. It is not an outage: stale records are not served because of it.
    Overloaded,
    /// A key with this id or hash exists, or the record was changed concurrently.
    Conflict,
    /// This version cannot parse a row. The key is refused, even if an earlier record of it is
    /// cached.
    Corrupt,
    /// A constraint or trigger of the database refused this row, often one added by the
    /// application, such as a foreign key. Other rows are not affected.
    Refused,
    /// Migrating the tables failed.
    Migration,
    /// The store does not implement an optional part of its port.
    Unsupported,
    /// Anything else.
    Other,
}

impl StoreErrorKind {
    /// The kind's name for logs and metrics, such as `unavailable`. It never changes.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unavailable => "unavailable",
            Self::Overloaded => "overloaded",
            Self::Conflict => "conflict",
            Self::Corrupt => "corrupt",
            Self::Refused => "refused",
            Self::Migration => "migration",
            Self::Unsupported => "unsupported",
            Self::Other => "other",
        }
    }
}
