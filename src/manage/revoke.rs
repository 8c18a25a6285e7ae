use super::{KeyIssuer, ManageError, batch::Outcome, change::Change, text};
use crate::{
    record::{KeyAction, KeyId, KeyRecord},
    store::Selection,
};

/// Keys are revoked so many at a time: each batch is a transaction, which others wait for.
const BATCH: usize = 500;

/// What became of many keys that were to be revoked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Revocations {
    /// Keys that were revoked.
    pub keys: u64,
    /// Keys that were not, as a rule of the database refuses it (a constraint or a trigger that the
    /// application added), or their rows cannot be read and the keys are not accepted anyway. Each is logged.
    pub skipped: Vec<KeyId>,
}

impl KeyIssuer {
    /// Revokes a key for good, and returns its record. Revoking twice keeps the first time and
    /// reason.
    ///
    /// A [caller](super::Actor::caller) may revoke itself and the keys it was rotated to; with the
    /// [scope](super::Actor::other_keys_scope) for other keys any key of a consumer within its reach,
    /// also one that holds more than its own.
    ///
    /// # Errors
    ///
    /// [`NotFound`](super::ManageErrorKind::NotFound) when there is no such key, or when that is
    /// denied or the store fails.
    pub async fn revoke(&self, id: KeyId, reason: Option<&str>) -> Result<KeyRecord, ManageError> {
        self.detached(self.clone().revoke_now(id, owned(reason)?)).await
    }

    async fn revoke_now(self, id: KeyId, reason: Option<String>) -> Result<KeyRecord, ManageError> {
        self.change("revoke", vec![id], async move |change, locked| {
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
    /// it can be called again. A key that cannot be revoked is [skipped](Revocations::skipped).
    ///
    /// # Errors
    ///
    /// As [`revoke`](Self::revoke), for a consumer out of reach.
    pub async fn revoke_consumer(
        &self,
        consumer_id: &str,
        reason: Option<&str>,
    ) -> Result<Revocations, ManageError> {
        text::check("consumer_id", consumer_id)?;
        self.revoke_all(Selection::Consumer(consumer_id.to_owned()), reason).await
    }

    /// Revokes every key with a prefix, which is for the day on which one of a kind leaked, and
    /// returns how many it was. To a [caller](super::Actor::caller) that manages one consumer, keys of
    /// others do not exist: they stay as they are. As [`revoke_consumer`](Self::revoke_consumer)
    /// otherwise.
    ///
    /// # Errors
    ///
    /// As [`revoke`](Self::revoke).
    pub async fn revoke_prefix(
        &self,
        key_prefix: &str,
        reason: Option<&str>,
    ) -> Result<Revocations, ManageError> {
        text::check("key_prefix", key_prefix)?;
        let key_prefix = key_prefix.to_owned();
        let keys = match self.actor.tenant() {
            Some(own) => Selection::ConsumerPrefix { consumer_id: own.to_owned(), key_prefix },
            None => Selection::Prefix(key_prefix),
        };
        self.revoke_all(keys, reason).await
    }

    async fn revoke_all(
        &self,
        keys: Selection,
        reason: Option<&str>,
    ) -> Result<Revocations, ManageError> {
        let reason = owned(reason)?;
        let mut all = Revocations::default();
        loop {
            let batch =
                self.clone().revoke_batch(keys.clone(), reason.clone(), all.skipped.clone());
            let Outcome { done, skipped } = self.detached(batch).await?;
            let tried = done + skipped.len() as u64;
            all.keys += done;
            all.skipped.extend(skipped);
            // Not one more, in which nothing would be left: the caller's own key may have been in
            // this one.
            if tried < BATCH as u64 {
                return Ok(all);
            }
        }
    }

    async fn revoke_batch(
        self,
        keys: Selection,
        reason: Option<String>,
        except: Vec<KeyId>,
    ) -> Result<Outcome, ManageError> {
        let (selection, why, skip) = (keys.clone(), reason.clone(), except.clone());
        let together = self.clone().change("revoke", Vec::new(), async move |change, _| {
            change.check_selection(&selection)?;
            let before = change.tx.lock_some(&selection, &skip, BATCH).await?;
            change.revoke(&before, why.as_deref()).await
        });
        match together.await {
            Err(error) if error.is_of_a_key() => {}
            outcome => return outcome.map(|done| Outcome { done, skipped: Vec::new() }),
        }
        let mut ids = self.select_some(&keys, &except, BATCH).await?;
        // The caller's own key last: after that it may do nothing more.
        let own = self.actor.caller.as_ref().map(|caller| caller.key_id);
        ids.sort_by_key(|id| Some(*id) == own);
        let part = |ids| self.clone().revoke_these(ids, keys.clone(), reason.clone());
        Self::each(ids, part).await
    }

    async fn revoke_these(
        self,
        ids: Vec<KeyId>,
        keys: Selection,
        reason: Option<String>,
    ) -> Result<u64, ManageError> {
        self.change("revoke", ids, async move |change, mut before| {
            change.check_selection(&keys)?;
            before.retain(|record| record.revoked_at.is_none());
            change.revoke(&before, reason.as_deref()).await
        })
        .await
    }
}

impl Change {
    fn check_selection(&mut self, keys: &Selection) -> Result<(), ManageError> {
        self.check_others()?;
        match keys {
            Selection::Consumer(id) | Selection::ConsumerPrefix { consumer_id: id, .. } => {
                self.check_reach(id)
            }
            Selection::Prefix(_) | Selection::EndedBefore(_) => Ok(()),
        }
    }

    /// Revokes keys that are locked.
    async fn revoke(
        &mut self,
        before: &[KeyRecord],
        reason: Option<&str>,
    ) -> Result<u64, ManageError> {
        for record in before {
            self.check_reach(&record.consumer_id)?;
        }
        let ids: Vec<_> = before.iter().map(|record| record.id).collect();
        let after = self.tx.revoke(&ids, reason).await?;
        for (before, after) in before.iter().zip(&after) {
            self.note(KeyAction::Revoked, Some(before), after, reason);
        }
        Ok(after.len() as u64)
    }
}

fn owned(reason: Option<&str>) -> Result<Option<String>, ManageError> {
    text::check_some("reason", reason)?;
    Ok(reason.map(str::to_owned))
}
