use super::{KeyIssuer, ManageError, change::Attempt, text};
use crate::{
    rate_limit::{PlanName, RateLimits},
    record::KeyAction,
};

impl KeyIssuer {
    /// Creates a plan or replaces its limits. They apply at once to all keys that name the plan:
    /// the caches of this process are invalidated, those of other processes by their change feeds.
    ///
    /// A key on the plan may have quotas of its own, up to 8 together with those of the plan. A key
    /// with more is rejected until it has fewer.
    ///
    /// A change is written to the audit, without a key or a consumer.
    ///
    /// # Errors
    ///
    /// [`Invalid`](super::ManageErrorKind::Invalid) for a name other than 1 to 64 letters, digits,
    /// `-`, `_` or `.`, or for more than 8 quotas; [`Denied`](super::ManageErrorKind::Denied) to a
    /// [caller](super::Actor::key); or when the store fails.
    pub async fn set_plan(&self, name: &str, limits: &RateLimits) -> Result<(), ManageError> {
        let name = PlanName::new(name.to_owned())?;
        text::check_quotas(Some(limits))?;
        let (issuer, limits) = (self.clone(), limits.clone());
        self.detached(async move {
            let name = name.as_str();
            issuer.check_operator("set plan").await?;
            let set = issuer.clone().change("set plan", Vec::new(), async |change, _| {
                let before = change.tx.set_plan(name, &limits).await?;
                let after = serde_json::to_value(&limits).map_err(ManageError::failed)?;
                let action = match &before {
                    None => KeyAction::PlanCreated,
                    // Compared as values: a database may format JSON differently.
                    Some(before) if serde_json::from_str(before).ok() == Some(after.clone()) => {
                        return Ok(());
                    }
                    Some(_) => KeyAction::PlanUpdated,
                };
                change.note_plan(action, name, before.as_deref(), Some(&after.to_string()));
                Ok(())
            });
            let set = set.await;
            // Even after an error: the connection may have been lost after the commit.
            issuer.invalidate_all();
            set
        })
        .await
    }

    /// Removes a plan from the store, and returns whether it existed. Keys keep naming it; they
    /// have the limits that the service defines for it, if any. The removal is written to the
    /// audit.
    ///
    /// # Errors
    ///
    /// [`Denied`](super::ManageErrorKind::Denied) to a [caller](super::Actor::key), or when the
    /// store fails.
    pub async fn remove_plan(&self, name: &str) -> Result<bool, ManageError> {
        let (issuer, name) = (self.clone(), name.to_owned());
        self.detached(async move {
            issuer.check_operator("remove plan").await?;
            let removed = issuer.clone().change("remove plan", Vec::new(), async |change, _| {
                let before = change.tx.remove_plan(&name).await?;
                if let Some(before) = &before {
                    change.note_plan(KeyAction::PlanRemoved, &name, Some(before), None);
                }
                Ok(before.is_some())
            });
            let removed = removed.await;
            issuer.invalidate_all();
            removed
        })
        .await
    }

    /// The plans that the store defines, ordered by name.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub async fn plans(&self) -> Result<Vec<(String, RateLimits)>, ManageError> {
        Ok(self.store.plans().await?)
    }

    /// Denies a calling key, and writes the attempt to the audit.
    async fn check_operator(&self, action: &'static str) -> Result<(), ManageError> {
        if self.actor.is_operator() {
            return Ok(());
        }
        Err(self.deny(ManageError::operators_only(), Attempt::to(action)).await?)
    }
}
