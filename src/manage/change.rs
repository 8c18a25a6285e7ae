use serde_json::json;

use super::{
    IssuePolicy, KeyIssuer, ManageError, audit,
    denials::{Admission, Denied},
    erased::ErasedTransaction,
};
use crate::{
    record::{AuditEntry, KeyAction, KeyId, KeyRecord},
    store::port::IdempotencyRecord,
};

/// A change in progress: its transaction, the caller's record as locked in it, and the audit
/// entries and invalidations that follow.
pub(super) struct Change {
    pub(super) tx: Box<dyn ErasedTransaction>,
    pub(super) issuer: KeyIssuer,
    /// The record of the calling key, with all that its scopes contain.
    pub(super) held: Option<KeyRecord>,
    entries: Vec<AuditEntry>,
    changed: Vec<KeyRecord>,
    pub(super) attempt: Attempt,
    /// What exceeds the policy and is overridden, by key.
    pub(super) exceeded: Vec<(KeyId, String)>,
}

/// What the audit shows of a denied change. It is filed under the calling key, or under the
/// consumer of the member, so that the owner of the target does not see attempts by others.
pub(super) struct Attempt {
    action: &'static str,
    key_id: Option<KeyId>,
    pub(super) consumer_id: Option<String>,
}

impl Attempt {
    pub(super) const fn to(action: &'static str) -> Self {
        Self { action, key_id: None, consumer_id: None }
    }
}

impl KeyIssuer {
    /// Runs `work` in a transaction and commits it together with its audit entries, or not at all.
    ///
    /// Locks the caller's record together with those of `targets`, which are passed to `work`.
    /// `action` names the attempt in the audit if it is denied.
    pub(super) async fn change<T, W>(
        self,
        action: &'static str,
        targets: Vec<KeyId>,
        work: W,
    ) -> Result<T, ManageError>
    where
        W: AsyncFnOnce(&mut Change, Vec<KeyRecord>) -> Result<T, ManageError>,
    {
        let (done, change) = self.uncommitted(action, targets, work).await?;
        change.commit().await?;
        Ok(done)
    }

    /// Runs `work` as [`change`](Self::change) does, in a transaction that is rolled back.
    pub(super) async fn rehearse<T, W>(
        self,
        action: &'static str,
        work: W,
    ) -> Result<T, ManageError>
    where
        W: AsyncFnOnce(&mut Change, Vec<KeyRecord>) -> Result<T, ManageError>,
    {
        let (done, _) = self.uncommitted(action, Vec::new(), work).await?;
        Ok(done)
    }

    async fn uncommitted<T, W>(
        self,
        action: &'static str,
        targets: Vec<KeyId>,
        work: W,
    ) -> Result<(T, Change), ManageError>
    where
        W: AsyncFnOnce(&mut Change, Vec<KeyRecord>) -> Result<T, ManageError>,
    {
        let mut attempt = Attempt::to(action);
        if let [id] = targets[..] {
            attempt.key_id = Some(id);
        }
        // Checked before the transaction, so that an attempt without the scope costs none.
        if let Err(error) = self.actor.check_known(self.catalog.as_ref()) {
            return Err(self.deny(error, attempt).await?);
        }
        let (mut change, locked) = Change::begin(self, &targets, attempt).await?;
        let outcome = match change.check_caller() {
            Ok(()) => work(&mut change, locked).await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(done) => Ok((done, change)),
            Err(error) => Err(change.abandon(error).await?),
        }
    }

    /// Writes a denial to the audit, unless the key has had too many, and returns the error for the
    /// caller.
    pub(super) async fn deny(
        &self,
        error: ManageError,
        attempt: Attempt,
    ) -> Result<ManageError, ManageError> {
        if self.actor.is_operator() || !error.is_denial() {
            return Ok(error);
        }
        let key_id = self.actor.caller().map(|caller| caller.key_id);
        let consumer_id = self.actor.consumer_id();
        let who = key_id.map_or_else(|| Denied::Member(self.actor.name.clone()), Denied::Key);
        let (now, wall) = (self.clock.monotonic(), self.clock.now());
        let admission = self.denials.admit(who, &self.actor.name, consumer_id, now, wall);
        let Admission::Write(overdue) = admission else { return Ok(error.shown()) };
        let target = json!({
            "key_id": attempt.key_id.map(|id| id.to_string()),
            "consumer_id": attempt.consumer_id,
        });
        let entry = AuditEntry {
            key_id,
            consumer_id: consumer_id.map(str::to_owned),
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
        tx.write_audit(entries).await?;
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
        let caller = issuer.actor.caller().map(|caller| caller.key_id);
        let ids: Vec<_> = targets.iter().copied().chain(caller).collect();
        let locked = if ids.is_empty() { Vec::new() } else { tx.lock(&ids).await? };
        let held = locked.iter().find(|record| Some(record.id) == caller);
        let held =
            held.map(|held| KeyRecord { scopes: issuer.effective(&held.scopes), ..held.clone() });
        let target = locked.iter().find(|record| Some(record.id) == attempt.key_id);
        attempt.consumer_id = target.map(|record| record.consumer_id.clone());
        let locked = locked.into_iter().filter(|record| targets.contains(&record.id)).collect();
        let (entries, changed, exceeded) = (Vec::new(), Vec::new(), Vec::new());
        Ok((Self { tx, issuer, held, entries, changed, attempt, exceeded }, locked))
    }

    pub(super) fn policy(&self) -> &IssuePolicy {
        self.issuer.issue_policy()
    }

    /// Why the policy is overridden, by an operator.
    pub(super) fn policy_override(&self) -> Option<&str> {
        self.issuer.policy_override_reason()
    }

    /// Claims the idempotency key; an error if it was used before.
    pub(super) async fn claim(
        &mut self,
        claim: Option<IdempotencyRecord>,
    ) -> Result<(), ManageError> {
        let Some(claim) = claim else { return Ok(()) };
        match self.tx.claim_idempotency_key(&claim).await? {
            None => Ok(()),
            Some(earlier) if earlier.fingerprint == claim.fingerprint => {
                Err(ManageError::repeated(earlier.key_id))
            }
            Some(_) => Err(ManageError::idempotency_key_reused()),
        }
    }

    /// Queues an audit entry and a cache invalidation for the change from `before` to `after`.
    pub(super) fn note(
        &mut self,
        action: KeyAction,
        before: Option<&KeyRecord>,
        after: &KeyRecord,
        reason: Option<&str>,
    ) {
        let of_key = self.exceeded.iter().filter(|(id, _)| *id == after.id);
        let exceeded: Vec<_> = of_key.map(|(_, bound)| &**bound).collect();
        let overridden = self.policy_override().filter(|_| !exceeded.is_empty());
        let overridden = overridden.map(|reason| audit::policy_override(reason, &exceeded));
        let entry = AuditEntry {
            key_id: Some(after.id),
            consumer_id: Some(after.consumer_id.clone()),
            origin: self.issuer.actor.origin.clone(),
            reason: reason.map(str::to_owned),
            changes: audit::changes(before, after, overridden),
            ..AuditEntry::new(action, self.issuer.actor.name.clone())
        };
        self.entries.push(entry);
        self.changed.push(after.clone());
    }

    /// Queues an audit entry for the change of a plan. Limits are JSON, `None` without a plan.
    pub(super) fn note_plan(
        &mut self,
        action: KeyAction,
        name: &str,
        before: Option<&str>,
        after: Option<&str>,
    ) {
        let entry = AuditEntry {
            origin: self.issuer.actor.origin.clone(),
            changes: Some(audit::plan_changes(name, before, after)),
            ..AuditEntry::new(action, self.issuer.actor.name.clone())
        };
        self.entries.push(entry);
    }

    /// Queues an audit entry that is not about a change.
    pub(super) fn note_entry(&mut self, entry: AuditEntry) {
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
        let committed = match self.tx.write_audit(&self.entries).await {
            Ok(()) => self.tx.commit().await.map_err(ManageError::from),
            // An audit entry that fails is not the fault of a key, so no key is skipped for it.
            Err(error) => Err(ManageError::failed(error)),
        };
        if let (Err(_), Some(overdue)) = (&committed, overdue) {
            self.issuer.denials.restore(overdue);
        }
        match committed {
            Ok(()) => self.issuer.tell(&self.changed),
            // The connection may have been lost after the commit took effect.
            Err(_) => self.issuer.invalidate(&self.changed),
        }
        committed
    }

    /// Rolls back, and writes a denial to the audit.
    async fn abandon(self, error: ManageError) -> Result<ManageError, ManageError> {
        let Self { tx, issuer, attempt, .. } = self;
        drop(tx);
        issuer.deny(error, attempt).await
    }
}
