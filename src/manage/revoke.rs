use super::{KeyIssuer, ManageError, text};
use crate::{
    record::{KeyAction, KeyId, KeyRecord},
    store::Selection,
};

/// Keys are revoked so many at a time: each batch is a transaction, which others wait for.
const BATCH: usize = 500;

impl KeyIssuer {
    /// Revokes a key for good, and returns its record. Revoking twice keeps the first time and
    /// reason.
    ///
    /// A [caller](super::Actor::caller) may revoke any key of a consumer within its reach, also one
    /// that holds more than its own, and its own.
    ///
    /// # Errors
    ///
    /// [`NotFound`](super::ManageErrorKind::NotFound) when there is no such key, or when that is
    /// denied or the store fails.
    pub async fn revoke(&self, id: KeyId, reason: Option<&str>) -> Result<KeyRecord, ManageError> {
        self.detached(self.clone().revoke_now(id, owned(reason)?)).await
    }

    async fn revoke_now(self, id: KeyId, reason: Option<String>) -> Result<KeyRecord, ManageError> {
        self.change(vec![id], async move |change, locked| {
            let before = change.target(locked)?;
            let revoked = change.tx.revoke(&[id], reason.as_deref()).await?;
            // None: it was revoked before.
            let Some(after) = revoked.into_iter().next() else { return Ok(before) };
            change.note(KeyAction::Revoked, Some(&before), &after, reason.as_deref());
            Ok(after)
        })
        .await
    }

    /// Revokes every key of a consumer, and returns how many it was. Keys that are issued meanwhile
    /// are included or not.
    ///
    /// Keys are revoked 500 at a time. Where it fails half-way, those that were revoked stay so, and
    /// it can be called again.
    ///
    /// # Errors
    ///
    /// As [`revoke`](Self::revoke), for a consumer out of reach.
    pub async fn revoke_consumer(
        &self,
        consumer_id: &str,
        reason: Option<&str>,
    ) -> Result<u64, ManageError> {
        text::check("consumer_id", consumer_id)?;
        self.revoke_all(Selection::Consumer(consumer_id.to_owned()), reason).await
    }

    /// Revokes every key with a prefix, which is for the day on which one of a kind leaked, and
    /// returns how many it was. As [`revoke_consumer`](Self::revoke_consumer) otherwise.
    ///
    /// # Errors
    ///
    /// As [`revoke`](Self::revoke), when a key of a consumer out of reach is among them.
    pub async fn revoke_prefix(
        &self,
        key_prefix: &str,
        reason: Option<&str>,
    ) -> Result<u64, ManageError> {
        text::check("key_prefix", key_prefix)?;
        self.revoke_all(Selection::Prefix(key_prefix.to_owned()), reason).await
    }

    async fn revoke_all(&self, keys: Selection, reason: Option<&str>) -> Result<u64, ManageError> {
        let reason = owned(reason)?;
        let mut revoked = 0;
        loop {
            let batch = self.clone().revoke_batch(keys.clone(), reason.clone());
            let batch = self.detached(batch).await?;
            revoked += batch;
            // Not one more, in which nothing would be left: the caller's own key may have been in
            // this one.
            if batch < BATCH as u64 {
                return Ok(revoked);
            }
        }
    }

    async fn revoke_batch(
        self,
        keys: Selection,
        reason: Option<String>,
    ) -> Result<u64, ManageError> {
        self.change(Vec::new(), async move |change, _| {
            if let Selection::Consumer(id) = &keys {
                change.check_reach(id)?;
            }
            let before = change.tx.lock_some(&keys, BATCH).await?;
            for record in &before {
                change.check_reach(&record.consumer_id)?;
            }
            let ids: Vec<_> = before.iter().map(|record| record.id).collect();
            let after = change.tx.revoke(&ids, reason.as_deref()).await?;
            for (before, after) in before.iter().zip(&after) {
                change.note(KeyAction::Revoked, Some(before), after, reason.as_deref());
            }
            Ok(after.len() as u64)
        })
        .await
    }
}

fn owned(reason: Option<&str>) -> Result<Option<String>, ManageError> {
    text::check_some("reason", reason)?;
    Ok(reason.map(str::to_owned))
}
