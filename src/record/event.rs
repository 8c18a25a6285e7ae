use std::{error::Error, fmt, str::FromStr, time::SystemTime};

use super::KeyId;

/// An audit event: an action on a key or a plan, or a denied attempt.
///
/// Stores write it in the same transaction as the change, number it, and take its time from their
/// own clock. Databases refuse to change or delete it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyEvent {
    /// Increasing, with gaps.
    pub id: u64,
    /// When it happened, by the store's clock.
    pub at: SystemTime,
    /// What happened.
    pub entry: AuditEntry,
}

impl KeyEvent {
    /// An event as read by a store.
    #[must_use]
    pub const fn new(id: u64, at: SystemTime, entry: AuditEntry) -> Self {
        Self { id, at, entry }
    }
}

/// The content of an audit event: who did what to which key, from where and why.
///
/// It never holds a key or a key's hash.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuditEntry {
    /// The action.
    pub action: KeyAction,
    /// The key concerned. A [denied](KeyAction::Denied) attempt is filed under the key that made
    /// it; its target is the `target` in [`changes`](Self::changes). `None` for plans, and for
    /// denied attempts of members.
    pub key_id: Option<KeyId>,
    /// The consumer of that key; for a denied attempt of a member its consumer, if it has only one.
    pub consumer_id: Option<String>,
    /// Who did it: `key:` and a key id, `member:` and the name of a signed-in member, `sql:` and a database user for a change made in SQL (`sql`
    /// alone in SQLite), or the application's name for an operator.
    pub actor: String,
    /// Where the request came from: an address or a host.
    pub origin: Option<String>,
    /// The stated reason.
    pub reason: Option<String>,
    /// What changed: a JSON object of fields, each with its values `from` and `to`. For a denied
    /// attempt, what was attempted and, if the reader may see it, its `target`; for a leaked key,
    /// where it was found; for a canary key, what else is known of the client.
    pub changes: Option<String>,
}

impl AuditEntry {
    /// `actor` did `action`.
    #[must_use]
    pub fn new(action: KeyAction, actor: impl Into<String>) -> Self {
        Self {
            action,
            key_id: None,
            consumer_id: None,
            actor: actor.into(),
            origin: None,
            reason: None,
            changes: None,
        }
    }
}

/// An action on a key, a plan or a webhook endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KeyAction {
    /// A key was issued.
    Issued,
    /// A key's hash was imported.
    Imported,
    /// A key that was imported with a [legacy hash](crate::key::LegacyHash) was used for the first
    /// time, and its hash was replaced by a [`KeyHash`](crate::key::KeyHash).
    Rehashed,
    /// A key was updated.
    Updated,
    /// A key was replaced by another key.
    Rotated,
    /// A key was revoked.
    Revoked,
    /// A key was deleted by pruning, some time after it had ended.
    Pruned,
    /// A key was found where others can read it. What came of that follows in the same transaction.
    Leaked,
    /// A [canary](super::KeyKind::Canary) key was presented.
    CanaryUsed,
    /// A key attempted something it has no permission for.
    Denied,
    /// A key was deleted in SQL: by hand, by a cascade or by `truncate`.
    Deleted,
    /// A plan was created.
    PlanCreated,
    /// A plan's limits were changed.
    PlanUpdated,
    /// A plan was removed.
    PlanRemoved,
    /// A key was used for the first time.
    FirstUse,
    /// A key expires within 30 days, 7 days or a day.
    Expiring,
    /// A rotated key, which another key has replaced, was used in its last 24 hours.
    RetiredUsed,
    /// A key was not used for 90 days.
    Unused,
    /// A webhook endpoint was added.
    WebhookAdded,
    /// A webhook endpoint was changed: by an operator, or because its deliveries failed.
    WebhookUpdated,
    /// A webhook endpoint was removed.
    WebhookRemoved,
}

impl KeyAction {
    pub(crate) const ALL: [Self; 21] = [
        Self::Issued,
        Self::Imported,
        Self::Rehashed,
        Self::Updated,
        Self::Rotated,
        Self::Revoked,
        Self::Pruned,
        Self::Leaked,
        Self::CanaryUsed,
        Self::Denied,
        Self::Deleted,
        Self::PlanCreated,
        Self::PlanUpdated,
        Self::PlanRemoved,
        Self::FirstUse,
        Self::Expiring,
        Self::RetiredUsed,
        Self::Unused,
        Self::WebhookAdded,
        Self::WebhookUpdated,
        Self::WebhookRemoved,
    ];

    /// The action's name, such as `issued`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Issued => "issued",
            Self::Imported => "imported",
            Self::Rehashed => "rehashed",
            Self::Updated => "updated",
            Self::Rotated => "rotated",
            Self::Revoked => "revoked",
            Self::Pruned => "pruned",
            Self::Leaked => "leaked",
            Self::CanaryUsed => "canary_used",
            Self::Denied => "denied",
            Self::Deleted => "deleted",
            Self::PlanCreated => "plan_created",
            Self::PlanUpdated => "plan_updated",
            Self::PlanRemoved => "plan_removed",
            Self::FirstUse => "first_use",
            Self::Expiring => "expiring",
            Self::RetiredUsed => "retired_used",
            Self::Unused => "unused",
            Self::WebhookAdded => "webhook_added",
            Self::WebhookUpdated => "webhook_updated",
            Self::WebhookRemoved => "webhook_removed",
        }
    }
}

impl fmt::Display for KeyAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for KeyAction {
    type Err = InvalidAction;

    fn from_str(name: &str) -> Result<Self, InvalidAction> {
        Self::ALL.into_iter().find(|action| action.as_str() == name).ok_or(InvalidAction)
    }
}

/// The text does not name a [`KeyAction`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InvalidAction;

impl fmt::Display for InvalidAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("unknown audit action")
    }
}

impl Error for InvalidAction {}
