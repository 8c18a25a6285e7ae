//! Key stores: the traits, and implementations for memory, PostgreSQL and SQLite.
//!
//! [`KeyStore`] is all that serving requests needs. [`ManageKeys`] adds issuing, listing and
//! revoking, and plans: limits shared by many keys. [`MemoryKeyStore`] is for tests and static keys;
//! [`PgKeyStore`] and [`SqliteKeyStore`] are persistent. All pass the same contract tests. A store
//! of your own implements the traits in [`port`].
//!
//! A [`ChangeFeed`](port::ChangeFeed) reports changes made to the store by other processes:
//!
//! | keys are in | feed | delay |
//! |---|---|---|
//! | PostgreSQL | `PgChangeFeed` | milliseconds |
//! | PostgreSQL, a standby | [`PollingChangeFeed`] | its interval, 1 s |
//! | PostgreSQL, behind PgBouncer in transaction mode | the same | the same |
//! | a SQLite file shared by several processes | the same | the same |
//! | any store used by a single process | none: [`Invalidate`](port::Invalidate) is enough | |
//!
//! Both read what triggers on `api_keys` record, so they report every change to a key, whether
//! another node, a script or a person at the database prompt made it. They do not report a key's
//! use or changes to columns that no request depends on, such as `revoked_reason`. A changed plan
//! in `api_key_plans` is reported as a change of everything.

mod bucket_width;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod doctor;
mod error;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod listing;
mod memory;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod migrate;
mod page;
mod poll;
pub mod port;
#[cfg(feature = "postgres")]
mod postgres;
mod query;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod row;
#[cfg(feature = "sqlite")]
mod sqlite;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod structure;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod trial;
mod usage_query;

#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub use self::doctor::{Finding, Severity};
pub(crate) use self::page::{Filling, event_bytes, key_bytes};
#[cfg(feature = "postgres")]
pub use self::postgres::{PgChangeFeed, PgKeyStore, PgKeyStoreBuilder, PgTransaction};
#[cfg(feature = "sqlite")]
pub use self::sqlite::{SqliteKeyStore, SqliteTransaction};
pub use self::{
    bucket_width::{BucketWidth, InvalidBucketWidth},
    error::{StoreError, StoreErrorKind},
    memory::{MemoryKeyStore, MemoryTransaction},
    page::InvalidRow,
    poll::PollingChangeFeed,
    port::{key_store::KeyStore, manage_keys::ManageKeys},
    query::{EventPage, EventQuery, KeyPage, KeyQuery, ListedKey},
    usage_query::{InvalidUsageCursor, UsageBucket, UsageCursor, UsageQuery},
};
