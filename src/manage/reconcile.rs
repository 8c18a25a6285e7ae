//! Revocations that a database has lost, as by being restored from a backup.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value};

use super::{
    KeyIssuer, ManageError, audit,
    batch::Outcome,
    change::{Attempt, Change},
    text,
};
use crate::{
    rate_limit::RateLimits,
    record::{KeyAction, KeyEvent, KeyId, KeyRecord, MAX_TEXT, rfc3339},
};

/// Keys are reconciled so many at a time: each batch is a transaction, which others wait for.
const BATCH: usize = 500;

/// What decides what a key may do, as the audit calls it.
const RIGHTS: [&str; 7] =
    ["scopes", "rate_limits", "plan", "metadata", "is_active", "not_before", "expires_at"];

/// What an exported audit says of each key, for [`KeyIssuer::reconcile`].
///
/// Events may be added in any order, and more than once. It holds one entry for each key, not the
/// events.
#[derive(Clone, Debug, Default)]
pub struct AuditHistory {
    keys: BTreeMap<KeyId, Past>,
}

/// What the audit says of one key.
#[derive(Clone, Debug, Default)]
struct Past {
    /// When it was first revoked, and why.
    revoked: Option<(SystemTime, Option<String>)>,
    created: Option<SystemTime>,
    /// When it was last deleted or pruned, and which of the two it was.
    removed: Option<(SystemTime, KeyAction)>,
    /// The last value of each of the [`RIGHTS`] that was changed.
    rights: BTreeMap<&'static str, (SystemTime, u64, Value)>,
}

impl AuditHistory {
    /// A history without events.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an event. Denied attempts, and events of plans, say nothing of a key and are ignored.
    pub fn add(&mut self, event: &KeyEvent) {
        let Some(id) = event.entry.key_id else { return };
        if event.entry.action == KeyAction::Denied {
            return;
        }
        self.keys.entry(id).or_default().add(event);
    }

    /// How many keys it knows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether it knows no key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

impl Past {
    fn add(&mut self, event: &KeyEvent) {
        let (at, entry) = (event.at, &event.entry);
        let changes =
            entry.changes.as_deref().and_then(|changes| serde_json::from_str(changes).ok());
        let changes: Map<String, Value> = changes.unwrap_or_default();
        let to = |field: &str| changes.get(field).and_then(|change| change.get("to"));
        let is_revoked = entry.action == KeyAction::Revoked
            || to("revoked_at").is_some_and(|revoked_at| !revoked_at.is_null());
        if is_revoked && self.revoked.as_ref().is_none_or(|(earlier, _)| at < *earlier) {
            self.revoked = Some((at, entry.reason.clone()));
        }
        match entry.action {
            KeyAction::Issued | KeyAction::Imported => self.created = self.created.max(Some(at)),
            KeyAction::Pruned | KeyAction::Deleted
                if self.removed.is_none_or(|(earlier, _)| earlier < at) =>
            {
                self.removed = Some((at, entry.action));
            }
            _ => {}
        }
        for field in RIGHTS {
            let Some(value) = to(field) else { continue };
            let last = self.rights.get(field).map(|(at, id, _)| (*at, *id));
            if last.is_none_or(|last| last < (at, event.id)) {
                self.rights.insert(field, (at, event.id, value.clone()));
            }
        }
    }

    /// How it was removed, unless it was made again since.
    fn removal(&self) -> Option<KeyAction> {
        let (at, how) = self.removed?;
        self.created.is_none_or(|created| created <= at).then_some(how)
    }

    /// What to do with the key, whose record is `now`.
    fn verdict(&self, now: Option<&KeyRecord>) -> Option<ReconcileOutcome> {
        let Some(now) = now else {
            return self.removal().is_none().then_some(ReconcileOutcome::Missing);
        };
        match (&self.revoked, now.revoked_at) {
            (Some(_), None) => return Some(ReconcileOutcome::Revoked),
            (Some(_), Some(_)) => return Some(ReconcileOutcome::AlreadyRevoked),
            (None, Some(_)) => return None,
            (None, None) => {}
        }
        if self.removal() == Some(KeyAction::Deleted) {
            return Some(ReconcileOutcome::Deleted);
        }
        let now: BTreeMap<_, _> = audit::fields(now).into_iter().collect();
        let differs = |field: &&'static str| {
            let last = self.rights.get(field).map(|(_, _, value)| value);
            last.zip(now.get(field)).is_some_and(|(last, now)| !is_same(field, last, now))
        };
        let fields: Vec<_> = RIGHTS.iter().copied().filter(differs).collect();
        (!fields.is_empty()).then_some(ReconcileOutcome::Differs(fields))
    }

    /// Why the key is revoked again, in the bounds of a reason.
    fn reason(&self) -> String {
        let Some((at, why)) = &self.revoked else { return String::new() };
        let mut reason = format!("revoked before, at {}", rfc3339(*at));
        // An export may have been edited.
        if let Some(why) = why.as_deref().filter(|why| text::is_plain(why)) {
            reason = format!("{reason}: {why}");
        }
        reason.truncate(reason.floor_char_boundary(MAX_TEXT));
        reason
    }
}

/// Whether two values mean the same: triggers write times to the millisecond, and limits as they were
/// stored.
fn is_same(field: &str, left: &Value, right: &Value) -> bool {
    if left == right {
        return true;
    }
    match field {
        "not_before" | "expires_at" => {
            let time = |value: &Value| value.as_str()?.parse::<Timestamp>().ok();
            let both = time(left).zip(time(right));
            both.is_some_and(|(left, right)| {
                left.duration_until(right).abs() <= SignedDuration::from_millis(1)
            })
        }
        "rate_limits" => {
            let limits = |value: &Value| serde_json::from_value::<RateLimits>(value.clone()).ok();
            limits(left).zip(limits(right)).is_some_and(|(left, right)| left == right)
        }
        _ => false,
    }
}

/// What became of a key that was reconciled.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReconcileOutcome {
    /// The audit says that it was revoked, and it was not any more: it was revoked again.
    Revoked,
    /// The audit says that it was revoked, and it is.
    AlreadyRevoked,
    /// The audit says that it was revoked. It could not be revoked again, as a rule of the database
    /// refuses it or its row cannot be read. It is logged.
    Skipped,
    /// The audit says that it was deleted in SQL, and it is there. It was left as it is: revoke it
    /// unless the deletion was part of restoring the database.
    Deleted,
    /// These fields differ from what the audit says they were changed to, such as `scopes`. The key was
    /// left as it is: look at it.
    Differs(Vec<&'static str>),
    /// The audit says that it was made, and the database does not have it. Nothing can be done: it is
    /// refused as unknown.
    Missing,
}

impl ReconcileOutcome {
    /// Its name, such as `already_revoked`.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Revoked => "revoked",
            Self::AlreadyRevoked => "already_revoked",
            Self::Skipped => "skipped",
            Self::Deleted => "deleted",
            Self::Differs(_) => "differs",
            Self::Missing => "missing",
        }
    }
}

/// A key that an audit was compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReconciledKey {
    /// Which.
    pub id: KeyId,
    /// What became of it.
    pub outcome: ReconcileOutcome,
}

impl KeyIssuer {
    /// Revokes again what `history` says was revoked and is no longer, for a database that was restored
    /// to an earlier time. Returns each key that `history` says was revoked, and each that differs from
    /// what it says, ordered by id. Keys that `history` does not know are left out.
    ///
    /// It deletes nothing, and changes nothing but revocations. A key that is revoked again has the time
    /// of now, and the earlier time and reason as its reason. It may be called again, with the same
    /// history or another one: what is revoked stays as it is.
    ///
    /// Keys are taken 500 at a time, each batch in a transaction. Where it fails half-way, those that
    /// were revoked stay so.
    ///
    /// # Errors
    ///
    /// [`Denied`](super::ManageErrorKind::Denied) to a [caller](super::Actor::caller), or when the
    /// store fails.
    pub async fn reconcile(
        &self,
        history: &AuditHistory,
    ) -> Result<Vec<ReconciledKey>, ManageError> {
        self.reconcile_all(history, true).await
    }

    /// What [`reconcile`](Self::reconcile) would return and revoke, without revoking.
    ///
    /// # Errors
    ///
    /// As [`reconcile`](Self::reconcile).
    pub async fn compare(&self, history: &AuditHistory) -> Result<Vec<ReconciledKey>, ManageError> {
        self.reconcile_all(history, false).await
    }

    async fn reconcile_all(
        &self,
        history: &AuditHistory,
        revokes: bool,
    ) -> Result<Vec<ReconciledKey>, ManageError> {
        if self.actor.caller.is_some() {
            let attempt = Attempt::to("reconcile");
            return Err(self.deny(ManageError::operators_only(), attempt).await?);
        }
        let mut all = Vec::new();
        let mut keys = history.keys.iter();
        loop {
            let batch: BTreeMap<_, _> =
                keys.by_ref().take(BATCH).map(|(id, past)| (*id, past.clone())).collect();
            if batch.is_empty() {
                return Ok(all);
            }
            all.extend(self.detached(self.clone().reconcile_batch(batch, revokes)).await?);
        }
    }

    async fn reconcile_batch(
        self,
        batch: BTreeMap<KeyId, Past>,
        revokes: bool,
    ) -> Result<Vec<ReconciledKey>, ManageError> {
        let (ids, batch) = (batch.keys().copied().collect(), Arc::new(batch));
        let reconciled = Arc::new(Mutex::new(Vec::new()));
        let part = |ids| {
            let (issuer, batch) = (self.clone(), Arc::clone(&batch));
            let reconciled = Arc::clone(&reconciled);
            async move {
                let done = issuer.reconcile_these(ids, batch, revokes).await?;
                let count = done.len() as u64;
                reconciled.lock().unwrap_or_else(PoisonError::into_inner).extend(done);
                Ok(count)
            }
        };
        let Outcome { skipped, .. } = Self::each(ids, part).await?;
        let mut reconciled = reconciled.lock().unwrap_or_else(PoisonError::into_inner);
        let mut reconciled = std::mem::take(&mut *reconciled);
        let is_revoked = |id: &KeyId| batch.get(id).is_some_and(|past| past.revoked.is_some());
        let skipped = skipped.into_iter().filter(is_revoked);
        reconciled
            .extend(skipped.map(|id| ReconciledKey { id, outcome: ReconcileOutcome::Skipped }));
        reconciled.sort_unstable_by_key(|key| key.id);
        Ok(reconciled)
    }

    async fn reconcile_these(
        self,
        ids: Vec<KeyId>,
        batch: Arc<BTreeMap<KeyId, Past>>,
        revokes: bool,
    ) -> Result<Vec<ReconciledKey>, ManageError> {
        self.change("reconcile", ids.clone(), async move |change, locked| {
            let mut reconciled = Vec::new();
            for id in ids {
                let (Some(past), now) = (batch.get(&id), locked.iter().find(|now| now.id == id))
                else {
                    continue;
                };
                let Some(outcome) = past.verdict(now) else { continue };
                if let (ReconcileOutcome::Revoked, true, Some(now)) = (&outcome, revokes, now) {
                    change.revoke_again(now, &past.reason()).await?;
                }
                reconciled.push(ReconciledKey { id, outcome });
            }
            Ok(reconciled)
        })
        .await
    }
}

impl Change {
    /// Revokes a key that is locked.
    async fn revoke_again(&mut self, before: &KeyRecord, reason: &str) -> Result<(), ManageError> {
        for after in self.tx.revoke(&[before.id], Some(reason)).await? {
            self.note(KeyAction::Revoked, Some(before), &after, Some(reason));
        }
        Ok(())
    }
}
