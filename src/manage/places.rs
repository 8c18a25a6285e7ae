//! Where a key works from: its networks and, for a publishable key, its web origins.

use super::ManageError;
use crate::record::{KeyKind, KeyRecord, Networks, WebOrigins};

/// From where the keys of a [`Grant`](super::Grant) may work.
#[derive(Clone, Debug, Default)]
pub(super) struct Places {
    pub(super) networks: Networks,
    kind: KeyKind,
    origins: WebOrigins,
}

impl Places {
    /// Where the key works from.
    pub(super) fn of(key: &KeyRecord) -> Self {
        Self { networks: key.networks.clone(), kind: key.kind, origins: key.origins.clone() }
    }

    /// Whether `key` works only from here. A publishable key cannot make a secret one; a secret key
    /// may make publishable keys for any origins, because it works without any.
    pub(super) fn check(&self, key: &KeyRecord, whose: &str) -> Result<(), ManageError> {
        if !key.networks.is_within(&self.networks) {
            let detail = format!("a key must not work from more networks than {whose}");
            return Err(ManageError::denied("networks", detail));
        }
        if self.kind == KeyKind::Secret {
            return Ok(());
        }
        if key.kind != self.kind {
            let detail = "a publishable key cannot manage secret keys";
            return Err(ManageError::denied("kind", detail));
        }
        if !key.origins.is_within(&self.origins) {
            let detail = format!("a key must not work for more origins than {whose}");
            return Err(ManageError::denied("origins", detail));
        }
        Ok(())
    }
}

/// Whether a key of this kind may have these origins, networks and limits.
pub(super) fn check_kind(key: &KeyRecord) -> Result<(), ManageError> {
    let (field, detail) = match (key.kind, key.origins.is_empty()) {
        (KeyKind::Secret | KeyKind::Canary, false) => {
            ("origins", "only a publishable key has origins")
        }
        (KeyKind::Publishable, true) => {
            ("origins", "a publishable key must have at least one origin")
        }
        (KeyKind::Canary, true) if !key.networks.is_empty() => {
            ("networks", "a canary key is always refused: leave its networks out")
        }
        (KeyKind::Canary, true) if key.plan.is_some() => {
            ("plan", "a canary key is always refused: leave its plan out")
        }
        (KeyKind::Canary, true) if key.rate_limits.is_some() => {
            ("rate_limits", "a canary key is always refused: leave its quotas out")
        }
        _ => return Ok(()),
    };
    Err(ManageError::invalid(field, detail))
}
