use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, mem,
    time::SystemTime,
};

use tokio::sync::OwnedMutexGuard;

use super::keys::{SharedKeys, StoredLegacyHash};
use crate::{
    key::KeyHash,
    rate_limit::{PlanName, RateLimits},
    record::{AuditEntry, KeyEvent, KeyId, KeyRecord},
    store::{
        StoreError, StoreErrorKind,
        port::{IdempotencyRecord, KeyCountQuery, KeyCounts, KeyFilter, KeyTransaction, LegacyKey},
    },
};

/// A transaction of [`MemoryKeyStore`](super::MemoryKeyStore).
pub struct MemoryTransaction {
    store: SharedKeys,
    /// `None` marks a deleted key.
    changed: BTreeMap<KeyId, Option<KeyRecord>>,
    /// `None` marks a removed plan.
    plans: BTreeMap<String, Option<RateLimits>>,
    entries: Vec<AuditEntry>,
    claims: Vec<IdempotencyRecord>,
    forgotten: Vec<[u8; 32]>,
    /// Hours and writers of counted uses that are deleted.
    forgotten_hours: Vec<(KeyId, SystemTime)>,
    forgotten_writers: Vec<[u8; 16]>,
    legacy: BTreeMap<KeyId, StoredLegacyHash>,
    _turn: OwnedMutexGuard<()>,
}

impl MemoryTransaction {
    pub(super) fn new(store: SharedKeys, turn: OwnedMutexGuard<()>) -> Self {
        Self {
            store,
            changed: BTreeMap::new(),
            plans: BTreeMap::new(),
            entries: Vec::new(),
            claims: Vec::new(),
            forgotten: Vec::new(),
            forgotten_hours: Vec::new(),
            forgotten_writers: Vec::new(),
            legacy: BTreeMap::new(),
            _turn: turn,
        }
    }

    fn get(&self, id: KeyId) -> Option<KeyRecord> {
        let keys = self.store.lock();
        let record = match self.changed.get(&id) {
            Some(changed) => changed.as_ref(),
            None => keys.records.get(&id),
        };
        record.map(|record| keys.read(record, self.store.clock.now()))
    }

    /// The plan's limits, as JSON.
    fn plan(&self, name: &str) -> Result<Option<String>, StoreError> {
        let keys = self.store.lock();
        let limits = match self.plans.get(name) {
            Some(changed) => changed.as_ref(),
            None => keys.plans.get(name),
        };
        let json = limits.map(serde_json::to_string).transpose();
        json.map_err(|error| StoreError::new(StoreErrorKind::Other).because(error))
    }

    /// The legacy hashes of keys, as changed by this transaction.
    fn legacy(&self) -> BTreeMap<KeyId, StoredLegacyHash> {
        let stored = self.store.lock().legacy.clone();
        let changed = self.legacy.iter().map(|(id, stored)| (*id, stored.clone()));
        let all: BTreeMap<_, _> = stored.into_iter().chain(changed).collect();
        all.into_iter().filter(|(id, _)| self.get(*id).is_some()).collect()
    }

    fn set(&mut self, record: KeyRecord) {
        self.changed.insert(record.id, Some(record));
    }

    fn ids(&self) -> BTreeSet<KeyId> {
        self.store.lock().records.keys().chain(self.changed.keys()).copied().collect()
    }

    fn is_known(&self, record: &KeyRecord) -> bool {
        let by_hash = self.store.lock().ids.get(&record.key_hash).copied();
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
            networks: record.networks.clone(),
            tags: record.tags.clone(),
            origins: record.origins.clone(),
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
        let own = self.claims.iter().find(|own| own.request == claim.request);
        let known = || self.store.lock().claims.get(&claim.request).map(|(_, claim)| *claim);
        let earlier = own.copied().or_else(known);
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
        let keys = self.store.lock();
        let old =
            keys.claims.iter().filter(|(_, (at, _))| *at < before).map(|(request, _)| *request);
        self.forgotten = old.take(limit).collect();
        Ok(self.forgotten.len())
    }

    async fn delete_counted_uses(
        &mut self,
        hours_before: SystemTime,
        writers_before: SystemTime,
        limit: usize,
    ) -> Result<usize, StoreError> {
        let keys = self.store.lock();
        let hours = keys.hourly.keys().filter(|(_, hour)| *hour < hours_before);
        self.forgotten_hours = hours.copied().take(limit).collect();
        let rest = limit.saturating_sub(self.forgotten_hours.len());
        let writers = keys.writers.iter().filter(|(_, (_, at))| *at < writers_before);
        self.forgotten_writers = writers.map(|(writer, _)| *writer).take(rest).collect();
        Ok(self.forgotten_hours.len() + self.forgotten_writers.len())
    }

    async fn known_legacy_hashes(
        &mut self,
        digests: &[[u8; 32]],
    ) -> Result<Vec<[u8; 32]>, StoreError> {
        let known: BTreeSet<_> = self.legacy().into_values().map(|stored| stored.digest).collect();
        Ok(digests.iter().filter(|digest| known.contains(*digest)).copied().collect())
    }

    async fn insert_legacy_hashes(&mut self, keys: &[LegacyKey]) -> Result<usize, StoreError> {
        for LegacyKey { id, hint, hash } in keys {
            let (hint, digest) = (hint.clone(), hash.digest());
            self.legacy.insert(*id, StoredLegacyHash { hint, hash: Some(hash.clone()), digest });
        }
        let hints: BTreeSet<_> = keys.iter().map(|key| key.hint.as_deref()).collect();
        let mut counts = BTreeMap::new();
        for stored in self.legacy().into_values().filter(|stored| stored.hash.is_some()) {
            if hints.contains(&stored.hint.as_deref()) {
                *counts.entry(stored.hint).or_default() += 1;
            }
        }
        Ok(counts.into_values().max().unwrap_or_default())
    }

    async fn replace_legacy_hash(
        &mut self,
        id: KeyId,
        digest: &[u8; 32],
        hash: &KeyHash,
    ) -> Result<Option<KeyRecord>, StoreError> {
        let stored = self.legacy().remove(&id);
        let stored = stored.filter(|stored| stored.hash.is_some() && stored.digest == *digest);
        let (Some(stored), Some(record)) = (stored, self.get(id)) else { return Ok(None) };
        self.legacy.insert(id, StoredLegacyHash { hash: None, ..stored });
        let version = record.version + 1;
        self.set(KeyRecord { key_hash: *hash, version, ..record });
        Ok(self.get(id))
    }

    async fn commit(mut self) -> Result<(), StoreError> {
        let now = self.store.clock.now();
        let mut guard = self.store.lock();
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
                    keys.legacy.remove(&id);
                    self.legacy.remove(&id);
                    keys.last_used.remove(&id);
                }
            }
        }
        keys.legacy.extend(mem::take(&mut self.legacy));
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
        for hour in &self.forgotten_hours {
            keys.hourly.remove(hour);
        }
        for writer in &self.forgotten_writers {
            keys.writers.remove(writer);
        }
        keys.claims.extend(self.claims.iter().map(|claim| (claim.request, (now, *claim))));
        Ok(())
    }
}
