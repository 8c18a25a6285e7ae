//! Keys in memory.

mod keys;
mod listing;
mod read_usage;
mod transaction;

use std::{cmp::Reverse, convert::Infallible, fmt, ops::Bound, sync::Arc, time::SystemTime};

use tokio::sync::Mutex;

pub use self::transaction::MemoryTransaction;
use self::{keys::SharedKeys, listing::matches};
use super::{
    EventPage, EventQuery, KeyPage, KeyQuery, KeyStore, ListedKey, ManageKeys, StoreError,
    UsageBucket, UsageCursor, UsageQuery,
    page::{Filling, event_bytes, key_bytes},
    port::{
        Backend, HourlyUse, KeyTransaction as _, LegacyHashes, LegacyKey, ManagePlans, UsageBatch,
    },
};
use crate::{
    clock::{Clock, SystemClock},
    key::KeyHash,
    rate_limit::{PlanName, RateLimits},
    record::{AuditEntry, KeyId, KeyRecord},
};

/// In-memory key store, lost when the process ends. For tests and a few static keys.
///
/// Clones share their keys. Transactions are serialised.
#[derive(Clone)]
pub struct MemoryKeyStore {
    keys: SharedKeys,
    writer: Arc<Mutex<()>>,
}

impl MemoryKeyStore {
    /// An empty store on the system clock.
    #[must_use]
    pub fn new() -> Self {
        Self::with_clock(SystemClock::new())
    }

    /// An empty store on the given clock.
    #[must_use]
    pub fn with_clock(clock: impl Clock) -> Self {
        Self { keys: SharedKeys::new(clock), writer: Arc::default() }
    }
}

impl Default for MemoryKeyStore {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryKeyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryKeyStore").field("keys", &self.keys.lock().records.len()).finish()
    }
}

impl KeyStore for MemoryKeyStore {
    async fn find(&self, hash: &KeyHash) -> Result<Option<KeyRecord>, StoreError> {
        let keys = self.keys.lock();
        let record = keys.ids.get(hash).and_then(|id| keys.records.get(id));
        Ok(record.map(|record| keys.read(record, self.keys.clock.now())))
    }

    async fn record_usage(&self, batch: &UsageBatch) -> Result<(), StoreError> {
        let now = self.keys.clock.now();
        let mut keys = self.keys.lock();
        if let Some(counted) = &batch.counted {
            keys.add(counted, now);
        }
        for usage in &batch.last_uses {
            if keys.records.contains_key(&usage.key_id) {
                let at = keys.last_used.entry(usage.key_id).or_insert(usage.last_used_at);
                *at = usage.last_used_at.max(*at);
            }
        }
        Ok(())
    }

    async fn append_audit(&self, entries: &[AuditEntry]) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        transaction.write_audit(entries).await?;
        transaction.commit().await
    }
}

impl ManageKeys for MemoryKeyStore {
    type Transaction = MemoryTransaction;

    async fn begin(&self) -> Result<MemoryTransaction, StoreError> {
        let turn = Arc::clone(&self.writer).lock_owned().await;
        Ok(MemoryTransaction::new(self.keys.clone(), turn))
    }

    async fn get(&self, id: KeyId) -> Result<Option<KeyRecord>, StoreError> {
        let keys = self.keys.lock();
        Ok(keys.records.get(&id).map(|record| keys.read(record, self.keys.clock.now())))
    }

    async fn find_many(&self, hashes: &[KeyHash]) -> Result<Vec<KeyRecord>, StoreError> {
        let (keys, now) = (self.keys.lock(), self.keys.clock.now());
        let ids = hashes.iter().filter_map(|hash| keys.ids.get(hash));
        let found = ids.filter_map(|id| keys.records.get(id));
        Ok(found.map(|record| keys.read(record, now)).collect())
    }

    async fn list(&self, query: &KeyQuery) -> Result<KeyPage, StoreError> {
        let keys = self.keys.lock();
        let now = self.keys.clock.now();
        let end = query.after.map_or(Bound::Unbounded, Bound::Excluded);
        let found = (keys.records.range((Bound::Unbounded, end)).rev())
            .map(|(id, record)| (record, keys.last_used.get(id).copied()))
            .filter(|(record, last_used_at)| matches(query, record, *last_used_at, now))
            .map(|(record, last_used_at)| ListedKey::new(keys.read(record, now), last_used_at));
        let mut filling = Filling::new(query.limit);
        let listed: Vec<_> =
            found.take_while(|key| filling.takes(key_bytes(&key.record))).collect();
        let last = listed.last().map(|key| key.record.id);
        Ok(KeyPage::new(listed, last.filter(|_| filling.is_full())))
    }

    async fn events(&self, query: &EventQuery) -> Result<EventPage, StoreError> {
        let keys = self.keys.lock();
        let found = (keys.events.iter().rev())
            .filter(|event| query.after.is_none_or(|after| event.id < after))
            .filter(|event| query.key_id.is_none_or(|id| event.entry.key_id == Some(id)))
            .filter(|event| {
                query.consumer_id.is_none() || event.entry.consumer_id == query.consumer_id
            });
        let mut filling = Filling::new(query.limit);
        let events: Vec<_> =
            found.take_while(|event| filling.takes(event_bytes(event))).cloned().collect();
        let last = events.last().map(|event| event.id);
        Ok(EventPage::new(events, last.filter(|_| filling.is_full())))
    }

    async fn last_used_at(&self, id: KeyId) -> Result<Option<SystemTime>, StoreError> {
        Ok(self.keys.lock().last_used.get(&id).copied())
    }

    async fn usage(&self, query: &UsageQuery) -> Result<Vec<UsageBucket>, StoreError> {
        Ok(self.keys.lock().usage(query))
    }

    async fn usage_hours(
        &self,
        after: UsageCursor,
        end: SystemTime,
        limit: usize,
    ) -> Result<Vec<HourlyUse>, StoreError> {
        Ok(self.keys.lock().usage_hours(after, end, limit))
    }
}

impl LegacyHashes for MemoryKeyStore {
    async fn legacy_keys(
        &self,
        hint: Option<&str>,
        limit: usize,
    ) -> Result<Vec<LegacyKey>, StoreError> {
        let keys = self.keys.lock();
        let with_hint = keys.legacy.iter().filter(|(_, stored)| stored.hint.as_deref() == hint);
        let mut found: Vec<_> = with_hint
            .filter_map(|(id, stored)| {
                Some(LegacyKey::new(*id, stored.hint.clone(), stored.hash.clone()?))
            })
            .collect();
        found.sort_by_key(|key| (Reverse(keys.last_used.get(&key.id)), key.id));
        found.truncate(limit);
        Ok(found)
    }

    async fn count_legacy_keys(&self) -> Result<u64, StoreError> {
        let keys = self.keys.lock();
        Ok(keys.legacy.values().filter(|stored| stored.hash.is_some()).count() as u64)
    }
}

impl Backend for MemoryKeyStore {
    type Feed = Infallible;

    fn change_feed(&self) -> Option<Infallible> {
        None
    }
}

impl ManagePlans for MemoryKeyStore {
    async fn set_plan(&self, name: &str, limits: &RateLimits) -> Result<(), StoreError> {
        let name = PlanName::new(name)?;
        self.keys.lock().plans.insert(name.as_str().to_owned(), limits.clone());
        Ok(())
    }

    async fn remove_plan(&self, name: &str) -> Result<bool, StoreError> {
        Ok(self.keys.lock().plans.remove(name).is_some())
    }

    async fn plans(&self) -> Result<Vec<(String, RateLimits)>, StoreError> {
        let plans = self.keys.lock().plans.clone();
        Ok(plans.into_iter().collect())
    }
}
