use std::time::SystemTime;

use crate::{
    key::KeyHash,
    rate_limit::RateLimits,
    record::{KeyId, KeyRecord},
    store::{
        EventPage, EventQuery, KeyPage, KeyQuery, StoreError,
        port::{Changes, KeyTransaction, LogPosition, UsageBatch},
    },
};

/// A transaction for trials: it can also do what a service does outside of transactions.
pub(in crate::store) trait Rehearse: KeyTransaction {
    async fn find(&mut self, hash: &KeyHash) -> Result<Option<KeyRecord>, StoreError>;

    async fn get(&mut self, id: KeyId) -> Result<Option<KeyRecord>, StoreError>;

    async fn list(&mut self, query: &KeyQuery) -> Result<KeyPage, StoreError>;

    async fn events(&mut self, query: &EventQuery) -> Result<EventPage, StoreError>;

    async fn flush_usage(&mut self, batch: &UsageBatch) -> Result<(), StoreError>;

    async fn last_used_at(&mut self, id: KeyId) -> Result<Option<SystemTime>, StoreError>;

    async fn plans(&mut self) -> Result<Vec<(String, RateLimits)>, StoreError>;

    async fn changes_since(&mut self, horizon: Option<LogPosition>) -> Result<Changes, StoreError>;

    /// Checks deferred constraints now instead of at commit.
    async fn settle(&mut self) -> Result<(), StoreError>;
}
