use serde_json::json;

use super::{
    Actor, KeyIssuer, ManageError, audit, denials::Admission, erased::ErasedTransaction,
    issuer::Bounds,
};
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
    attempt: Attempt,
}

/// What the audit says of a change that is denied. It is filed under the key that asked for it: the
/// owner of the key that it was aimed at does not learn of the attempts of others.
pub(super) struct Attempt {
    action: &'static str,
    key_id: Option<KeyId>,
    consumer_id: Option<String>,
}

impl Attempt {
    pub(super) const fn to(action: &'static str) -> Self {
        Self { action, key_id: None, consumer_id: None }
    }
}

impl KeyIssuer {
    /// Makes a change in a transaction of its own: all of what `work` did is committed with its
    /// audit, or nothing.
    ///
    /// The caller's record is locked together with those of `targets`, which are handed to `work`.
    /// `action` is what the audit calls the attempt, if it is denied.
    pub(super) async fn change<T, W>(
        self,
        action: &'static str,
        targets: Vec<KeyId>,
        work: W,
    ) -> Result<T, ManageError>
    where
        W: AsyncFnOnce(&mut Change, Vec<KeyRecord>) -> Result<T, ManageError>,
    {
        let mut attempt = Attempt::to(action);
        if let [id] = targets[..] {
            attempt.key_id = Some(id);
        }
        // What the layer knows is judged first: an attempt without a scope costs no transaction.
        if let Err(error) = self.actor.check_known() {
            return Err(self.deny(error, attempt).await?);
        }
        let (mut change, locked) = Change::begin(self, &targets, attempt).await?;
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

    /// Writes a denial down, unless there were many of late, and returns what the caller is told.
    pub(super) async fn deny(
        &self,
        error: ManageError,
        attempt: Attempt,
    ) -> Result<ManageError, ManageError> {
        let Some(caller) = self.actor.caller.as_ref().filter(|_| error.is_denial()) else {
            return Ok(error);
        };
        let (key_id, consumer_id) = (caller.key_id, caller.consumer_id());
        let (now, wall) = (self.clock.monotonic(), self.clock.now());
        let admission = self.denials.admit(key_id, &self.actor.name, consumer_id, now, wall);
        let Admission::Write(overdue) = admission else { return Ok(error.shown()) };
        let target = json!({
            "key_id": attempt.key_id.map(|id| id.to_string()),
            "consumer_id": attempt.consumer_id,
        });
        let entry = AuditEntry {
            key_id: Some(key_id),
            consumer_id: Some(consumer_id.to_owned()),
            origin: self.actor.origin.clone(),
            reason: Some(error.to_string()),
            changes: Some(json!({ "attempt": attempt.action, "target": target }).to_string()),
            ..AuditEntry::new(KeyAction::Denied, self.actor.name.clone())
        };
        let entries: Vec<_> = overdue.entries().chain([entry]).collect();
        match self.write_audit(&entries).await {
            Ok(()) => Ok(error.shown()),
            Err(failed) => {
                self.denials.restore(overdue);
                Err(failed)
            }
        }
    }

    async fn write_audit(&self, entries: &[AuditEntry]) -> Result<(), ManageError> {
        let mut tx = self.begin().await?;
        tx.record(entries).await?;
        Ok(tx.commit().await?)
    }
}

impl Change {
    async fn begin(
        issuer: KeyIssuer,
        targets: &[KeyId],
        mut attempt: Attempt,
    ) -> Result<(Self, Vec<KeyRecord>), ManageError> {
        let mut tx = issuer.begin().await?;
        let caller = issuer.actor.caller.as_ref().map(|caller| caller.key_id);
        let ids: Vec<_> = targets.iter().copied().chain(caller).collect();
        let locked = if ids.is_empty() { Vec::new() } else { tx.lock(&ids).await? };
        let held = locked.iter().find(|record| Some(record.id) == caller).cloned();
        let target = locked.iter().find(|record| Some(record.id) == attempt.key_id);
        attempt.consumer_id = target.map(|record| record.consumer_id.clone());
        let locked = locked.into_iter().filter(|record| targets.contains(&record.id)).collect();
        let (entries, changed) = (Vec::new(), Vec::new());
        Ok((Self { tx, issuer, held, entries, changed, attempt }, locked))
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
    pub(super) fn check_reach(&mut self, consumer_id: &str) -> Result<(), ManageError> {
        match self.caller()? {
            Some((caller, held)) if !caller.reaches(held, consumer_id) => {
                self.attempt.consumer_id = Some(consumer_id.to_owned());
                Err(ManageError::out_of_reach())
            }
            _ => Ok(()),
        }
    }

    /// Whether the actor may change keys other than its own.
    pub(super) fn check_others(&self) -> Result<(), ManageError> {
        match self.caller()? {
            Some((caller, held)) => caller.check_others(held),
            None => Ok(()),
        }
    }

    /// Whether the actor may have a key with what the application says of `old`.
    pub(super) fn check_takeover(&self, old: &KeyRecord) -> Result<(), ManageError> {
        match self.caller()? {
            Some((caller, held)) => caller.check_takeover(held, old),
            None => Ok(()),
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

    /// The one target of the change. To a caller, a key out of its reach and none at all are the
    /// same, in the answer and in the audit.
    pub(super) fn target(&mut self, locked: Vec<KeyRecord>) -> Result<KeyRecord, ManageError> {
        let Some(target) = locked.into_iter().next() else {
            return Err(match self.caller()? {
                Some(_) => ManageError::out_of_reach(),
                None => ManageError::no_such_key(),
            });
        };
        self.check_reach(&target.consumer_id)?;
        if let Some((caller, held)) = self.caller()? {
            caller.check_target(held, &target)?;
        }
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

    /// Notes for the audit what became of a plan; limits are JSON, `None` where there is no plan.
    pub(super) fn note_plan(
        &mut self,
        action: KeyAction,
        name: &str,
        before: Option<&str>,
        after: Option<&str>,
    ) {
        let entry = AuditEntry {
            origin: self.actor().origin.clone(),
            changes: Some(audit::plan_changes(name, before, after)),
            ..AuditEntry::new(action, self.actor().name.clone())
        };
        self.entries.push(entry);
    }

    async fn commit(mut self) -> Result<(), ManageError> {
        let Self { entries, issuer, .. } = &mut self;
        let overdue = if entries.is_empty() {
            None
        } else {
            let overdue = issuer.denials.take_overdue(issuer.clock.monotonic());
            entries.splice(0..0, overdue.entries());
            Some(overdue)
        };
        let committed = match self.tx.record(&self.entries).await {
            Ok(()) => self.tx.commit().await.map_err(ManageError::from),
            // Whatever was wrong with the line, it was no key's fault.
            Err(error) => Err(ManageError::failed(error)),
        };
        if let (Err(_), Some(overdue)) = (&committed, overdue) {
            self.issuer.denials.restore(overdue);
        }
        match committed {
            Ok(()) => self.issuer.tell(&self.changed),
            // A connection that is lost then may have been lost after the commit.
            Err(_) => self.issuer.invalidate(&self.changed),
        }
        committed
    }

    /// Leaves nothing of the change, and writes a denial down.
    async fn abandon(self, error: ManageError) -> Result<ManageError, ManageError> {
        let Self { tx, issuer, attempt, .. } = self;
        drop(tx);
        issuer.deny(error, attempt).await
    }
}
