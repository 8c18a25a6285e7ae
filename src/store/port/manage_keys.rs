use std::{future::Future, time::SystemTime};

use super::{HourlyUse, KeyTransaction, ManagePlans, key_store::KeyStore};
use crate::{
    key::KeyHash,
    record::{KeyId, KeyRecord},
    store::{
        EventPage, EventQuery, KeyPage, KeyQuery, StoreError, StoreErrorKind, UsageBucket,
        UsageCursor, UsageQuery,
    },
};

/// Lists keys, and changes them in transactions.
///
/// Not used on the request path. [`KeyIssuer`](crate::manage::KeyIssuer) builds on it and
/// implements the rules; a store only has to keep the guarantees documented here.
pub trait ManageKeys: KeyStore + ManagePlans {
    /// The type of transaction that [`begin`](Self::begin) starts.
    type Transaction: KeyTransaction;

    /// Begins a transaction.
    ///
    /// # Errors
    ///
    /// When the store cannot.
    fn begin(&self) -> impl Future<Output = Result<Self::Transaction, StoreError>> + Send;

    /// The record of the key with this id.
    ///
    /// # Errors
    ///
    /// When the store cannot answer.
    fn get(&self, id: KeyId) -> impl Future<Output = Result<Option<KeyRecord>, StoreError>> + Send;

    /// The records of the keys that have one of these hashes, in any state and order: one query for
    /// all of them. `hashes` has no duplicates. The default asks [`find`](KeyStore::find) for each.
    ///
    /// # Errors
    ///
    /// When the store cannot answer, or [`Corrupt`](crate::store::StoreErrorKind::Corrupt) when a
    /// record cannot be parsed.
    fn find_many(
        &self,
        hashes: &[KeyHash],
    ) -> impl Future<Output = Result<Vec<KeyRecord>, StoreError>> + Send {
        async move {
            let mut found = Vec::new();
            for hash in hashes {
                found.extend(self.find(hash).await?);
            }
            Ok(found)
        }
    }

    /// A page of keys, newest first.
    ///
    /// It ends before the key that would make it larger than 1 MiB, which bounds memory regardless
    /// of what is stored with keys. Rows that cannot be parsed are in [`KeyPage::invalid`].
    ///
    /// # Errors
    ///
    /// When the store cannot answer.
    fn list(&self, query: &KeyQuery) -> impl Future<Output = Result<KeyPage, StoreError>> + Send;

    /// A page of the audit, newest first. Bounded like a page of [keys](Self::list).
    ///
    /// # Errors
    ///
    /// When the store cannot answer.
    fn events(
        &self,
        query: &EventQuery,
    ) -> impl Future<Output = Result<EventPage, StoreError>> + Send;

    /// When the key was last used, as far as recorded.
    ///
    /// # Errors
    ///
    /// When the store cannot answer.
    fn last_used_at(
        &self,
        id: KeyId,
    ) -> impl Future<Output = Result<Option<SystemTime>, StoreError>> + Send;

    /// What was counted in each bucket that begins within the range of the query, in the order of
    /// time. Buckets without use are left out. Use stays after its key was deleted.
    ///
    /// The default is for a store that does not keep what
    /// [`record_usage`](KeyStore::record_usage) counts.
    ///
    /// # Errors
    ///
    /// [`Unsupported`](StoreErrorKind::Unsupported) by default, or when the store cannot answer.
    fn usage(
        &self,
        query: &UsageQuery,
    ) -> impl Future<Output = Result<Vec<UsageBucket>, StoreError>> + Send {
        let _ = query;
        async { Err(StoreError::new(StoreErrorKind::Unsupported).because(NO_LEDGER)) }
    }

    /// The hours of single keys after a position that begin before `end`, in the order of hour and
    /// key id: the first `limit` of them.
    ///
    /// # Errors
    ///
    /// As [`usage`](Self::usage).
    fn usage_hours(
        &self,
        after: UsageCursor,
        end: SystemTime,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<HourlyUse>, StoreError>> + Send {
        let _ = (after, end, limit);
        async { Err(StoreError::new(StoreErrorKind::Unsupported).because(NO_LEDGER)) }
    }
}

const NO_LEDGER: &str = "this store does not keep the use of keys";
