use super::{KeyIssuer, ManageError, text};
use crate::rate_limit::RateLimits;

impl KeyIssuer {
    /// Gives a plan these limits, whether it was there before or not. They count at once for every
    /// key that names it: caches of this process are told, and those of others by their feeds.
    ///
    /// A key on the plan may have quotas of its own, up to 8 together with those of the plan: one that
    /// has more is not let in until it has fewer.
    ///
    /// A plan is no key: the audit does not tell of it.
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
            issuer.check_operator().await?;
            let set = issuer.store.set_plan(&name, &limits).await;
            // Even if that failed: a connection that is lost may have been lost after the commit.
            issuer.invalidate_all();
            Ok(set?)
        })
        .await
    }

    /// Removes a plan, and says whether it was there. Keys go on naming it, and have the limits that
    /// the service knows of it, if any.
    ///
    /// # Errors
    ///
    /// [`Denied`](super::ManageErrorKind::Denied) to a [caller](super::Actor::caller), or when the
    /// store fails.
    pub async fn remove_plan(&self, name: &str) -> Result<bool, ManageError> {
        let (issuer, name) = (self.clone(), name.to_owned());
        self.detached(async move {
            issuer.check_operator().await?;
            let removed = issuer.store.remove_plan(&name).await;
            issuer.invalidate_all();
            Ok(removed?)
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
    async fn check_operator(&self) -> Result<(), ManageError> {
        if self.actor.caller.is_none() {
            return Ok(());
        }
        self.clone().change(Vec::new(), async |_, _| Err(ManageError::operators_only())).await
    }
}
