use std::{future::Future, pin::Pin, time::SystemTime};

use crate::{
    rate_limit::RateLimits,
    record::{AuditEntry, KeyId, KeyRecord},
    store::{
        EventPage, EventQuery, KeyPage, KeyQuery, KeyStore, ManageKeys, StoreError,
        port::{
            IdempotencyRecord, KeyCountQuery, KeyCounts, KeyFilter, KeyTransaction, ManagePlans,
            Usage,
        },
    },
};

type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// [`ManageKeys`] as a trait object, so that the service has no type parameter for the store.
pub(super) trait ErasedKeys: Send + Sync {
    fn begin(&self) -> Answer<'_, Box<dyn ErasedTransaction>>;
    fn get(&self, id: KeyId) -> Answer<'_, Option<KeyRecord>>;
    fn list<'a>(&'a self, query: &'a KeyQuery) -> Answer<'a, KeyPage>;
    fn events<'a>(&'a self, query: &'a EventQuery) -> Answer<'a, EventPage>;
    fn last_used_at(&self, id: KeyId) -> Answer<'_, Option<SystemTime>>;
    fn record_usage<'a>(&'a self, batch: &'a [Usage]) -> Answer<'a, ()>;
    fn plans(&self) -> Answer<'_, Vec<(String, RateLimits)>>;
}

impl<S: ManageKeys> ErasedKeys for S {
    fn begin(&self) -> Answer<'_, Box<dyn ErasedTransaction>> {
        Box::pin(async { Ok(Box::new(ManageKeys::begin(self).await?) as _) })
    }

    fn get(&self, id: KeyId) -> Answer<'_, Option<KeyRecord>> {
        Box::pin(ManageKeys::get(self, id))
    }

    fn list<'a>(&'a self, query: &'a KeyQuery) -> Answer<'a, KeyPage> {
        Box::pin(ManageKeys::list(self, query))
    }

    fn events<'a>(&'a self, query: &'a EventQuery) -> Answer<'a, EventPage> {
        Box::pin(ManageKeys::events(self, query))
    }

    fn last_used_at(&self, id: KeyId) -> Answer<'_, Option<SystemTime>> {
        Box::pin(ManageKeys::last_used_at(self, id))
    }

    fn record_usage<'a>(&'a self, batch: &'a [Usage]) -> Answer<'a, ()> {
        Box::pin(KeyStore::record_usage(self, batch))
    }

    fn plans(&self) -> Answer<'_, Vec<(String, RateLimits)>> {
        Box::pin(ManagePlans::plans(self))
    }
}

/// [`KeyTransaction`] as a trait object.
pub(super) trait ErasedTransaction: Send {
    fn lock<'a>(&'a mut self, ids: &'a [KeyId]) -> Answer<'a, Vec<KeyRecord>>;
    fn lock_some<'a>(
        &'a mut self,
        keys: &'a KeyFilter,
        except: &'a [KeyId],
        limit: usize,
    ) -> Answer<'a, Vec<KeyRecord>>;
    fn select_some<'a>(
        &'a mut self,
        keys: &'a KeyFilter,
        except: &'a [KeyId],
        limit: usize,
    ) -> Answer<'a, Vec<KeyId>>;
    fn insert<'a>(&'a mut self, records: &'a [KeyRecord]) -> Answer<'a, Vec<KeyId>>;
    fn update<'a>(&'a mut self, record: &'a KeyRecord) -> Answer<'a, KeyRecord>;
    fn revoke<'a>(
        &'a mut self,
        ids: &'a [KeyId],
        reason: Option<&'a str>,
    ) -> Answer<'a, Vec<KeyRecord>>;
    fn count_keys<'a>(&'a mut self, query: &'a KeyCountQuery) -> Answer<'a, KeyCounts>;
    fn nth_rotation(&mut self, root: KeyId, nth: usize) -> Answer<'_, Option<SystemTime>>;
    fn delete<'a>(&'a mut self, ids: &'a [KeyId]) -> Answer<'a, ()>;
    fn write_audit<'a>(&'a mut self, entries: &'a [AuditEntry]) -> Answer<'a, ()>;
    fn set_plan<'a>(
        &'a mut self,
        name: &'a str,
        limits: &'a RateLimits,
    ) -> Answer<'a, Option<String>>;
    fn remove_plan<'a>(&'a mut self, name: &'a str) -> Answer<'a, Option<String>>;
    fn claim_idempotency_key<'a>(
        &'a mut self,
        claim: &'a IdempotencyRecord,
    ) -> Answer<'a, Option<IdempotencyRecord>>;
    fn delete_expired(&mut self, before: SystemTime, limit: usize) -> Answer<'_, usize>;
    fn commit(self: Box<Self>) -> Answer<'static, ()>;
}

impl<T: KeyTransaction> ErasedTransaction for T {
    fn lock<'a>(&'a mut self, ids: &'a [KeyId]) -> Answer<'a, Vec<KeyRecord>> {
        Box::pin(KeyTransaction::lock(self, ids))
    }

    fn lock_some<'a>(
        &'a mut self,
        keys: &'a KeyFilter,
        except: &'a [KeyId],
        limit: usize,
    ) -> Answer<'a, Vec<KeyRecord>> {
        Box::pin(KeyTransaction::lock_some(self, keys, except, limit))
    }

    fn select_some<'a>(
        &'a mut self,
        keys: &'a KeyFilter,
        except: &'a [KeyId],
        limit: usize,
    ) -> Answer<'a, Vec<KeyId>> {
        Box::pin(KeyTransaction::select_some(self, keys, except, limit))
    }

    fn insert<'a>(&'a mut self, records: &'a [KeyRecord]) -> Answer<'a, Vec<KeyId>> {
        Box::pin(KeyTransaction::insert(self, records))
    }

    fn update<'a>(&'a mut self, record: &'a KeyRecord) -> Answer<'a, KeyRecord> {
        Box::pin(KeyTransaction::update(self, record))
    }

    fn revoke<'a>(
        &'a mut self,
        ids: &'a [KeyId],
        reason: Option<&'a str>,
    ) -> Answer<'a, Vec<KeyRecord>> {
        Box::pin(KeyTransaction::revoke(self, ids, reason))
    }

    fn count_keys<'a>(&'a mut self, query: &'a KeyCountQuery) -> Answer<'a, KeyCounts> {
        Box::pin(KeyTransaction::count_keys(self, query))
    }

    fn nth_rotation(&mut self, root: KeyId, nth: usize) -> Answer<'_, Option<SystemTime>> {
        Box::pin(KeyTransaction::nth_rotation(self, root, nth))
    }

    fn delete<'a>(&'a mut self, ids: &'a [KeyId]) -> Answer<'a, ()> {
        Box::pin(KeyTransaction::delete(self, ids))
    }

    fn write_audit<'a>(&'a mut self, entries: &'a [AuditEntry]) -> Answer<'a, ()> {
        Box::pin(KeyTransaction::write_audit(self, entries))
    }

    fn set_plan<'a>(
        &'a mut self,
        name: &'a str,
        limits: &'a RateLimits,
    ) -> Answer<'a, Option<String>> {
        Box::pin(KeyTransaction::set_plan(self, name, limits))
    }

    fn remove_plan<'a>(&'a mut self, name: &'a str) -> Answer<'a, Option<String>> {
        Box::pin(KeyTransaction::remove_plan(self, name))
    }

    fn claim_idempotency_key<'a>(
        &'a mut self,
        claim: &'a IdempotencyRecord,
    ) -> Answer<'a, Option<IdempotencyRecord>> {
        Box::pin(KeyTransaction::claim_idempotency_key(self, claim))
    }

    fn delete_expired(&mut self, before: SystemTime, limit: usize) -> Answer<'_, usize> {
        Box::pin(KeyTransaction::delete_expired(self, before, limit))
    }

    fn commit(self: Box<Self>) -> Answer<'static, ()> {
        Box::pin(KeyTransaction::commit(*self))
    }
}
