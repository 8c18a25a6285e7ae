//! Changes to a store that bypass `KeyIssuer`, as a script or an operator's SQL makes them.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use tower_api_key::{
    record::{KeyId, KeyRecord},
    store::{ManageKeys, StoreError, StoreErrorKind, port::KeyTransaction as _},
};

/// One change, in a transaction of its own.
pub trait ByHand: ManageKeys {
    /// [`Conflict`](StoreErrorKind::Conflict) if the id or the hash exists.
    fn insert(&self, record: &KeyRecord) -> impl Future<Output = Result<(), StoreError>> + Send {
        async {
            let mut transaction = self.begin().await?;
            let inserted = transaction.insert(std::slice::from_ref(record)).await?;
            if inserted.is_empty() {
                return Err(StoreError::new(StoreErrorKind::Conflict));
            }
            transaction.commit().await
        }
    }

    fn update(
        &self,
        record: &KeyRecord,
    ) -> impl Future<Output = Result<KeyRecord, StoreError>> + Send {
        async {
            let mut transaction = self.begin().await?;
            let updated = transaction.update(record).await?;
            transaction.commit().await?;
            Ok(updated)
        }
    }

    /// The record after the change; `None` if there is no such key.
    fn revoke(
        &self,
        id: KeyId,
        reason: Option<&str>,
    ) -> impl Future<Output = Result<Option<KeyRecord>, StoreError>> + Send {
        async move {
            let mut transaction = self.begin().await?;
            transaction.revoke(&[id], reason).await?;
            transaction.commit().await?;
            self.get(id).await
        }
    }
}

impl<S: ManageKeys> ByHand for S {}
