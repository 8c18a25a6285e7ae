//! What [`scopes!`](crate::scopes) knows of a scope, and the checks that it lets the compiler make.

use super::{
    CatalogScope, Scope, ScopeCatalog,
    scope::is_scope,
    wildcard::{covers, has_misplaced_star, wildcard_stem},
};

/// A scope that [`scopes!`](crate::scopes) declares. Its name is valid.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct DeclaredScope {
    name: &'static str,
    description: &'static str,
    implies: &'static [&'static str],
}

impl DeclaredScope {
    /// The macro checks `name`, and says what is wrong.
    #[must_use]
    pub const fn new(
        name: &'static str,
        description: &'static str,
        implies: &'static [&'static str],
    ) -> Self {
        let name = if is_scope(name) { name } else { "invalid" };
        Self { name, description, implies }
    }

    pub(super) const fn name(&self) -> &'static str {
        self.name
    }

    #[must_use]
    pub fn scope(&self) -> Scope {
        Scope::of_valid(self.name)
    }

    fn cataloged(&self) -> CatalogScope {
        let implies = self.implies.iter().map(|name| Scope::of_valid(name));
        CatalogScope {
            name: self.scope(),
            description: self.description.into(),
            implies: implies.collect(),
        }
    }

    #[must_use]
    pub const fn is_scope(name: &str) -> bool {
        is_scope(name)
    }

    #[must_use]
    pub const fn is_among(mut declared: &[Self], name: &str) -> bool {
        while let [first, rest @ ..] = declared {
            if is_equal(first.name, name) {
                return true;
            }
            declared = rest;
        }
        false
    }

    #[must_use]
    pub const fn implies_itself(&self) -> bool {
        let mut implied = self.implies;
        while let [first, rest @ ..] = implied {
            if is_equal(first, self.name) {
                return true;
            }
            implied = rest;
        }
        false
    }

    #[must_use]
    pub const fn has_misplaced_star(name: &str) -> bool {
        has_misplaced_star(name)
    }

    #[must_use]
    pub const fn covers_some(mut declared: &[Self], name: &str) -> bool {
        if wildcard_stem(name).is_none() {
            return true;
        }
        while let [first, rest @ ..] = declared {
            if covers(name, first.name) {
                return true;
            }
            declared = rest;
        }
        false
    }
}

impl ScopeCatalog {
    /// The catalogue of an enum, whose declaration the compiler has checked.
    #[doc(hidden)]
    #[must_use]
    pub fn declared(declared: &'static [DeclaredScope]) -> Self {
        Self::of(declared.iter().map(DeclaredScope::cataloged).collect())
    }
}

/// From the end, where scopes differ sooner.
const fn is_equal(one: &str, other: &str) -> bool {
    let (mut one, mut other) = (one.as_bytes(), other.as_bytes());
    if one.len() != other.len() {
        return false;
    }
    while let ([rest @ .., last], [others @ .., same]) = (one, other) {
        if *last != *same {
            return false;
        }
        (one, other) = (rest, others);
    }
    true
}
