use serde_json::Value;

use super::{Expiry, KeyIssuer, ManageError, metadata_patch::merge, places, text};
use crate::{
    rate_limit::{PlanName, RateLimits},
    record::{KeyAction, KeyId, KeyRecord, Metadata, Networks, Scopes, Tags, WebOrigins},
};

/// Changes to a key. Properties that are not set stay the same.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct KeyUpdate {
    versions: Option<Vec<u64>>,
    name: Option<Option<String>>,
    scopes: Option<Scopes>,
    rate_limits: Option<Option<RateLimits>>,
    plan: Option<Option<String>>,
    metadata: Option<Metadata>,
    metadata_patch: Option<Metadata>,
    networks: Option<Networks>,
    tags: Option<Tags>,
    origins: Option<WebOrigins>,
    expiry: Option<Expiry>,
    is_active: Option<bool>,
    reason: Option<String>,
}

impl KeyUpdate {
    /// No change.
    pub fn new() -> Self {
        Self::default()
    }

    /// Applies only if the key still has this [version](KeyRecord::version), to prevent lost
    /// updates. Default: any version.
    pub fn if_version(self, version: u64) -> Self {
        self.if_version_in([version])
    }

    /// Applies only if the key has one of these [versions](KeyRecord::version); never if there are
    /// none.
    pub fn if_version_in(self, versions: impl IntoIterator<Item = u64>) -> Self {
        Self { versions: Some(versions.into_iter().collect()), ..self }
    }

    /// A name for its owner to recognize it by; `None` removes it.
    pub fn name(self, name: Option<String>) -> Self {
        Self { name: Some(name), ..self }
    }

    /// The scopes of the key.
    pub fn scopes(self, scopes: impl Into<Scopes>) -> Self {
        Self { scopes: Some(scopes.into()), ..self }
    }

    /// Its own quotas, in addition to those of its plan. With `None`, only its plan applies, or the
    /// authenticator's default.
    pub fn rate_limits(self, limits: Option<RateLimits>) -> Self {
        Self { rate_limits: Some(limits), ..self }
    }

    /// The name of its plan; `None` removes the key from its plan.
    pub fn plan(self, name: Option<String>) -> Self {
        Self { plan: Some(name), ..self }
    }

    /// Data of the application; replaces all metadata.
    pub fn metadata(self, metadata: Metadata) -> Self {
        Self { metadata: Some(metadata), metadata_patch: None, ..self }
    }

    /// Changes the metadata by a JSON merge patch
    /// ([RFC 7396](https://www.rfc-editor.org/rfc/rfc7396)): members are replaced or added, `null`
    /// removes them. It is applied to the current metadata in the transaction of the change.
    pub fn merge_metadata(self, patch: Metadata) -> Self {
        Self { metadata_patch: Some(patch), metadata: None, ..self }
    }

    /// The networks that it works from; without any, it works from anywhere.
    pub fn networks(self, networks: Networks) -> Self {
        Self { networks: Some(networks), ..self }
    }

    /// Words by which people and lists find the key; replaces all tags.
    pub fn tags(self, tags: Tags) -> Self {
        Self { tags: Some(tags), ..self }
    }

    /// The web origins that a publishable key works for: at least one. A secret key has none.
    pub fn origins(self, origins: WebOrigins) -> Self {
        Self { origins: Some(origins), ..self }
    }

    /// When it stops working. The expiry of a key that was [rotated](KeyIssuer::rotate) can only be
    /// moved earlier.
    pub fn expiry(self, expiry: Expiry) -> Self {
        Self { expiry: Some(expiry), ..self }
    }

    /// Whether the key is active: an inactive key is rejected until it is activated again.
    pub fn is_active(self, is_active: bool) -> Self {
        Self { is_active: Some(is_active), ..self }
    }

    /// The reason for the audit.
    pub fn reason(self, reason: impl Into<String>) -> Self {
        Self { reason: Some(reason.into()), ..self }
    }

    /// The record with all requested changes except metadata. Checks the request itself, but not
    /// yet the state of the key.
    fn apply(&self, before: &KeyRecord) -> Result<KeyRecord, ManageError> {
        let mut after = before.clone();
        if let Some(name) = &self.name {
            after.name.clone_from(name);
        }
        if let Some(scopes) = &self.scopes {
            text::check_scopes(scopes)?;
            after.scopes = scopes.clone();
        }
        if let Some(limits) = &self.rate_limits {
            text::check_quotas(limits.as_ref())?;
            after.rate_limits.clone_from(limits);
        }
        if let Some(plan) = self.plan.as_ref().filter(|plan| **plan != before.plan) {
            after.plan.clone_from(plan);
            // The store reads the limits of the new plan with the update.
            after.plan_limits = None;
        }
        if let Some(networks) = &self.networks {
            after.networks = networks.clone();
        }
        if let Some(tags) = &self.tags {
            after.tags = tags.clone();
        }
        if let Some(origins) = &self.origins {
            after.origins = origins.clone();
        }
        if let Some(is_active) = self.is_active {
            after.is_active = is_active;
        }
        if let Some(expiry) = self.expiry {
            after.expires_at = expiry.resolve_at(before.read_at)?;
        }
        Ok(after)
    }

    /// Checks the version, and whether the state of the key allows the change to `after`.
    fn check_state(&self, before: &KeyRecord, after: &KeyRecord) -> Result<(), ManageError> {
        if self.versions.as_ref().is_some_and(|versions| !versions.contains(&before.version)) {
            let detail = "the key was changed by another request: read it and try again";
            return Err(ManageError::outdated(detail));
        }
        if before.revoked_at.is_some() {
            return Err(ManageError::conflict("the key is revoked and cannot be changed"));
        }
        places::check_kind(after)?;
        let lasts_longer = match (before.expires_at, after.expires_at) {
            (Some(before), Some(after)) => after > before,
            (before, after) => before.is_some() && after.is_none(),
        };
        if before.rotated_at.is_some() && lasts_longer {
            let detail = "the key was rotated: its expiry can only be moved earlier";
            return Err(ManageError::invalid("expires_at", detail));
        }
        Ok(())
    }

    /// The metadata after the change.
    fn merged(&self, before: &Metadata) -> Result<Metadata, ManageError> {
        if let Some(metadata) = &self.metadata {
            return Ok(metadata.clone());
        }
        let Some(patch) = &self.metadata_patch else { return Ok(before.clone()) };
        let invalid = |error: crate::record::InvalidMetadata| {
            ManageError::invalid("metadata", error.to_string())
        };
        let mut merged: Value = before.parse().map_err(invalid)?;
        merge(&mut merged, patch.parse().map_err(invalid)?);
        Metadata::new(&merged).map_err(invalid)
    }
}

impl KeyIssuer {
    /// Changes a key, and returns the new record.
    ///
    /// A [caller](super::Actor::key) can take anything away, but can only give a key what its
    /// own key holds. Keys outside its own rotation chain need a
    /// [scope](super::Actor::other_keys_scope), and so does metadata if that scope is a separate
    /// one. A [member](super::Actor::member) can only give what its [grant](super::Grant) allows.
    ///
    /// # Errors
    ///
    /// [`NotFound`](super::ManageErrorKind::NotFound) when the key does not exist,
    /// [`Conflict`](super::ManageErrorKind::Conflict) when it is revoked,
    /// [`Outdated`](super::ManageErrorKind::Outdated) when it has another version,
    /// [`ExceedsPolicy`](super::ManageErrorKind::ExceedsPolicy) when it would exceed the
    /// [policy](Self::policy), or when the
    /// change is invalid or denied, or the store fails.
    pub async fn update(&self, id: KeyId, update: KeyUpdate) -> Result<KeyRecord, ManageError> {
        self.detached(self.clone().update_now(id, update)).await
    }

    async fn update_now(self, id: KeyId, update: KeyUpdate) -> Result<KeyRecord, ManageError> {
        text::check_some("reason", update.reason.as_deref())?;
        if let Some(Some(plan)) = &update.plan {
            PlanName::new(plan)?;
        }
        update.name.iter().flatten().try_for_each(|name| text::check("name", name))?;
        // Permission is checked first, so that a denial reveals nothing about the state of the key.
        self.change("update", vec![id], async move |change, locked| {
            let before = change.target(locked)?;
            let mut after = update.apply(&before)?;
            change.check_scopes(Some(&before), &after)?;
            change.check_change(&before, &after)?;
            update.check_state(&before, &after)?;
            change.check_policy_change(&before, &after, update.reason.as_deref())?;
            after.metadata = update.merged(&before.metadata)?;
            change.check_metadata(&before.metadata, &after.metadata)?;
            if after == before {
                return Ok(before);
            }
            let after = change.tx.update(&after).await?;
            change.check_added_key(&before, &after).await?;
            if (&after.plan, &after.rate_limits) != (&before.plan, &before.rate_limits) {
                text::check_quotas_with_plan(&after)?;
            }
            change.note(KeyAction::Updated, Some(&before), &after, update.reason.as_deref());
            Ok(after)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::{key::KeyHash, record::KeyId};

    #[test]
    fn a_rotated_key_lasts_no_longer_and_may_last_as_long() {
        let now = SystemTime::UNIX_EPOCH;
        let (id, hash) = (KeyId::from_bytes([1; 16]), KeyHash::from_bytes([2; 32]));
        let mut rotated = KeyRecord::new(id, hash, "acme", now);
        rotated.rotated_at = Some(now);
        let until = |days: Option<u64>| {
            let end = days.map(|days| now + Duration::from_secs(days * 86_400));
            KeyRecord { expires_at: end, ..rotated.clone() }
        };
        let is_allowed = |before: Option<u64>, after: Option<u64>| {
            KeyUpdate::new().check_state(&until(before), &until(after)).is_ok()
        };
        for (before, after) in
            [(Some(2), Some(2)), (Some(2), Some(1)), (None, Some(1)), (None, None)]
        {
            assert!(is_allowed(before, after), "{before:?} {after:?}");
        }
        for (before, after) in [(Some(2), Some(3)), (Some(2), None)] {
            assert!(!is_allowed(before, after), "{before:?} {after:?}");
        }
    }
}
