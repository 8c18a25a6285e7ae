use std::time::SystemTime;

use super::{
    KeyIssuer, ManageError,
    batch::Outcome,
    change::{Attempt, Change},
    issuer::MAX_PAGE_LIMIT,
    text,
};
use crate::{
    record::{KeyAction, KeyId, KeyRecord},
    store::{KeyQuery, ListedKey, port::KeyFilter},
};

/// Keys of a transaction. Its locks delay other changes, so batches are small.
const BATCH: usize = 500;

/// Which keys [`KeyIssuer::revoke_matching`] revokes: those that match all conditions and are not
/// revoked yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
#[must_use]
pub struct RevocationFilter {
    /// Keys of this consumer.
    pub consumer_id: Option<String>,
    /// Keys with exactly this prefix.
    pub key_prefix: Option<String>,
    /// Keys that were issued or imported before this time.
    pub created_before: Option<SystemTime>,
    /// Keys that were last used at this time or later, as far as recorded: services record uses
    /// once per [`usage_interval`](crate::auth::Builder::usage_interval).
    pub used_since: Option<SystemTime>,
}

impl RevocationFilter {
    /// A filter without conditions. It needs at least one to be used.
    pub const fn new() -> Self {
        Self { consumer_id: None, key_prefix: None, created_before: None, used_since: None }
    }

    /// Sets [`consumer_id`](Self::consumer_id).
    pub fn consumer_id(self, id: impl Into<String>) -> Self {
        Self { consumer_id: Some(id.into()), ..self }
    }

    /// Sets [`key_prefix`](Self::key_prefix).
    pub fn key_prefix(self, prefix: impl Into<String>) -> Self {
        Self { key_prefix: Some(prefix.into()), ..self }
    }

    /// Sets [`created_before`](Self::created_before).
    pub fn created_before(self, end: SystemTime) -> Self {
        Self { created_before: Some(end), ..self }
    }

    /// Sets [`used_since`](Self::used_since).
    pub fn used_since(self, since: SystemTime) -> Self {
        Self { used_since: Some(since), ..self }
    }

    fn check(&self) -> Result<(), ManageError> {
        text::check_some("consumer_id", self.consumer_id.as_deref())?;
        text::check_some("key_prefix", self.key_prefix.as_deref())?;
        if *self == Self::new() {
            let detail = "must have a consumer, a prefix or a time: without one it would match \
                every key";
            return Err(ManageError::invalid("filter", detail));
        }
        Ok(())
    }

    fn matches(&self, key: &ListedKey) -> bool {
        let record = &key.record;
        record.revoked_at.is_none()
            && self.created_before.is_none_or(|end| record.created_at < end)
            && self.used_since.is_none_or(|since| key.last_used_at.is_some_and(|at| at >= since))
    }
}

/// The result of revoking many keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Revocations {
    /// How many keys were revoked.
    pub keys: u64,
    /// Keys that could not be revoked: a rule of the database refuses it (a constraint or a trigger
    /// that the application added), or their rows cannot be read, in which case the keys are not
    /// accepted anyway. Each is logged.
    pub skipped: Vec<KeyId>,
}

impl KeyIssuer {
    /// Revokes a key permanently, and returns its record. Revoking it again keeps the first time
    /// and reason.
    ///
    /// A [caller](super::Actor::key) may revoke itself and the keys of its own rotation chain.
    /// With the [scope](super::Actor::other_keys_scope) for other keys, it may revoke any key of a
    /// consumer that it manages, even one that holds more than its own.
    ///
    /// # Errors
    ///
    /// [`NotFound`](super::ManageErrorKind::NotFound) when the key does not exist, or when the
    /// change is denied or the store fails.
    pub async fn revoke(&self, id: KeyId, reason: Option<&str>) -> Result<KeyRecord, ManageError> {
        self.detached(self.clone().revoke_now(id, owned(reason)?)).await
    }

    async fn revoke_now(self, id: KeyId, reason: Option<String>) -> Result<KeyRecord, ManageError> {
        self.change("revoke", vec![id], async move |change, locked| {
            let before = change.target(locked)?;
            let revoked = change.tx.revoke(&[id], reason.as_deref()).await?;
            // `None` if it was already revoked.
            let Some(after) = revoked.into_iter().next() else { return Ok(before) };
            change.note(KeyAction::Revoked, Some(&before), &after, reason.as_deref());
            Ok(after)
        })
        .await
    }

    /// Revokes all keys of a consumer, and returns how many. Keys that are issued meanwhile may or
    /// may not be included.
    ///
    /// Keys are revoked in transactions of 500. If one fails, the keys that were revoked before
    /// stay revoked, and it can be called again. A key that cannot be revoked is
    /// [skipped](Revocations::skipped).
    ///
    /// # Errors
    ///
    /// As [`revoke`](Self::revoke), if the actor may not manage the consumer.
    pub async fn revoke_consumer(
        &self,
        consumer_id: &str,
        reason: Option<&str>,
    ) -> Result<Revocations, ManageError> {
        text::check("consumer_id", consumer_id)?;
        self.revoke_all(KeyFilter::Consumer(consumer_id.to_owned()), reason).await
    }

    /// Revokes all keys with a prefix, for example after a whole kind of keys leaked, and returns
    /// how many. A [caller](super::Actor::key) or a [member](super::Actor::member) revokes only keys
    /// of the consumers that it manages. Otherwise like [`revoke_consumer`](Self::revoke_consumer).
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
        let Some(tenants) = self.tenants() else {
            return self.revoke_all(KeyFilter::Prefix(key_prefix.to_owned()), reason).await;
        };
        let mut all = Revocations::default();
        for consumer_id in tenants {
            let (consumer_id, key_prefix) = (consumer_id.to_owned(), key_prefix.to_owned());
            let keys = KeyFilter::ConsumerPrefix { consumer_id, key_prefix };
            let Revocations { keys, skipped } = self.revoke_all(keys, reason).await?;
            all.keys += keys;
            all.skipped.extend(skipped);
        }
        Ok(all)
    }

    /// Revokes all keys that match `filter`, and returns how many: after restoring a backup, for
    /// instance, all keys [created before](RevocationFilter::created_before) it. Keys that are
    /// issued, or begin to match, meanwhile are left unchanged. Otherwise like
    /// [`revoke_consumer`](Self::revoke_consumer).
    ///
    /// # Errors
    ///
    /// As [`matching`](Self::matching).
    pub async fn revoke_matching(
        &self,
        filter: &RevocationFilter,
        reason: Option<&str>,
    ) -> Result<Revocations, ManageError> {
        let reason = owned(reason)?;
        let mut all = Revocations::default();
        for ids in self.matching(filter).await?.chunks(BATCH) {
            let part = self.clone().revoke_each(ids.to_vec(), reason.clone());
            let Outcome { done, skipped } = self.detached(part).await?;
            all.keys += done;
            all.skipped.extend(skipped);
        }
        Ok(all)
    }

    /// The ids of the keys that [`revoke_matching`](Self::revoke_matching) would revoke, newest
    /// first. Keys whose rows cannot be read are not included: they are not accepted anyway.
    ///
    /// # Errors
    ///
    /// [`Denied`](super::ManageErrorKind::Denied) to a [caller](super::Actor::key),
    /// [`Invalid`](super::ManageErrorKind::Invalid) for a filter without conditions, or when the
    /// store fails.
    pub async fn matching(&self, filter: &RevocationFilter) -> Result<Vec<KeyId>, ManageError> {
        if !self.actor.is_operator() {
            let attempt = Attempt::to("revoke");
            return Err(self.deny(ManageError::operators_only(), attempt).await?);
        }
        filter.check()?;
        let mut query = KeyQuery::new().limit(MAX_PAGE_LIMIT.into());
        query.consumer_id.clone_from(&filter.consumer_id);
        query.key_prefix.clone_from(&filter.key_prefix);
        let mut ids = Vec::new();
        loop {
            let page = self.list(&query).await?;
            let matching = page.keys.iter().filter(|key| filter.matches(key));
            ids.extend(matching.map(|key| key.record.id));
            query.after = page.next;
            if page.next.is_none() {
                return Ok(ids);
            }
        }
    }

    async fn revoke_each(
        self,
        ids: Vec<KeyId>,
        reason: Option<String>,
    ) -> Result<Outcome, ManageError> {
        let part = |ids| {
            let (issuer, reason) = (self.clone(), reason.clone());
            issuer.change("revoke", ids, async move |change, mut before| {
                before.retain(|record| record.revoked_at.is_none());
                change.revoke(&before, reason.as_deref()).await
            })
        };
        Self::each(ids, part).await
    }

    async fn revoke_all(
        &self,
        keys: KeyFilter,
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
            // No further batch to find out that none is left: this one may have revoked the calling
            // key.
            if tried < BATCH as u64 {
                return Ok(all);
            }
        }
    }

    async fn revoke_batch(
        self,
        keys: KeyFilter,
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
        // The calling key last: once revoked, it cannot revoke others.
        let own = self.actor.caller().map(|caller| caller.key_id);
        ids.sort_by_key(|id| Some(*id) == own);
        let part = |ids| self.clone().revoke_these(ids, keys.clone(), reason.clone());
        Self::each(ids, part).await
    }

    async fn revoke_these(
        self,
        ids: Vec<KeyId>,
        keys: KeyFilter,
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
    fn check_selection(&mut self, keys: &KeyFilter) -> Result<(), ManageError> {
        self.check_others()?;
        match keys {
            KeyFilter::Consumer(id) | KeyFilter::ConsumerPrefix { consumer_id: id, .. } => {
                self.check_reach(id)
            }
            KeyFilter::Prefix(_) | KeyFilter::EndedBefore(_) => Ok(()),
        }
    }

    /// Revokes locked keys.
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
