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
    /// To which key; `None` where there was none, as when issuing was denied.
    pub key_id: Option<KeyId>,
    /// Whose key that is.
    pub consumer_id: Option<String>,
    /// Who did it: `key:` and the id of a key, or whatever the application calls its operators.
    pub actor: String,
    /// From where: an address, a host.
    pub origin: Option<String>,
    /// Why.
    pub reason: Option<String>,
    /// What changed: a JSON object of fields, each with its values `from` and `to`.
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

/// What can be done to a key.
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
    /// Somebody tried what they may not.
    Denied,
}

impl KeyAction {
    const ALL: [Self; 7] = [
        Self::Issued,
        Self::Imported,
        Self::Updated,
        Self::Rotated,
        Self::Revoked,
        Self::Pruned,
        Self::Denied,
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
