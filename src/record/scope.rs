use std::{error::Error, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

const MAX_LEN: usize = 128;

/// Whether `text` is a scope.
pub(super) const fn is_scope(text: &str) -> bool {
    let mut rest = text.as_bytes();
    if rest.is_empty() || rest.len() > MAX_LEN {
        return false;
    }
    while let [byte, after @ ..] = rest {
        if !matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e) {
            return false;
        }
        rest = after;
    }
    true
}

/// One permission, such as `reports:read`.
///
/// Opaque and case-sensitive: `reports:*` is a wildcard only where a [catalogue](super::ScopeCatalog)
/// has it. The allowed characters are those of an
/// OAuth scope token, so a scope can appear in `WWW-Authenticate` unescaped
/// ([RFC 6750 §3](https://www.rfc-editor.org/rfc/rfc6750#section-3)).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Scope(Box<str>);

impl Scope {
    /// Validates `scope`.
    ///
    /// # Errors
    ///
    /// When it is empty, longer than 128 characters, or has spaces, quotes, backslashes, control
    /// or non-ASCII characters.
    pub fn new(scope: impl Into<String>) -> Result<Self, InvalidScope> {
        let scope = scope.into();
        if is_scope(&scope) { Ok(Self(scope.into())) } else { Err(InvalidScope) }
    }

    /// A scope that is known to be valid.
    pub(super) fn of_valid(scope: &str) -> Self {
        debug_assert!(is_scope(scope));
        Self(scope.into())
    }

    /// The scope as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Scope {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Scope {
    type Err = InvalidScope;

    fn from_str(scope: &str) -> Result<Self, InvalidScope> {
        Self::new(scope)
    }
}

impl TryFrom<String> for Scope {
    type Error = InvalidScope;

    fn try_from(scope: String) -> Result<Self, InvalidScope> {
        Self::new(scope)
    }
}

impl From<Scope> for String {
    fn from(scope: Scope) -> Self {
        scope.0.into()
    }
}

/// A set of scopes, sorted. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<Scope>", into = "Vec<Scope>")]
pub struct Scopes(Arc<[Scope]>);

impl Scopes {
    /// Maximum scopes per key: 128, up to 16 KiB. They are cached with each key and searched on
    /// every route that requires a scope.
    pub const MAX_SCOPES: usize = 128;

    /// Parses and validates each of `scopes`.
    ///
    /// # Errors
    ///
    /// When one of them is not a valid [`Scope`], or there are more than
    /// [`MAX_SCOPES`](Self::MAX_SCOPES).
    pub fn parse<S: Into<String>>(
        scopes: impl IntoIterator<Item = S>,
    ) -> Result<Self, InvalidScope> {
        let scopes: Self = scopes.into_iter().map(Scope::new).collect::<Result<_, _>>()?;
        if scopes.is_within_bounds() { Ok(scopes) } else { Err(InvalidScope) }
    }

    /// Whether there are no more than [`MAX_SCOPES`](Self::MAX_SCOPES).
    pub(crate) fn is_within_bounds(&self) -> bool {
        self.0.len() <= Self::MAX_SCOPES
    }

    /// Whether `scope` is in the set.
    #[must_use]
    pub fn contains(&self, scope: &str) -> bool {
        self.0.iter().any(|held| held.as_str() == scope)
    }

    /// The scopes in alphabetical order.
    #[must_use]
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Scope> {
        self.0.iter()
    }

    /// Whether the set is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Does not limit the number of scopes; issuing a key with more than
/// [`MAX_SCOPES`](Scopes::MAX_SCOPES) fails.
impl<S: Into<Scope>> FromIterator<S> for Scopes {
    fn from_iter<I: IntoIterator<Item = S>>(scopes: I) -> Self {
        let mut scopes: Vec<_> = scopes.into_iter().map(Into::into).collect();
        scopes.sort_unstable();
        scopes.dedup();
        Self(scopes.into())
    }
}

/// As [`FromIterator`], also for the variants of an enum made by [`scopes!`](crate::scopes).
impl<S: Into<Scope>, const N: usize> From<[S; N]> for Scopes {
    fn from(scopes: [S; N]) -> Self {
        scopes.into_iter().collect()
    }
}

impl TryFrom<Vec<Scope>> for Scopes {
    type Error = InvalidScope;

    fn try_from(scopes: Vec<Scope>) -> Result<Self, InvalidScope> {
        let scopes: Self = scopes.into_iter().collect();
        if scopes.is_within_bounds() { Ok(scopes) } else { Err(InvalidScope) }
    }
}

impl From<Scopes> for Vec<Scope> {
    fn from(scopes: Scopes) -> Self {
        scopes.0.to_vec()
    }
}

/// The text is not a valid scope, or there are too many scopes for one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InvalidScope;

impl fmt::Display for InvalidScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "a scope must be 1 to 128 printable ASCII characters without spaces, quotes and \
             backslashes, and a key must have at most 128 scopes",
        )
    }
}

impl Error for InvalidScope {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_that_could_break_a_header_are_refused() {
        let long = "a".repeat(129);
        for scope in ["", " ", "a b", "a\"b", "a\\b", "a\r\nb", "a\u{7f}", "ä", &long] {
            assert_eq!(Scope::new(scope), Err(InvalidScope), "{scope:?}");
        }
        for scope in ["reports:read", "read", "!", "a.b/c:*", &"a".repeat(128)] {
            assert!(Scope::new(scope).is_ok(), "{scope:?}");
        }
    }

    #[test]
    fn a_key_has_at_most_128_scopes() {
        let names = |count: usize| (0..count).map(|at| format!("s{at}"));
        let most = Scopes::parse(names(128)).unwrap();
        let json = serde_json::to_string(&most).unwrap();
        assert_eq!(serde_json::from_str::<Scopes>(&json).unwrap(), most);
        assert_eq!(Scopes::parse(names(129)), Err(InvalidScope));
        let json = serde_json::to_string(&names(129).collect::<Vec<_>>()).unwrap();
        assert!(serde_json::from_str::<Scopes>(&json).is_err());
        // Duplicates do not count.
        assert!(Scopes::parse(names(128).chain(names(128))).is_ok());
    }

    #[test]
    fn a_set_is_sorted_and_has_no_doubles() {
        let scopes = Scopes::parse(["b", "a", "b"]).unwrap();
        assert_eq!(scopes.iter().map(Scope::as_str).collect::<Vec<_>>(), ["a", "b"]);
        assert!(scopes.contains("a") && !scopes.contains("A"));
    }
}
