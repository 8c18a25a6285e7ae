use std::{future::Future, pin::Pin, time::SystemTime};

use crate::{
    key::KeyHash,
    rate_limit::RateLimits,
    record::{AuditEntry, KeyId, KeyRecord},
    store::{
        EventPage, EventQuery, KeyPage, KeyQuery, KeyStore, ManageKeys, StoreError, UsageBucket,
        UsageCursor, UsageQuery,
        port::{
            HourlyUse, IdempotencyRecord, KeyCountQuery, KeyCounts, KeyFilter, KeyTransaction,
            LegacyKey, ManagePlans, UsageBatch,
        },
    },
};

type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// [`ManageKeys`] as a trait object, so that the service has no type parameter for the store.
pub(super) trait ErasedKeys: Send + Sync {
    fn begin(&self) -> Answer<'_, Box<dyn ErasedTransaction>>;
    fn get(&self, id: KeyId) -> Answer<'_, Option<KeyRecord>>;
    fn find_many<'a>(&'a self, hashes: &'a [KeyHash]) -> Answer<'a, Vec<KeyRecord>>;
    fn list<'a>(&'a self, query: &'a KeyQuery) -> Answer<'a, KeyPage>;
    fn events<'a>(&'a self, query: &'a EventQuery) -> Answer<'a, EventPage>;
    fn last_used_at(&self, id: KeyId) -> Answer<'_, Option<SystemTime>>;
    fn usage<'a>(&'a self, query: &'a UsageQuery) -> Answer<'a, Vec<UsageBucket>>;
    fn usage_hours(
        &self,
        after: UsageCursor,
        end: SystemTime,
        limit: usize,
    ) -> Answer<'_, Vec<HourlyUse>>;
    fn record_usage<'a>(&'a self, batch: &'a UsageBatch) -> Answer<'a, ()>;
    fn plans(&self) -> Answer<'_, Vec<(String, RateLimits)>>;
}

impl<S: ManageKeys> ErasedKeys for S {
    fn begin(&self) -> Answer<'_, Box<dyn ErasedTransaction>> {
        Box::pin(async { Ok(Box::new(ManageKeys::begin(self).await?) as _) })
    }

    fn get(&self, id: KeyId) -> Answer<'_, Option<KeyRecord>> {
        Box::pin(ManageKeys::get(self, id))
    }

    fn find_many<'a>(&'a self, hashes: &'a [KeyHash]) -> Answer<'a, Vec<KeyRecord>> {
        Box::pin(ManageKeys::find_many(self, hashes))
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

    fn usage<'a>(&'a self, query: &'a UsageQuery) -> Answer<'a, Vec<UsageBucket>> {
        Box::pin(ManageKeys::usage(self, query))
    }

    fn usage_hours(
        &self,
        after: UsageCursor,
        end: SystemTime,
        limit: usize,
    ) -> Answer<'_, Vec<HourlyUse>> {
        Box::pin(ManageKeys::usage_hours(self, after, end, limit))
    }

    fn record_usage<'a>(&'a self, batch: &'a UsageBatch) -> Answer<'a, ()> {
        Box::pin(KeyStore::record_usage(self, batch))
    }

    fn plans(&self) -> Answer<'_, Vec<(String, RateLimits)>> {
        Box::pin(ManagePlans::plans(self))
    }
}

/// Declares [`ErasedTransaction`], and implements it by the methods of [`KeyTransaction`].
macro_rules! erased_transaction {
    ($(
        fn $method:ident<$life:lifetime>(
            &$_life:lifetime mut self $(, $argument:ident: $type:ty)*
        ) -> $answer:ty;
    )*) => {
        /// [`KeyTransaction`] as a trait object.
        pub(super) trait ErasedTransaction: Send {
            $(fn $method<$life>(&$life mut self $(, $argument: $type)*) -> Answer<$life, $answer>;)*
            fn commit(self: Box<Self>) -> Answer<'static, ()>;
        }

        impl<T: KeyTransaction> ErasedTransaction for T {
            $(fn $method<$life>(&$life mut self $(, $argument: $type)*) -> Answer<$life, $answer> {
                Box::pin(KeyTransaction::$method(self $(, $argument)*))
            })*

            fn commit(self: Box<Self>) -> Answer<'static, ()> {
                Box::pin(KeyTransaction::commit(*self))
            }
        }
    };
}

erased_transaction! {
    fn lock<'a>(&'a mut self, ids: &'a [KeyId]) -> Vec<KeyRecord>;
    fn lock_some<'a>(
        &'a mut self, keys: &'a KeyFilter, except: &'a [KeyId], limit: usize
    ) -> Vec<KeyRecord>;
    fn select_some<'a>(
        &'a mut self, keys: &'a KeyFilter, except: &'a [KeyId], limit: usize
    ) -> Vec<KeyId>;
    fn insert<'a>(&'a mut self, records: &'a [KeyRecord]) -> Vec<KeyId>;
    fn update<'a>(&'a mut self, record: &'a KeyRecord) -> KeyRecord;
    fn revoke<'a>(&'a mut self, ids: &'a [KeyId], reason: Option<&'a str>) -> Vec<KeyRecord>;
    fn count_keys<'a>(&'a mut self, query: &'a KeyCountQuery) -> KeyCounts;
    fn nth_rotation<'a>(&'a mut self, root: KeyId, nth: usize) -> Option<SystemTime>;
    fn delete<'a>(&'a mut self, ids: &'a [KeyId]) -> ();
    fn write_audit<'a>(&'a mut self, entries: &'a [AuditEntry]) -> ();
    fn set_plan<'a>(&'a mut self, name: &'a str, limits: &'a RateLimits) -> Option<String>;
    fn remove_plan<'a>(&'a mut self, name: &'a str) -> Option<String>;
    fn claim_idempotency_key<'a>(
        &'a mut self, claim: &'a IdempotencyRecord
    ) -> Option<IdempotencyRecord>;
    fn delete_expired<'a>(&'a mut self, before: SystemTime, limit: usize) -> usize;
    fn delete_counted_uses<'a>(
        &'a mut self, hours_before: SystemTime, writers_before: SystemTime, limit: usize
    ) -> usize;
    fn known_legacy_hashes<'a>(&'a mut self, digests: &'a [[u8; 32]]) -> Vec<[u8; 32]>;
    fn insert_legacy_hashes<'a>(&'a mut self, keys: &'a [LegacyKey]) -> usize;
}
