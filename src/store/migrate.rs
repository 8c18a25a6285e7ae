//! Migrations, and which of them a database still lacks.
//!
//! Not sqlx's migrator: its table, `_sqlx_migrations`, belongs to the application, and its session
//! lock outlives a failed migration.

use std::fmt;

use super::{StoreError, StoreErrorKind};

/// A migration. Never changed once released.
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
    Migration {
        version: 8,
        description: "networks, tags and origins of api keys",
        sql: include_str!("../../migrations/postgres/0008_api_key_networks.sql"),
    },
    Migration {
        version: 9,
        description: "legacy hashes of api keys",
        sql: include_str!("../../migrations/postgres/0009_api_key_legacy_hashes.sql"),
    },
    Migration {
        version: 10,
        description: "usage ledger of api keys",
        sql: include_str!("../../migrations/postgres/0010_api_key_usage_ledger.sql"),
    },
    Migration {
        version: 11,
        description: "webhooks of api keys",
        sql: include_str!("../../migrations/postgres/0011_api_key_webhooks.sql"),
    },
    Migration {
        version: 12,
        description: "canary keys",
        sql: include_str!("../../migrations/postgres/0012_api_key_canaries.sql"),
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
    Migration {
        version: 8,
        description: "networks, tags and origins of api keys",
        sql: include_str!("../../migrations/sqlite/0008_api_key_networks.sql"),
    },
    Migration {
        version: 9,
        description: "legacy hashes of api keys",
        sql: include_str!("../../migrations/sqlite/0009_api_key_legacy_hashes.sql"),
    },
    Migration {
        version: 10,
        description: "usage ledger of api keys",
        sql: include_str!("../../migrations/sqlite/0010_api_key_usage_ledger.sql"),
    },
    Migration {
        version: 11,
        description: "webhooks of api keys",
        sql: include_str!("../../migrations/sqlite/0011_api_key_webhooks.sql"),
    },
    Migration {
        version: 12,
        description: "canary keys",
        sql: include_str!("../../migrations/sqlite/0012_api_key_canaries.sql"),
    },
];

/// A row of the migration history: the version, and its checksum when it was applied.
pub(super) type Applied = (i64, i64);

/// The `migrations` that a database with this history lacks, in order.
///
/// Migrations applied by a newer release are ignored, so that the old release keeps starting during
/// a rolling upgrade.
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
                let problem = format!("{migration} was changed after it was applied");
                return Err(StoreError::new(StoreErrorKind::Migration).because(problem));
            }
        }
    }
    Ok(missing)
}

/// The SQL of the `migrations` from version `from` on, for another migration tool. Each begins with a
/// line that names it.
pub(super) fn script(migrations: &[Migration], from: i64) -> Result<String, StoreError> {
    let wanted: Vec<_> = migrations.iter().filter(|it| it.version >= from).collect();
    if wanted.is_empty() {
        let last = migrations.iter().map(|it| it.version).max().unwrap_or_default();
        let problem = format!("there is no migration {from} yet: the last one is {last}");
        return Err(StoreError::new(StoreErrorKind::Other).because(problem));
    }
    let text = |it: &&Migration| format!("-- tower-api-key {it}\n{}\n", it.sql.trim_end());
    Ok(wanted.iter().map(text).collect::<Vec<_>>().join("\n"))
}

/// Turns an error during migration into a migration error, unless the store was just unavailable.
pub(super) fn failed(error: StoreError) -> StoreError {
    match error.kind {
        StoreErrorKind::Unavailable | StoreErrorKind::Overloaded => error,
        _ => StoreError { kind: StoreErrorKind::Migration, ..error },
    }
}

/// Neither a change log nor a notifying trigger exists.
pub(super) fn no_changes() -> StoreError {
    let problem = "no source of changes: `migrate` has not been run, or the triggers of \
        `api_keys` are missing";
    StoreError::new(StoreErrorKind::Migration).because(problem)
}

impl Migration {
    /// Detects accidental edits. Line endings are ignored because some checkouts rewrite them.
    pub(super) fn checksum(&self) -> i64 {
        let mut crc = crc32fast::Hasher::new();
        for line in self.sql.lines() {
            crc.update(line.as_bytes());
            crc.update(b"\n");
        }
        crc.finalize().into()
    }

    /// Prefixes `error` with this migration.
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
    fn a_script_has_the_migrations_from_a_version_on() {
        let script = |from| script(&[ONE, TWO], from);
        let two = "-- tower-api-key migration 2 (two)\nc\n";
        assert_eq!(script(2).unwrap(), two);
        let both = format!("-- tower-api-key migration 1 (one)\na\nb\n\n{two}");
        assert_eq!(script(0).unwrap(), both);
        let error = script(3).unwrap_err();
        assert!(format!("{error:?}").contains("the last one is 2"), "{error:?}");
    }

    #[test]
    fn line_ends_do_not_change_a_checksum() {
        let windows = Migration { sql: "a\r\nb\r\n", ..ONE };
        assert_eq!(windows.checksum(), ONE.checksum());
        let edited = Migration { sql: "ab", ..ONE };
        assert_ne!(edited.checksum(), ONE.checksum());
    }
}
