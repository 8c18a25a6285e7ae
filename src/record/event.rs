use std::{error::Error, fmt, str::FromStr, time::SystemTime};

use super::KeyId;

/// A line of the audit: what was done to a key, or was tried.
///
/// Stores write it in the transaction of the change, number it, and take its time from their own
/// clock. Databases refuse to change or delete it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyEvent {
    /// Counts up, with gaps.
    pub id: u64,
    /// When, by the store's clock.
    pub at: SystemTime,
    /// What.
    pub entry: AuditEntry,
}

impl KeyEvent {
    /// The event as a store read it.
    #[must_use]
    pub const fn new(id: u64, at: SystemTime, entry: AuditEntry) -> Self {
        Self { id, at, entry }
    }
}

/// What is written down of a change: who, what, to which key, from where and why.
///
/// It never holds a key, nor the hash of one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuditEntry {
    /// What was done.
    pub action: KeyAction,
    /// To which key. A [denied](KeyAction::Denied) attempt is filed under the key that made it;
    /// what it was aimed at is the `target` in [`changes`](Self::changes). `None` for plans.
    pub key_id: Option<KeyId>,
    /// Whose key that is.
    pub consumer_id: Option<String>,
    /// Who did it: `key:` and the id of a key, `sql:` and a user of the database for a change in SQL
    /// (in SQLite `sql`), or whatever the application calls its operators.
    pub actor: String,
    /// From where: an address, a host.
    pub origin: Option<String>,
    /// Why.
    pub reason: Option<String>,
    /// What changed: a JSON object of fields, each with its values `from` and `to`. Of a denied
    /// attempt, what was attempted and, where the reader may see it, its `target`.
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

/// What can be done to a key, or a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KeyAction {
    /// It was made.
    Issued,
    /// Its hash was brought from elsewhere.
    Imported,
    /// It was changed.
    Updated,
    /// It was replaced by another key.
    Rotated,
    /// It was revoked.
    Revoked,
    /// It was deleted, some time after it had ended.
    Pruned,
    /// A key tried what it may not.
    Denied,
    /// It was deleted in SQL: by hand, by a cascade, by `truncate`.
    Deleted,
    /// A plan was defined.
    PlanCreated,
    /// A plan was given other limits.
    PlanUpdated,
    /// A plan was removed.
    PlanRemoved,
}

impl KeyAction {
    const ALL: [Self; 11] = [
        Self::Issued,
        Self::Imported,
        Self::Updated,
        Self::Rotated,
        Self::Revoked,
        Self::Pruned,
        Self::Denied,
        Self::Deleted,
        Self::PlanCreated,
        Self::PlanUpdated,
        Self::PlanRemoved,
    ];

    /// Its name, such as `issued`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Issued => "issued",
            Self::Imported => "imported",
            Self::Updated => "updated",
            Self::Rotated => "rotated",
            Self::Revoked => "revoked",
            Self::Pruned => "pruned",
            Self::Denied => "denied",
            Self::Deleted => "deleted",
            Self::PlanCreated => "plan_created",
            Self::PlanUpdated => "plan_updated",
            Self::PlanRemoved => "plan_removed",
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

/// The text names no [`KeyAction`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InvalidAction;

impl fmt::Display for InvalidAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an action of the audit")
    }
}

impl Error for InvalidAction {}
