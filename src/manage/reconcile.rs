//! Restores revocations that a database has lost, for example by being restored from a backup.

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
};
use crate::{
    rate_limit::RateLimits,
    record::{
        KeyAction, KeyEvent, KeyId, KeyRecord, Networks, TextRule, WebOrigins, is_plain, rfc3339,
    },
};

/// Keys of a transaction. Its locks delay other changes, so batches are small.
const BATCH: usize = 500;

/// The fields that decide what a key may do, as named in the audit.
const RIGHTS: [&str; 10] = [
    "scopes",
    "rate_limits",
    "plan",
    "metadata",
    "is_active",
    "not_before",
    "expires_at",
    "networks",
    "origins",
    "kind",
];

/// What an exported audit says of each key, for [`KeyIssuer::reconcile`].
///
/// Events may be added in any order, and more than once. It holds one entry for each key, and does
/// not keep the events.
#[derive(Clone, Debug, Default)]
pub struct AuditHistory {
    keys: BTreeMap<KeyId, Past>,
}

/// What the audit says of one key.
#[derive(Clone, Debug, Default)]
struct Past {
    /// The time and the reason of its first revocation.
    revoked: Option<(SystemTime, Option<String>)>,
    created: Option<SystemTime>,
    /// The time of its last removal, and whether it was deleted or pruned.
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

    /// Adds an event. Denied attempts and events of plans are ignored.
    pub fn add(&mut self, event: &KeyEvent) {
        let Some(id) = event.entry.key_id else { return };
        if event.entry.action == KeyAction::Denied {
            return;
        }
        self.keys.entry(id).or_default().add(event);
    }

    /// The number of keys in the history.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether the history has no keys.
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

    /// How the key was removed, unless it was created again later.
    fn removal(&self) -> Option<KeyAction> {
        let (at, how) = self.removed?;
        self.created.is_none_or(|created| created <= at).then_some(how)
    }

    /// The outcome for the key, whose record is `now`; `None` if there is nothing to report.
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

    /// The reason of the new revocation, cut to the maximum length.
    fn reason(&self) -> String {
        let Some((at, why)) = &self.revoked else { return String::new() };
        let mut reason = format!("revoked before, at {}", rfc3339(*at));
        // An export may have been edited, so its text is not trusted.
        if let Some(why) = why.as_deref().filter(|why| is_plain(why)) {
            reason = format!("{reason}: {why}");
        }
        reason.truncate(reason.floor_char_boundary(TextRule::STORED.max()));
        reason
    }
}

/// Whether two values are equivalent: triggers write times to the millisecond, and limits in the
/// form in which they were stored.
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
            are_same(|value| serde_json::from_value::<RateLimits>(value).ok(), left, right)
        }
        // In the order in which they were stored.
        "networks" => are_same(|value| serde_json::from_value::<Networks>(value).ok(), left, right),
        "origins" => {
            are_same(|value| serde_json::from_value::<WebOrigins>(value).ok(), left, right)
        }
        _ => false,
    }
}

fn are_same<T: PartialEq>(read: impl Fn(Value) -> Option<T>, left: &Value, right: &Value) -> bool {
    read(left.clone()).zip(read(right.clone())).is_some_and(|(left, right)| left == right)
}

/// The outcome for a key that was reconciled.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReconcileOutcome {
    /// The audit has a revocation that the database had lost: the key was revoked again.
    Revoked,
    /// The audit has a revocation, and the key is revoked.
    AlreadyRevoked,
    /// The audit has a revocation, but the key could not be revoked again: a rule of the database
    /// refuses it, or its row cannot be read. It is logged.
    Skipped,
    /// The audit has a deletion in SQL, but the key exists. It was left unchanged: revoke it unless
    /// the deletion was part of restoring the database.
    Deleted,
    /// These fields, such as `scopes`, differ from their last values in the audit. The key was left
    /// unchanged: check it.
    Differs(Vec<&'static str>),
    /// The audit has the key, but the database does not. Nothing can be done: it is rejected as
    /// unknown.
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

/// A key that was compared with the audit.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReconciledKey {
    /// The id of the key.
    pub id: KeyId,
    /// The outcome.
    pub outcome: ReconcileOutcome,
}

impl KeyIssuer {
    /// Restores the revocations of `history` in a database that was restored to an earlier time.
    /// Returns all keys that `history` has as revoked, and all that differ from it, ordered by id.
    /// Keys that are not in `history` are ignored.
    ///
    /// It only revokes: it deletes nothing and changes nothing else. A key that is revoked again
    /// has the current time as its time of revocation, and the original time and reason in its
    /// reason. It can be repeated, with the same history or another one: revoked keys are left
    /// unchanged.
    ///
    /// Keys are processed in transactions of 500. If one fails, the keys that were revoked before
    /// stay revoked.
    ///
    /// # Errors
    ///
    /// [`Denied`](super::ManageErrorKind::Denied) to a [caller](super::Actor::key), or when the
    /// store fails.
    pub async fn reconcile(
        &self,
        history: &AuditHistory,
    ) -> Result<Vec<ReconciledKey>, ManageError> {
        self.reconcile_all(history, true).await
    }

    /// A dry run of [`reconcile`](Self::reconcile): returns the same, without revoking.
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
        if !self.actor.is_operator() {
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
    /// Revokes a locked key.
    async fn revoke_again(&mut self, before: &KeyRecord, reason: &str) -> Result<(), ManageError> {
        for after in self.tx.revoke(&[before.id], Some(reason)).await? {
            self.note(KeyAction::Revoked, Some(before), &after, Some(reason));
        }
        Ok(())
    }
}
