use super::{KeyIssuer, ManageError, change::Attempt, text};
use crate::{rate_limit::RateLimits, record::KeyAction};

impl KeyIssuer {
    /// Gives a plan these limits, whether it was there before or not. They count at once for every
    /// key that names it: caches of this process are told, and those of others by their feeds.
    ///
    /// A key on the plan may have quotas of its own, up to 8 together with those of the plan: one that
    /// has more is not let in until it has fewer.
    ///
    /// Where that changes something, the audit has a line of it, without a key or a consumer.
    ///
    /// # Errors
    ///
    /// [`Invalid`](super::ManageErrorKind::Invalid) for a name other than 1 to 64 letters, digits,
    /// `-`, `_` or `.`, [`Denied`](super::ManageErrorKind::Denied) to a
    /// [caller](super::Actor::caller), or when the store fails.
    pub async fn set_plan(&self, name: &str, limits: &RateLimits) -> Result<(), ManageError> {
        text::check_plan(name)?;
        text::check_quotas(Some(limits))?;
        let (issuer, name, limits) = (self.clone(), name.to_owned(), limits.clone());
        self.detached(async move {
            issuer.check_operator("set plan").await?;
            let set = issuer.clone().change("set plan", Vec::new(), async |change, _| {
                let before = change.tx.set_plan(&name, &limits).await?;
                let after = serde_json::to_value(&limits).map_err(ManageError::failed)?;
                let action = match &before {
                    None => KeyAction::PlanCreated,
                    // A database may write JSON in another way.
                    Some(before) if serde_json::from_str(before).ok() == Some(after.clone()) => {
                        return Ok(());
                    }
                    Some(_) => KeyAction::PlanUpdated,
                };
                change.note_plan(action, &name, before.as_deref(), Some(&after.to_string()));
                Ok(())
            });
            let set = set.await;
            // Even if that failed: a connection that is lost may have been lost after the commit.
            issuer.invalidate_all();
            set
        })
        .await
    }

    /// Removes a plan, and says whether it was there. Keys go on naming it, and have the limits that
    /// the service knows of it, if any. The audit has a line of it.
    ///
    /// # Errors
    ///
    /// [`Denied`](super::ManageErrorKind::Denied) to a [caller](super::Actor::caller), or when the
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
    /// When the store does not answer.
    pub async fn plans(&self) -> Result<Vec<(String, RateLimits)>, ManageError> {
        Ok(self.store.plans().await?)
    }

    /// What is not for keys. The attempt of one is written down.
    async fn check_operator(&self, action: &'static str) -> Result<(), ManageError> {
        if self.actor.caller.is_none() {
            return Ok(());
        }
        Err(self.deny(ManageError::operators_only(), Attempt::to(action)).await?)
    }
}
