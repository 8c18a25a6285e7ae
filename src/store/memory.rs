use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use super::{KeyStore, ManageKeys, StoreError, StoreErrorKind, Usage};
use crate::{
    clock::{Clock, SystemClock},
    key::KeyHash,
    record::{KeyId, KeyRecord},
};

/// Keys in memory, gone with the process. For tests and for a few static keys.
///
/// Clones share the keys.
#[derive(Clone)]
pub struct MemoryKeyStore {
    keys: Arc<Mutex<Keys>>,
    clock: Arc<dyn Clock>,
}

#[derive(Default)]
struct Keys {
    records: BTreeMap<KeyId, KeyRecord>,
    ids: HashMap<KeyHash, KeyId>,
    last_used: HashMap<KeyId, SystemTime>,
}

impl MemoryKeyStore {
    /// A store without keys, on the system's clock.
    #[must_use]
    pub fn new() -> Self {
        Self::with_clock(SystemClock::new())
    }

    /// A store without keys, on a clock of the caller's.
    #[must_use]
    pub fn with_clock(clock: impl Clock) -> Self {
        Self { keys: Arc::default(), clock: Arc::new(clock) }
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, record: &KeyRecord) -> KeyRecord {
        KeyRecord { read_at: self.clock.now(), ..record.clone() }
    }
}

impl Default for MemoryKeyStore {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryKeyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryKeyStore").field("keys", &self.keys().records.len()).finish()
    }
}

impl KeyStore for MemoryKeyStore {
    async fn find(&self, hash: &KeyHash) -> Result<Option<KeyRecord>, StoreError> {
        let keys = self.keys();
        let record = keys.ids.get(hash).and_then(|id| keys.records.get(id));
        Ok(record.map(|record| self.read(record)))
    }

    async fn record_usage(&self, batch: &[Usage]) -> Result<(), StoreError> {
        let mut keys = self.keys();
        for usage in batch {
            if keys.records.contains_key(&usage.key_id) {
                let at = keys.last_used.entry(usage.key_id).or_insert(usage.last_used_at);
                *at = usage.last_used_at.max(*at);
            }
        }
        Ok(())
    }
}

impl ManageKeys for MemoryKeyStore {
    async fn insert(&self, record: &KeyRecord) -> Result<(), StoreError> {
        let mut keys = self.keys();
        if keys.records.contains_key(&record.id) || keys.ids.contains_key(&record.key_hash) {
            return Err(StoreError::new(StoreErrorKind::Conflict));
        }
        keys.ids.insert(record.key_hash, record.id);
        keys.records.insert(record.id, record.clone());
        Ok(())
    }

    async fn get(&self, id: KeyId) -> Result<Option<KeyRecord>, StoreError> {
        Ok(self.keys().records.get(&id).map(|record| self.read(record)))
    }

    async fn update(&self, record: &KeyRecord) -> Result<KeyRecord, StoreError> {
        let mut keys = self.keys();
        let stored = keys.records.get_mut(&record.id);
        let stored = stored
            .filter(|stored| stored.version == record.version)
            .ok_or(StoreError::new(StoreErrorKind::Conflict))?;
        stored.name.clone_from(&record.name);
        stored.scopes = record.scopes.clone();
        stored.rate_limits.clone_from(&record.rate_limits);
        stored.metadata = record.metadata.clone();
        stored.is_active = record.is_active;
        stored.not_before = record.not_before;
        stored.expires_at = record.expires_at;
        stored.version += 1;
        Ok(self.read(stored))
    }

    async fn revoke(
        &self,
        id: KeyId,
        reason: Option<&str>,
    ) -> Result<Option<KeyRecord>, StoreError> {
        let mut keys = self.keys();
        let Some(stored) = keys.records.get_mut(&id) else { return Ok(None) };
        if stored.revoked_at.is_none() {
            stored.revoked_at = Some(self.clock.now());
            stored.revoked_reason = reason.map(Into::into);
            stored.version += 1;
        }
        Ok(Some(self.read(stored)))
    }

    async fn last_used_at(&self, id: KeyId) -> Result<Option<SystemTime>, StoreError> {
        Ok(self.keys().last_used.get(&id).copied())
    }
}
