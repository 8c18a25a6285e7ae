//! What the [`ScopeCatalog`] means to a change: which scopes exist, and which contain others.

use std::collections::BTreeSet;

use super::{Grant, KeyIssuer, ManageError, change::Change};
use crate::record::{KeyRecord, Scope, ScopeCatalog, ScopeNames, Scopes};

impl KeyIssuer {
    /// The scopes of the service. Scopes that the catalogue lacks are refused as
    /// [`Invalid`](super::ManageErrorKind::Invalid), for every actor, when a key is issued or
    /// imported or gets them by an update; what a key has already, it keeps. An actor that may
    /// grant a scope may grant all that it contains. Default: those of the
    /// [authenticator](crate::Authenticator::issuer), if it has any; otherwise any scope, each of
    /// which is only itself.
    #[must_use]
    pub fn scopes(mut self, catalog: ScopeCatalog) -> Self {
        self.catalog = Some(catalog);
        self
    }

    /// The only consumers whose keys the actor sees; `None` for all.
    pub(super) fn tenants(&self) -> Option<BTreeSet<&str>> {
        self.actor.tenants(self.catalog.as_ref())
    }

    /// `scopes`, and all that they contain.
    pub(super) fn effective(&self, scopes: &Scopes) -> Scopes {
        self.catalog.as_ref().map_or_else(|| scopes.clone(), |catalog| catalog.expand(scopes))
    }
}

impl Change {
    /// What `grant` allows, with all that its scopes contain.
    pub(super) fn with_contained(&self, grant: Grant) -> Grant {
        match &self.issuer.catalog {
            Some(catalog) => grant.expanded(catalog),
            None => grant,
        }
    }

    /// Whether the catalogue has the scopes of `after` that the key does not have `before`.
    pub(super) fn check_scopes(
        &self,
        before: Option<&KeyRecord>,
        after: &KeyRecord,
    ) -> Result<(), ManageError> {
        let Some(catalog) = &self.issuer.catalog else { return Ok(()) };
        let is_new =
            |scope: &&Scope| before.is_none_or(|before| !before.scopes.contains(scope.as_str()));
        let mut added = after.scopes.iter().filter(is_new);
        match added.find(|scope| catalog.get(scope.as_str()).is_none()) {
            None => Ok(()),
            Some(unknown) => {
                let known = ScopeNames(catalog.iter().map(|scope| scope.name()));
                let detail =
                    format!("`{unknown}` is not a scope of this service, which has: {known}");
                Err(ManageError::invalid("scopes", detail))
            }
        }
    }
}
