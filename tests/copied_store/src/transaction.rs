use std::{collections::BTreeSet, time::SystemTime};

use tokio::sync::OwnedMutexGuard;
use tower_api_key::{
    rate_limit::RateLimits,
    record::{AuditEntry, KeyEvent, KeyId, KeyRecord},
    store::{
        StoreError, StoreErrorKind,
        port::{IdempotencyRecord, KeyCountQuery, KeyCounts, KeyFilter, KeyTransaction},
    },
};

use super::{CopiedStore, Data, check_plan_name, locked, now};

/// Changes a copy of everything, which replaces the original at the end.
pub struct CopiedTransaction {
    store: CopiedStore,
    data: Data,
    _turn: OwnedMutexGuard<()>,
}

impl CopiedTransaction {
    pub(super) fn new(store: CopiedStore, data: Data, turn: OwnedMutexGuard<()>) -> Self {
        Self { store, data, _turn: turn }
    }

    /// In order of their ids.
    fn select(&self, selects: impl Fn(&KeyRecord) -> bool) -> impl Iterator<Item = KeyRecord> {
        let selected = self.data.records.values().filter(move |record| selects(record));
        selected.map(|record| self.data.read(record))
    }
}

impl KeyTransaction for CopiedTransaction {
    async fn lock(&mut self, ids: &[KeyId]) -> Result<Vec<KeyRecord>, StoreError> {
        let ids: BTreeSet<_> = ids.iter().collect();
        Ok(self.select(|record| ids.contains(&record.id)).collect())
    }

    async fn lock_some(
        &mut self,
        keys: &KeyFilter,
        except: &[KeyId],
        limit: usize,
    ) -> Result<Vec<KeyRecord>, StoreError> {
        let selects = |record: &KeyRecord| {
            let is_live = record.revoked_at.is_none();
            let ends = [record.revoked_at, record.expires_at];
            match keys {
                KeyFilter::Consumer(id) => is_live && record.consumer_id == *id,
                KeyFilter::Prefix(prefix) => is_live && record.key_prefix == *prefix,
                KeyFilter::ConsumerPrefix { consumer_id, key_prefix } => {
                    is_live
                        && record.consumer_id == *consumer_id
                        && record.key_prefix == *key_prefix
                }
                KeyFilter::EndedBefore(end) => ends.into_iter().flatten().any(|at| at < *end),
                _ => false,
            }
        };
        let found = self.select(|record| selects(record) && !except.contains(&record.id));
        Ok(found.take(limit).collect())
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
        let mut inserted = Vec::new();
        for record in records {
            let is_known = self.data.records.contains_key(&record.id)
                || self.data.by_hash(&record.key_hash).is_some();
            if !is_known {
                self.data.records.insert(record.id, record.clone());
                inserted.push(record.id);
            }
        }
        Ok(inserted)
    }

    async fn update(&mut self, record: &KeyRecord) -> Result<KeyRecord, StoreError> {
        let stored = self.data.records.get_mut(&record.id);
        let stored = stored.filter(|stored| stored.version == record.version);
        let stored = stored.ok_or(StoreError::new(StoreErrorKind::Conflict))?;
        stored.name.clone_from(&record.name);
        stored.scopes = record.scopes.clone();
        stored.rate_limits.clone_from(&record.rate_limits);
        stored.plan.clone_from(&record.plan);
        stored.metadata = record.metadata.clone();
        stored.networks = record.networks.clone();
        stored.tags = record.tags.clone();
        stored.origins = record.origins.clone();
        stored.is_active = record.is_active;
        stored.not_before = record.not_before;
        stored.expires_at = record.expires_at;
        stored.rotated_at = record.rotated_at;
        stored.version += 1;
        let updated = stored.clone();
        Ok(self.data.read(&updated))
    }

    async fn revoke(
        &mut self,
        ids: &[KeyId],
        reason: Option<&str>,
    ) -> Result<Vec<KeyRecord>, StoreError> {
        let is_meant = |record: &KeyRecord| record.revoked_at.is_none() && ids.contains(&record.id);
        let mut revoked: Vec<_> = self.select(is_meant).collect();
        for record in &mut revoked {
            record.revoked_at = Some(now());
            record.revoked_reason = reason.map(Into::into);
            record.version += 1;
            self.data.records.insert(record.id, record.clone());
        }
        Ok(revoked)
    }

    async fn count_keys(&mut self, query: &KeyCountQuery) -> Result<KeyCounts, StoreError> {
        let now = now();
        let keys: Vec<_> = self.select(|record| record.consumer_id == query.consumer_id).collect();
        let is_live = |record: &&KeyRecord| {
            record.revoked_at.is_none() && record.expires_at.is_none_or(|end| end > now)
        };
        let live = keys.iter().filter(is_live).count();
        let recent = keys.iter().filter(|record| record.id >= query.recent_from).count();
        Ok(KeyCounts::new(live.min(query.limit), recent.min(query.limit)))
    }

    async fn nth_rotation(
        &mut self,
        root: KeyId,
        nth: usize,
    ) -> Result<Option<SystemTime>, StoreError> {
        let is_successor =
            |record: &KeyRecord| record.root_id == root && record.rotated_from.is_some();
        let mut times: Vec<_> = self.select(is_successor).map(|record| record.created_at).collect();
        times.sort_unstable();
        Ok(times.into_iter().rev().nth(nth.saturating_sub(1)))
    }

    async fn delete(&mut self, ids: &[KeyId]) -> Result<(), StoreError> {
        self.data.records.retain(|id, _| !ids.contains(id));
        Ok(())
    }

    async fn write_audit(&mut self, entries: &[AuditEntry]) -> Result<(), StoreError> {
        for entry in entries {
            let id = self.data.events.len() as u64 + 1;
            self.data.events.push(KeyEvent::new(id, now(), entry.clone()));
        }
        Ok(())
    }

    async fn set_plan(
        &mut self,
        name: &str,
        limits: &RateLimits,
    ) -> Result<Option<String>, StoreError> {
        check_plan_name(name)?;
        let before = self.data.plans.insert(name.to_owned(), limits.clone());
        Ok(before.map(|limits| format!("{limits:?}")))
    }

    async fn remove_plan(&mut self, name: &str) -> Result<Option<String>, StoreError> {
        Ok(self.data.plans.remove(name).map(|limits| format!("{limits:?}")))
    }

    async fn claim_idempotency_key(
        &mut self,
        claim: &IdempotencyRecord,
    ) -> Result<Option<IdempotencyRecord>, StoreError> {
        if let Some((_, earlier)) = self.data.claims.get(&claim.request) {
            return Ok(Some(*earlier));
        }
        self.data.claims.insert(claim.request, (now(), *claim));
        Ok(None)
    }

    async fn delete_expired(
        &mut self,
        before: SystemTime,
        limit: usize,
    ) -> Result<usize, StoreError> {
        let is_old = |(_, (at, _)): &(&[u8; 32], &(SystemTime, _))| *at < before;
        let old = self.data.claims.iter().filter(is_old).take(limit);
        let old: Vec<_> = old.map(|(request, _)| *request).collect();
        for request in &old {
            self.data.claims.remove(request);
        }
        Ok(old.len())
    }

    async fn commit(self) -> Result<(), StoreError> {
        let (mut data, mut last_used) = (locked(&self.store.data), locked(&self.store.last_used));
        *data = self.data;
        last_used.retain(|id, _| data.records.contains_key(id));
        Ok(())
    }
}
