//! The tables' history: which migrations there are, and which a database still lacks.
//!
//! Not sqlx's migrator: its table, `_sqlx_migrations`, belongs to the application, and its session
//! lock outlives a migration that failed.

use std::fmt;

use super::{StoreError, StoreErrorKind};

/// One step of the tables' history. A step that was released is never changed again.
pub(super) struct Migration {
    pub(super) version: i64,
    pub(super) description: &'static str,
    pub(super) sql: &'static str,
}

#[cfg(feature = "postgres")]
pub(super) const POSTGRES: &[Migration] = &[
    Migration {
        version: 1,
        description: "api keys",
        sql: include_str!("../../migrations/postgres/0001_api_keys.sql"),
    },
    Migration {
        version: 2,
        description: "changes of api keys",
        sql: include_str!("../../migrations/postgres/0002_api_key_changes.sql"),
    },
    Migration {
        version: 3,
        description: "management of api keys",
        sql: include_str!("../../migrations/postgres/0003_api_key_management.sql"),
    },
    Migration {
        version: 4,
        description: "plans of api keys",
        sql: include_str!("../../migrations/postgres/0004_api_key_plans.sql"),
    },
    Migration {
        version: 5,
        description: "audit of api keys",
        sql: include_str!("../../migrations/postgres/0005_api_key_audit.sql"),
    },
    Migration {
        version: 6,
        description: "feed of api keys",
        sql: include_str!("../../migrations/postgres/0006_api_key_feed.sql"),
    },
    Migration {
        version: 7,
        description: "bounds of api keys",
        sql: include_str!("../../migrations/postgres/0007_api_key_bounds.sql"),
    },
];

#[cfg(feature = "sqlite")]
pub(super) const SQLITE: &[Migration] = &[
    Migration {
        version: 1,
        description: "api keys",
        sql: include_str!("../../migrations/sqlite/0001_api_keys.sql"),
    },
    Migration {
        version: 2,
        description: "changes of api keys",
        sql: include_str!("../../migrations/sqlite/0002_api_key_changes.sql"),
    },
    Migration {
        version: 3,
        description: "management of api keys",
        sql: include_str!("../../migrations/sqlite/0003_api_key_management.sql"),
    },
    Migration {
        version: 4,
        description: "plans of api keys",
        sql: include_str!("../../migrations/sqlite/0004_api_key_plans.sql"),
    },
    Migration {
        version: 5,
        description: "audit of api keys",
        sql: include_str!("../../migrations/sqlite/0005_api_key_audit.sql"),
    },
    Migration {
        version: 7,
        description: "bounds of api keys",
        sql: include_str!("../../migrations/sqlite/0007_api_key_bounds.sql"),
    },
];

/// A row of the history: a version, and the checksum it had when it was applied.
pub(super) type Applied = (i64, i64);

/// Those of `migrations` that a database with this history lacks, in order.
///
/// What a newer release of this crate has applied is none of our business: during a rolling upgrade
/// the old release keeps starting.
pub(super) fn missing<'m>(
    migrations: &'m [Migration],
    history: &[Applied],
) -> Result<Vec<&'m Migration>, StoreError> {
    let mut missing = Vec::new();
    for migration in migrations {
        match history.iter().find(|(version, _)| *version == migration.version) {
            None => missing.push(migration),
            Some((_, checksum)) if *checksum == migration.checksum() => {}
            Some(_) => {
                let problem = format!("{migration} was changed after it had been applied");
                return Err(StoreError::new(StoreErrorKind::Migration).because(problem));
            }
        }
    }
    Ok(missing)
}

/// What went wrong while migrating is a failed migration, unless there was just no connection.
pub(super) fn failed(error: StoreError) -> StoreError {
    match error.kind {
        StoreErrorKind::Unavailable | StoreErrorKind::Overloaded => error,
        _ => StoreError { kind: StoreErrorKind::Migration, ..error },
    }
}

/// There is no log to read changes from, and no trigger that tells them.
pub(super) fn no_changes() -> StoreError {
    let problem = "nothing here tells of changes: `migrate` has not been run, or the triggers of \
        `api_keys` are gone";
    StoreError::new(StoreErrorKind::Migration).because(problem)
}

impl Migration {
    /// Tells edits, which are accidents. Line ends do not count: some checkouts rewrite them.
    pub(super) fn checksum(&self) -> i64 {
        let mut crc = crc32fast::Hasher::new();
        for line in self.sql.lines() {
            crc.update(line.as_bytes());
            crc.update(b"\n");
        }
        crc.finalize().into()
    }

    /// Says in which migration `error` happened.
    pub(super) fn blame(&self, error: StoreError) -> StoreError {
        match error.source {
            Some(source) => StoreError::new(error.kind).because(format!("{self}: {source}")),
            None => error,
        }
    }
}

impl fmt::Display for Migration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "migration {} ({})", self.version, self.description)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Migration = Migration { version: 1, description: "one", sql: "a\nb" };
    const TWO: Migration = Migration { version: 2, description: "two", sql: "c" };

    fn versions(history: &[Applied]) -> Vec<i64> {
        let migrations = [ONE, TWO];
        missing(&migrations, history).unwrap().iter().map(|missing| missing.version).collect()
    }

    #[test]
    fn what_the_history_lacks_is_missing() {
        assert_eq!(versions(&[]), [1, 2]);
        assert_eq!(versions(&[(1, ONE.checksum())]), [2]);
        assert!(versions(&[(1, ONE.checksum()), (2, TWO.checksum())]).is_empty());
    }

    #[test]
    fn what_a_newer_release_applied_is_left_alone() {
        let history = [(1, ONE.checksum()), (2, TWO.checksum()), (3, 42)];
        assert!(versions(&history).is_empty());
    }

    #[test]
    fn a_changed_migration_is_named() {
        let Err(error) = missing(&[ONE, TWO], &[(2, TWO.checksum()), (1, 42)]) else {
            panic!("the change went unnoticed");
        };
        assert_eq!(error.kind(), StoreErrorKind::Migration);
        assert!(format!("{error:?}").contains("migration 1 (one) was changed"), "{error:?}");
    }

    #[test]
    fn line_ends_do_not_change_a_checksum() {
        let windows = Migration { sql: "a\r\nb\r\n", ..ONE };
        assert_eq!(windows.checksum(), ONE.checksum());
        let edited = Migration { sql: "ab", ..ONE };
        assert_ne!(edited.checksum(), ONE.checksum());
    }
}
