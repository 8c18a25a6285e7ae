use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use super::{
    Scope, Scopes,
    wildcard::{covers, wildcard_stem},
};

/// The scopes of a service: their names and descriptions, and which scopes others contain.
///
/// Made from the enum of [`scopes!`](crate::scopes), or read from [JSON](Self::to_json).
/// Cheap to clone.
///
/// ```
/// use tower_api_key::record::Scopes;
///
/// tower_api_key::scopes! {
///     pub enum Scope {
///         /// Read orders.
///         OrdersRead = "orders:read",
///         /// Create and change orders.
///         OrdersWrite = "orders:write" implies OrdersRead,
///         /// Everything about orders.
///         Orders = "orders:*",
///     }
/// }
///
/// let catalog = Scope::catalog();
/// let held = Scopes::from([Scope::OrdersWrite]);
/// let all = catalog.expand(&held);
/// assert_eq!(all, Scopes::from([Scope::OrdersRead, Scope::OrdersWrite]));
///
/// for scope in catalog.iter() {
///     println!("{}: {}", scope.name(), scope.description());
/// }
/// ```
///
/// # Where it applies
///
/// 1. An [authenticator](crate::auth::Builder::scopes) expands the scopes of a key when it loads the
///    record: a [`Consumer`](crate::Consumer) has all that its scopes contain. What is stored, listed
///    and shown to operators stays what was given.
/// 2. An [issuer](crate::manage::KeyIssuer::scopes) refuses scopes that the catalogue lacks, for
///    every actor. It counts implied scopes as held where a key or a member grants.
/// 3. Scopes of stored keys that the catalogue lacks stay as they are, without a meaning beyond
///    their name. So does `orders:*` where the catalogue lacks it.
///
/// A scope that the catalogue loses is no longer contained in others, and no longer issued; a key
/// that has it by name keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScopeCatalog(Arc<Inner>);

#[derive(Debug, PartialEq, Eq)]
struct Inner {
    /// In the order of their declaration.
    scopes: Vec<CatalogScope>,
    /// All that a scope contains beyond itself, for those that contain something.
    contained: HashMap<Scope, Scopes>,
}

/// A scope of a [`ScopeCatalog`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogScope {
    pub(super) name: Scope,
    pub(super) description: Box<str>,
    pub(super) implies: Scopes,
}

impl CatalogScope {
    /// The name of the scope.
    #[must_use]
    pub const fn name(&self) -> &Scope {
        &self.name
    }

    /// What it allows, for a form or a page. Empty if the catalogue says nothing.
    #[must_use]
    pub const fn description(&self) -> &str {
        &self.description
    }

    /// The scopes that it implies, as they are declared. [`ScopeCatalog::expand`] adds those that
    /// they imply in turn.
    #[must_use]
    pub const fn implies(&self) -> &Scopes {
        &self.implies
    }

    /// Whether it contains all scopes of the catalogue that begin as it does, such as `orders:*`.
    #[must_use]
    pub fn is_wildcard(&self) -> bool {
        wildcard_stem(self.name.as_str()).is_some()
    }

    fn contains(&self, other: &Scope) -> bool {
        self.implies.contains(other.as_str()) || covers(self.name.as_str(), other.as_str())
    }
}

impl ScopeCatalog {
    /// Maximum scopes of a catalogue: 256. A key may have all of them, and they are searched on
    /// every route that requires a scope.
    pub const MAX_SCOPES: usize = 256;

    pub(super) fn of(scopes: Vec<CatalogScope>) -> Self {
        let contained = scopes.iter().map(|scope| (scope.name.clone(), contained(scope, &scopes)));
        let contained = contained.filter(|(_, contained)| !contained.is_empty()).collect();
        Self(Arc::new(Inner { scopes, contained }))
    }

    /// The scopes in the order of their declaration.
    #[must_use]
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &CatalogScope> + Clone {
        self.0.scopes.iter()
    }

    /// The scope with this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&CatalogScope> {
        self.iter().find(|scope| scope.name.as_str() == name)
    }

    /// `scopes`, and all that they imply or cover. Scopes that the catalogue lacks stay as they are.
    ///
    /// More scopes contain no less, and what is expanded contains nothing more.
    #[must_use]
    pub fn expand(&self, scopes: &Scopes) -> Scopes {
        let contained = || scopes.iter().filter_map(|scope| self.0.contained.get(scope));
        if contained().next().is_none() {
            return scopes.clone();
        }
        scopes.iter().chain(contained().flat_map(Scopes::iter)).cloned().collect()
    }
}

/// All that `scope` contains beyond itself, directly or not.
fn contained(scope: &CatalogScope, all: &[CatalogScope]) -> Scopes {
    let mut found = BTreeSet::new();
    let mut open = vec![scope];
    while let Some(scope) = open.pop() {
        for other in all.iter().filter(|other| scope.contains(&other.name)) {
            if found.insert(&other.name) {
                open.push(other);
            }
        }
    }
    found.remove(&scope.name);
    found.into_iter().cloned().collect()
}
