use super::{Expiry, KeyIssuer, ManageError, text};
use crate::{
    rate_limit::RateLimits,
    record::{KeyAction, KeyId, KeyRecord, Metadata, Scopes},
};

/// What shall be different of a key. What is not said stays.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct KeyUpdate {
    version: Option<u64>,
    name: Option<Option<String>>,
    scopes: Option<Scopes>,
    rate_limits: Option<Option<RateLimits>>,
    plan: Option<Option<String>>,
    metadata: Option<Metadata>,
    expiry: Option<Expiry>,
    is_active: Option<bool>,
    reason: Option<String>,
}

impl KeyUpdate {
    /// No change.
    pub fn new() -> Self {
        Self::default()
    }

    /// Only if the key still has this [version](KeyRecord::version), so that nobody overwrites what
    /// they have not seen. Default: whatever version it has.
    pub fn if_version(self, version: u64) -> Self {
        Self { version: Some(version), ..self }
    }

    /// What its owner calls it; `None` takes the name away.
    pub fn name(self, name: Option<String>) -> Self {
        Self { name: Some(name), ..self }
    }

    /// What it may do.
    pub fn scopes(self, scopes: Scopes) -> Self {
        Self { scopes: Some(scopes), ..self }
    }

    /// How often it may be used, beside what its plan says; `None` is its plan alone, or the
    /// authenticator's default.
    pub fn rate_limits(self, limits: Option<RateLimits>) -> Self {
        Self { rate_limits: Some(limits), ..self }
    }

    /// The plan it is on, by name; `None` takes it off its plan.
    pub fn plan(self, name: Option<String>) -> Self {
        Self { plan: Some(name), ..self }
    }

    /// What the application wants to know of it.
    pub fn metadata(self, metadata: Metadata) -> Self {
        Self { metadata: Some(metadata), ..self }
    }

    /// When it stops working. That of a key that was [rotated](KeyIssuer::rotate) can only come
    /// earlier.
    pub fn expiry(self, expiry: Expiry) -> Self {
        Self { expiry: Some(expiry), ..self }
    }

    /// Whether it is switched on.
    pub fn is_active(self, is_active: bool) -> Self {
        Self { is_active: Some(is_active), ..self }
    }

    /// Why, for the audit.
    pub fn reason(self, reason: impl Into<String>) -> Self {
        Self { reason: Some(reason.into()), ..self }
    }

    fn apply(&self, before: &KeyRecord) -> Result<KeyRecord, ManageError> {
        if self.version.is_some_and(|version| version != before.version) {
            let detail = "the key was changed by somebody else: look at it again";
            return Err(ManageError::outdated(detail));
        }
        if before.revoked_at.is_some() {
            return Err(ManageError::conflict("the key is revoked, and stays as it is"));
        }
        let mut after = before.clone();
        if let Some(name) = &self.name {
            text::check_some("name", name.as_deref())?;
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
            // It is read when the change is made.
            after.plan_limits = None;
        }
        if let Some(metadata) = &self.metadata {
            after.metadata = metadata.clone();
        }
        if let Some(is_active) = self.is_active {
            after.is_active = is_active;
        }
        if let Some(expiry) = self.expiry {
            after.expires_at = expiry.reckon(before.read_at)?;
            let lasts_longer = match (before.expires_at, after.expires_at) {
                (Some(before), Some(after)) => after > before,
                (before, after) => before.is_some() && after.is_none(),
            };
            if before.rotated_at.is_some() && lasts_longer {
                let detail = "the key was rotated, and can only be made to expire earlier";
                return Err(ManageError::invalid("expires_at", detail));
            }
        }
        Ok(after)
    }
}

impl KeyIssuer {
    /// Changes a key, and returns it as it is now.
    ///
    /// A [caller](super::Actor::caller) can take away what it likes, but give a key only what its
    /// own key holds.
    ///
    /// # Errors
    ///
    /// [`NotFound`](super::ManageErrorKind::NotFound) when there is no such key,
    /// [`Conflict`](super::ManageErrorKind::Conflict) when it is revoked,
    /// [`Outdated`](super::ManageErrorKind::Outdated) when it has another version, or when the
    /// change makes no sense or is denied, or the store fails.
    pub async fn update(&self, id: KeyId, update: KeyUpdate) -> Result<KeyRecord, ManageError> {
        self.detached(self.clone().update_now(id, update)).await
    }

    async fn update_now(self, id: KeyId, update: KeyUpdate) -> Result<KeyRecord, ManageError> {
        text::check_some("reason", update.reason.as_deref())?;
        update.plan.iter().flatten().try_for_each(|plan| text::check_plan(plan))?;
        self.change(vec![id], async move |change, locked| {
            let before = change.target(locked)?;
            let after = update.apply(&before)?;
            change.check_change(&before, &after)?;
            if after == before {
                return Ok(before);
            }
            let after = change.tx.update(&after).await?;
            if (&after.plan, &after.rate_limits) != (&before.plan, &before.rate_limits) {
                text::check_quotas_with_plan(&after)?;
            }
            change.note(KeyAction::Updated, Some(&before), &after, update.reason.as_deref());
            Ok(after)
        })
        .await
    }
}
