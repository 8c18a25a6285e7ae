mod change_feed;
mod change_log;
mod invalidate;
mod key_store;
mod key_transaction;
mod manage_keys;
mod manage_plans;

pub use self::{
    change_feed::{Change, ChangeFeed, Staleness},
    change_log::{ChangeLog, ChangedKey, Changes, LogPosition, Replica},
    invalidate::Invalidate,
    key_store::{KeyStore, Usage},
    key_transaction::{IdempotencyRecord, KeyCountQuery, KeyCounts, KeyFilter, KeyTransaction},
    manage_keys::ManageKeys,
    manage_plans::ManagePlans,
};
