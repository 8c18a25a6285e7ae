use super::{Actor, KeyIssuer, ManageError, audit, erased::ErasedTransaction, issuer::Bounds};
use crate::{
    record::{AuditEntry, KeyAction, KeyId, KeyRecord},
    store::Claim,
};

/// A change under way: a transaction, the caller's record as it is in it, and what is to be told
/// when it is done.
pub(super) struct Change {
    pub(super) tx: Box<dyn ErasedTransaction>,
    issuer: KeyIssuer,
    held: Option<KeyRecord>,
    entries: Vec<AuditEntry>,
    changed: Vec<KeyRecord>,
    /// Which key the audit names if this is denied.
    target: Option<(KeyId, String)>,
}

impl KeyIssuer {
    /// Makes a change in a transaction of its own: all of what `work` did is committed with its
    /// audit, or nothing.
    ///
    /// The caller's record is locked together with those of `targets`, which are handed to `work`.
    pub(super) async fn change<T, W>(self, targets: Vec<KeyId>, work: W) -> Result<T, ManageError>
    where
        W: AsyncFnOnce(&mut Change, Vec<KeyRecord>) -> Result<T, ManageError>,
    {
        let (mut change, locked) = Change::begin(self, &targets).await?;
        let outcome = match change.check_caller() {
            Ok(()) => work(&mut change, locked).await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(done) => {
                change.commit().await?;
                Ok(done)
            }
            Err(error) => Err(change.abandon(error).await?),
        }
    }
}

impl Change {
    async fn begin(
        issuer: KeyIssuer,
        targets: &[KeyId],
    ) -> Result<(Self, Vec<KeyRecord>), ManageError> {
        let mut tx = issuer.begin().await?;
        let caller = issuer.actor.caller.as_ref().map(|caller| caller.key_id);
        let ids: Vec<_> = targets.iter().copied().chain(caller).collect();
        let locked = if ids.is_empty() { Vec::new() } else { tx.lock(&ids).await? };
        let held = locked.iter().find(|record| Some(record.id) == caller).cloned();
        let target = match targets {
            [id] => locked.iter().find(|record| record.id == *id),
            _ => None,
        };
        let target = target.map(|record| (record.id, record.consumer_id.clone()));
        let locked = locked.into_iter().filter(|record| targets.contains(&record.id)).collect();
        let (entries, changed) = (Vec::new(), Vec::new());
        Ok((Self { tx, issuer, held, entries, changed, target }, locked))
    }

    /// The bounds on what a caller makes; `None` for an operator.
    pub(super) fn bounds(&self) -> Option<Bounds> {
        self.actor().caller.as_ref().map(|_| self.issuer.bounds)
    }

    fn actor(&self) -> &Actor {
        &self.issuer.actor
    }

    /// `None` for an operator.
    fn caller(&self) -> Result<Option<(&super::actor::Caller, &KeyRecord)>, ManageError> {
        match (&self.actor().caller, &self.held) {
            (None, _) => Ok(None),
            (Some(caller), Some(held)) => Ok(Some((caller, held))),
            (Some(_), None) => Err(ManageError::caller_ended()),
        }
    }

    fn check_caller(&self) -> Result<(), ManageError> {
        match self.caller()? {
            Some((caller, held)) => caller.check(held),
            None => Ok(()),
        }
    }

    /// Whether keys of `consumer_id` are the actor's business.
    pub(super) fn check_reach(&self, consumer_id: &str) -> Result<(), ManageError> {
        match self.caller()? {
            Some((caller, held)) if !caller.reaches(held, consumer_id) => {
                Err(ManageError::out_of_reach())
            }
            _ => Ok(()),
        }
    }

    pub(super) fn check_grant(&self, granted: &KeyRecord) -> Result<(), ManageError> {
        match self.caller()? {
            Some((caller, held)) => caller.check_grant(held, granted),
            None => Ok(()),
        }
    }

    pub(super) fn check_change(
        &self,
        before: &KeyRecord,
        after: &KeyRecord,
    ) -> Result<(), ManageError> {
        match self.caller()? {
            Some((caller, held)) => caller.check_change(held, before, after),
            None => Ok(()),
        }
    }

    /// When the caller's own key ends.
    pub(super) fn caller_expires_at(&self) -> Option<std::time::SystemTime> {
        self.actor().caller.as_ref()?;
        self.held.as_ref()?.expires_at
    }

    /// The one target of the change.
    pub(super) fn target(&self, locked: Vec<KeyRecord>) -> Result<KeyRecord, ManageError> {
        let target = locked.into_iter().next().ok_or_else(ManageError::no_such_key)?;
        self.check_reach(&target.consumer_id)?;
        Ok(target)
    }

    /// Carries a request out once: an error where it was before.
    pub(super) async fn claim(&mut self, claim: Option<Claim>) -> Result<(), ManageError> {
        let Some(claim) = claim else { return Ok(()) };
        match self.tx.claim(&claim).await? {
            None => Ok(()),
            Some(earlier) if earlier.fingerprint == claim.fingerprint => {
                Err(ManageError::repeated(earlier.key_id))
            }
            Some(_) => Err(ManageError::idempotency_key_reused()),
        }
    }

    /// Notes for audit and caches that `after` was made of `before`.
    pub(super) fn note(
        &mut self,
        action: KeyAction,
        before: Option<&KeyRecord>,
        after: &KeyRecord,
        reason: Option<&str>,
    ) {
        let entry = AuditEntry {
            key_id: Some(after.id),
            consumer_id: Some(after.consumer_id.clone()),
            origin: self.actor().origin.clone(),
            reason: reason.map(str::to_owned),
            changes: audit::changes(before, after),
            ..AuditEntry::new(action, self.actor().name.clone())
        };
        self.entries.push(entry);
        self.changed.push(after.clone());
    }

    async fn commit(mut self) -> Result<(), ManageError> {
        self.tx.record(&self.entries).await?;
        let committed = self.tx.commit().await;
        // Even if that failed: a connection that is lost then may have been lost after the commit.
        self.issuer.invalidate(&self.changed);
        Ok(committed?)
    }

    /// Leaves nothing of the change, and writes a denial down.
    async fn abandon(self, error: ManageError) -> Result<ManageError, ManageError> {
        let Self { tx, issuer, target, .. } = self;
        drop(tx);
        if !error.is_denial() {
            return Ok(error);
        }
        let (key_id, consumer_id) = target.unzip();
        let entry = AuditEntry {
            key_id,
            consumer_id,
            origin: issuer.actor.origin.clone(),
            reason: Some(error.to_string()),
            ..AuditEntry::new(KeyAction::Denied, issuer.actor.name.clone())
        };
        let mut tx = issuer.begin().await?;
        tx.record(&[entry]).await?;
        tx.commit().await?;
        Ok(error.shown())
    }
}
