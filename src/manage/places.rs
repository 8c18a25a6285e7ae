//! Where a key works from: its networks and, for a publishable key, its web origins.

use super::ManageError;
use crate::record::{KeyKind, KeyRecord};

/// Whether `key` works only from where `bound` does. A publishable key cannot make a secret one; a
/// secret key may make publishable keys for any origins, because it works without any.
pub(super) fn check_within(bound: &KeyRecord, key: &KeyRecord) -> Result<(), ManageError> {
    if !key.networks.is_within(&bound.networks) {
        let detail = "a key must not work from more networks than the calling key";
        return Err(ManageError::denied("networks", detail));
    }
    if bound.kind == KeyKind::Secret {
        return Ok(());
    }
    if key.kind != bound.kind {
        let detail = "a publishable key cannot manage secret keys";
        return Err(ManageError::denied("kind", detail));
    }
    if !key.origins.is_within(&bound.origins) {
        let detail = "a key must not work for more origins than the calling key";
        return Err(ManageError::denied("origins", detail));
    }
    Ok(())
}

/// Whether a key of this kind may have these origins.
pub(super) fn check_origins(key: &KeyRecord) -> Result<(), ManageError> {
    let detail = match (key.kind, key.origins.is_empty()) {
        (KeyKind::Secret, false) => "only a publishable key has origins",
        (KeyKind::Publishable, true) => "a publishable key must have at least one origin",
        _ => return Ok(()),
    };
    Err(ManageError::invalid("origins", detail))
}
