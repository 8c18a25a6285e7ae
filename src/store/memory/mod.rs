use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt, mem,
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use tokio::sync::OwnedMutexGuard;

use super::{
    EventPage, EventQuery, IdempotencyRecord, KeyCountQuery, KeyCounts, KeyFilter, KeyPage,
    KeyQuery, KeyStore, KeyTransaction, ListedKey, ManageKeys, ManagePlans, StoreError,
    StoreErrorKind, Usage,
    page::{Filling, event_bytes, key_bytes},
};
use crate::{
    clock::{Clock, SystemClock},
    key::KeyHash,
    rate_limit::{PlanName, RateLimits},
    record::{AuditEntry, KeyEvent, KeyId, KeyRecord},
};

/// In-memory key store, lost when the process ends. For tests and a few static keys.
///
/// Clones share their keys. Transactions are serialised.
#[derive(Clone)]
pub struct MemoryKeyStore {
    keys: Arc<Mutex<Keys>>,
    writer: Arc<tokio::sync::Mutex<()>>,
    clock: Arc<dyn Clock>,
}

#[derive(Default)]
struct Keys {
    records: BTreeMap<KeyId, KeyRecord>,
    ids: HashMap<KeyHash, KeyId>,
    last_used: HashMap<KeyId, SystemTime>,
    events: Vec<KeyEvent>,
    claims: HashMap<[u8; 32], (SystemTime, IdempotencyRecord)>,
    plans: BTreeMap<String, RateLimits>,
}

impl Keys {
    /// `record` as read at `now`.
    fn read(&self, record: &KeyRecord, now: SystemTime) -> KeyRecord {
        let plan_limits = record.plan.as_ref().and_then(|plan| self.plans.get(plan)).cloned();
        KeyRecord { plan_limits, read_at: now, ..record.clone() }
    }
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
        Self { keys: Arc::default(), writer: Arc::default(), clock: Arc::new(clock) }
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
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
        Ok(record.map(|record| keys.read(record, self.clock.now())))
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
    type Transaction = MemoryTransaction;

    async fn begin(&self) -> Result<MemoryTransaction, StoreError> {
        let turn = Arc::clone(&self.writer).lock_owned().await;
        Ok(MemoryTransaction {
            store: self.clone(),
            changed: BTreeMap::new(),
            plans: BTreeMap::new(),
            entries: Vec::new(),
            claims: Vec::new(),
            forgotten: Vec::new(),
            _turn: turn,
        })
    }

    async fn get(&self, id: KeyId) -> Result<Option<KeyRecord>, StoreError> {
        let keys = self.keys();
        Ok(keys.records.get(&id).map(|record| keys.read(record, self.clock.now())))
    }

    async fn list(&self, query: &KeyQuery) -> Result<KeyPage, StoreError> {
        let keys = self.keys();
        let now = self.clock.now();
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
        let keys = self.keys();
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
        Ok(self.keys().last_used.get(&id).copied())
    }
}

impl ManagePlans for MemoryKeyStore {
    async fn set_plan(&self, name: &str, limits: &RateLimits) -> Result<(), StoreError> {
        let name = PlanName::new(name)?;
        self.keys().plans.insert(name.as_str().to_owned(), limits.clone());
        Ok(())
    }

    async fn remove_plan(&self, name: &str) -> Result<bool, StoreError> {
        Ok(self.keys().plans.remove(name).is_some())
    }

    async fn plans(&self) -> Result<Vec<(String, RateLimits)>, StoreError> {
        let plans = self.keys().plans.clone();
        Ok(plans.into_iter().collect())
    }
}

fn matches(
    query: &KeyQuery,
    record: &KeyRecord,
    last_used_at: Option<SystemTime>,
    now: SystemTime,
) -> bool {
    let is_before = |at: SystemTime, end: Option<SystemTime>| end.is_none_or(|end| at < end);
    query.consumer_id.as_ref().is_none_or(|consumer| record.consumer_id == *consumer)
        && query.key_prefix.as_ref().is_none_or(|prefix| record.key_prefix == *prefix)
        && query.scope.as_ref().is_none_or(|scope| record.scopes.contains(scope.as_str()))
        && query.status.is_none_or(|status| record.status(now) == status)
        && query.expires_before.is_none_or(|end| record.expires_at.is_some_and(|at| at < end))
        && is_before(record.created_at, query.unused_since)
        && last_used_at.is_none_or(|at| is_before(at, query.unused_since))
}

/// A transaction of [`MemoryKeyStore`].
pub struct MemoryTransaction {
    store: MemoryKeyStore,
    /// `None` marks a deleted key.
    changed: BTreeMap<KeyId, Option<KeyRecord>>,
    /// `None` marks a removed plan.
    plans: BTreeMap<String, Option<RateLimits>>,
    entries: Vec<AuditEntry>,
    claims: Vec<IdempotencyRecord>,
    forgotten: Vec<[u8; 32]>,
    _turn: OwnedMutexGuard<()>,
}

impl MemoryTransaction {
    fn get(&self, id: KeyId) -> Option<KeyRecord> {
        let keys = self.store.keys();
        let record = match self.changed.get(&id) {
            Some(changed) => changed.as_ref(),
            None => keys.records.get(&id),
        };
        record.map(|record| keys.read(record, self.store.clock.now()))
    }

    /// The plan's limits, as JSON.
    fn plan(&self, name: &str) -> Result<Option<String>, StoreError> {
        let keys = self.store.keys();
        let limits = match self.plans.get(name) {
            Some(changed) => changed.as_ref(),
            None => keys.plans.get(name),
        };
        let json = limits.map(serde_json::to_string).transpose();
        json.map_err(|error| StoreError::new(StoreErrorKind::Other).because(error))
    }

    fn set(&mut self, record: KeyRecord) {
        self.changed.insert(record.id, Some(record));
    }

    fn ids(&self) -> BTreeSet<KeyId> {
        self.store.keys().records.keys().chain(self.changed.keys()).copied().collect()
    }

    fn is_known(&self, record: &KeyRecord) -> bool {
        let by_hash = self.store.keys().ids.get(&record.key_hash).copied();
        let mut changed = self.changed.values().flatten();
        self.get(record.id).is_some()
            || by_hash.is_some_and(|id| self.get(id).is_some())
            || changed.any(|changed| changed.key_hash == record.key_hash)
    }
}

impl fmt::Debug for MemoryTransaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryTransaction").field("changed", &self.changed.len()).finish()
    }
}

impl KeyTransaction for MemoryTransaction {
    async fn lock(&mut self, ids: &[KeyId]) -> Result<Vec<KeyRecord>, StoreError> {
        let ids: BTreeSet<_> = ids.iter().copied().collect();
        Ok(ids.into_iter().filter_map(|id| self.get(id)).collect())
    }

    async fn lock_some(
        &mut self,
        keys: &KeyFilter,
        except: &[KeyId],
        limit: usize,
    ) -> Result<Vec<KeyRecord>, StoreError> {
        let selected = |record: &KeyRecord| match keys {
            KeyFilter::Consumer(id) => record.revoked_at.is_none() && record.consumer_id == *id,
            KeyFilter::Prefix(prefix) => {
                record.revoked_at.is_none() && record.key_prefix == *prefix
            }
            KeyFilter::ConsumerPrefix { consumer_id, key_prefix } => {
                record.revoked_at.is_none()
                    && record.consumer_id == *consumer_id
                    && record.key_prefix == *key_prefix
            }
            KeyFilter::EndedBefore(end) => {
                [record.revoked_at, record.expires_at].into_iter().flatten().any(|at| at < *end)
            }
        };
        let except: BTreeSet<_> = except.iter().collect();
        let ids = self.ids().into_iter().filter(|id| !except.contains(id));
        Ok(ids.filter_map(|id| self.get(id)).filter(selected).take(limit).collect())
    }

    async fn select_some(
        &mut self,
        keys: &KeyFilter,
        except: &[KeyId],
        limit: usize,
    ) -> Result<Vec<KeyId>, StoreError> {
        let found = self.lock_some(keys, except, limit).await?;
        Ok(found.iter().map(|record| record.id).collect())
    }

    async fn insert(&mut self, records: &[KeyRecord]) -> Result<Vec<KeyId>, StoreError> {
        let mut inserted = Vec::with_capacity(records.len());
        for record in records {
            if !self.is_known(record) {
                self.set(record.clone());
                inserted.push(record.id);
            }
        }
        Ok(inserted)
    }

    async fn update(&mut self, record: &KeyRecord) -> Result<KeyRecord, StoreError> {
        let stored = self.get(record.id).filter(|stored| stored.version == record.version);
        let stored = stored.ok_or(StoreError::new(StoreErrorKind::Conflict))?;
        let updated = KeyRecord {
            name: record.name.clone(),
            scopes: record.scopes.clone(),
            rate_limits: record.rate_limits.clone(),
            plan: record.plan.clone(),
            metadata: record.metadata.clone(),
            is_active: record.is_active,
            not_before: record.not_before,
            expires_at: record.expires_at,
            rotated_at: record.rotated_at,
            version: stored.version + 1,
            ..stored
        };
        self.set(updated);
        self.get(record.id).ok_or(StoreError::new(StoreErrorKind::Conflict))
    }

    async fn revoke(
        &mut self,
        ids: &[KeyId],
        reason: Option<&str>,
    ) -> Result<Vec<KeyRecord>, StoreError> {
        let mut revoked = self.lock(ids).await?;
        revoked.retain(|record| record.revoked_at.is_none());
        for record in &mut revoked {
            record.revoked_at = Some(self.store.clock.now());
            record.revoked_reason = reason.map(Into::into);
            record.version += 1;
            self.set(record.clone());
        }
        Ok(revoked)
    }

    /// Transactions are serialised, so no lock is needed.
    async fn count_keys(&mut self, query: &KeyCountQuery) -> Result<KeyCounts, StoreError> {
        let now = self.store.clock.now();
        let mut counts = KeyCounts::default();
        let of_consumer = |record: &KeyRecord| record.consumer_id == query.consumer_id;
        for record in self.ids().into_iter().filter_map(|id| self.get(id)).filter(of_consumer) {
            let is_expired = record.expires_at.is_some_and(|end| end <= now);
            counts.live += usize::from(record.revoked_at.is_none() && !is_expired);
            counts.recent += usize::from(record.id >= query.recent_from);
        }
        Ok(KeyCounts::new(counts.live.min(query.limit), counts.recent.min(query.limit)))
    }

    async fn nth_rotation(
        &mut self,
        root: KeyId,
        nth: usize,
    ) -> Result<Option<SystemTime>, StoreError> {
        let is_successor =
            |record: &KeyRecord| record.root_id == root && record.rotated_from.is_some();
        let found = self.ids().into_iter().filter_map(|id| self.get(id)).filter(is_successor);
        let mut times: Vec<_> = found.map(|record| record.created_at).collect();
        times.sort_unstable();
        Ok(times.into_iter().rev().nth(nth.saturating_sub(1)))
    }

    async fn delete(&mut self, ids: &[KeyId]) -> Result<(), StoreError> {
        self.changed.extend(ids.iter().map(|id| (*id, None)));
        Ok(())
    }

    async fn write_audit(&mut self, entries: &[AuditEntry]) -> Result<(), StoreError> {
        self.entries.extend_from_slice(entries);
        Ok(())
    }

    async fn set_plan(
        &mut self,
        name: &str,
        limits: &RateLimits,
    ) -> Result<Option<String>, StoreError> {
        let name = PlanName::new(name)?;
        let before = self.plan(name.as_str())?;
        self.plans.insert(name.as_str().to_owned(), Some(limits.clone()));
        Ok(before)
    }

    async fn remove_plan(&mut self, name: &str) -> Result<Option<String>, StoreError> {
        let before = self.plan(name)?;
        self.plans.insert(name.to_owned(), None);
        Ok(before)
    }

    async fn claim_idempotency_key(
        &mut self,
        claim: &IdempotencyRecord,
    ) -> Result<Option<IdempotencyRecord>, StoreError> {
        let earlier = self.store.keys().claims.get(&claim.request).map(|(_, claim)| *claim);
        if earlier.is_none() {
            self.claims.push(*claim);
        }
        Ok(earlier)
    }

    async fn delete_expired(
        &mut self,
        before: SystemTime,
        limit: usize,
    ) -> Result<usize, StoreError> {
        let keys = self.store.keys();
        let old =
            keys.claims.iter().filter(|(_, (at, _))| *at < before).map(|(request, _)| *request);
        self.forgotten = old.take(limit).collect();
        Ok(self.forgotten.len())
    }

    async fn commit(mut self) -> Result<(), StoreError> {
        let now = self.store.clock.now();
        let mut guard = self.store.keys();
        let keys = &mut *guard;
        for (id, record) in mem::take(&mut self.changed) {
            if let Some(old) = keys.records.remove(&id) {
                keys.ids.remove(&old.key_hash);
            }
            match record {
                Some(record) => {
                    keys.ids.insert(record.key_hash, id);
                    keys.records.insert(id, record);
                }
                None => {
                    keys.last_used.remove(&id);
                }
            }
        }
        for (name, limits) in mem::take(&mut self.plans) {
            match limits {
                Some(limits) => keys.plans.insert(name, limits),
                None => keys.plans.remove(&name),
            };
        }
        for (id, entry) in (keys.events.len() as u64 + 1..).zip(mem::take(&mut self.entries)) {
            keys.events.push(KeyEvent::new(id, now, entry));
        }
        for request in &self.forgotten {
            keys.claims.remove(request);
        }
        keys.claims.extend(self.claims.iter().map(|claim| (claim.request, (now, *claim))));
        Ok(())
    }
}
