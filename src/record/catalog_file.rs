//! [`ScopeCatalog`] as JSON, which a service writes and the command line reads.

use std::{collections::BTreeSet, error::Error, fmt, str::FromStr};

use serde::{Deserialize, Serialize, Serializer};

use super::{
    CatalogScope, Scope, ScopeCatalog, Scopes,
    wildcard::{covers, has_misplaced_star, wildcard_stem},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    scopes: Vec<Entry<Scope>>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Entry<S> {
    name: S,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    description: String,
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    implies: Vec<S>,
}

impl ScopeCatalog {
    /// The catalogue as JSON, to be read by [`FromStr`](std::str::FromStr) and by the
    /// command line. It ends with a line break.
    ///
    /// ```
    /// tower_api_key::scopes! {
    ///     pub enum Scope {
    ///         /// Read orders.
    ///         OrdersRead = "orders:read",
    ///     }
    /// }
    ///
    /// # fn write() -> std::io::Result<()> {
    /// std::fs::write("scopes.json", Scope::catalog().to_json())?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut json = serde_json::to_string_pretty(self).unwrap_or_default();
        json.push('\n');
        json
    }

    fn checked(entries: Vec<Entry<Scope>>) -> Result<Self, InvalidCatalog> {
        let names: BTreeSet<_> = entries.iter().map(|entry| entry.name.as_str()).collect();
        let invalid = |name: &Scope, problem: &str| {
            Err(InvalidCatalog(format!("the scope `{name}` {problem}")))
        };
        for (at, Entry { name, implies, .. }) in entries.iter().enumerate() {
            if entries.iter().take(at).any(|earlier| earlier.name == *name) {
                return invalid(name, "is there twice");
            }
            if implies.contains(name) {
                return invalid(name, "implies itself");
            }
            if let Some(unknown) = implies.iter().find(|it| !names.contains(it.as_str())) {
                return invalid(name, &format!("implies `{unknown}`, which is not there"));
            }
            if has_misplaced_star(name.as_str()) {
                return invalid(name, "must have its `*` at the end, after `:`, `.` or `/`");
            }
            let is_wildcard = wildcard_stem(name.as_str()).is_some();
            if is_wildcard && !names.iter().any(|other| covers(name.as_str(), other)) {
                return invalid(name, "is a wildcard that covers none of the scopes");
            }
        }
        let scopes = entries.into_iter().map(|Entry { name, description, implies }| CatalogScope {
            name,
            description: description.into(),
            implies: Scopes::from_iter(implies),
        });
        Ok(Self::of(scopes.collect()))
    }
}

/// JSON, as [`to_json`](ScopeCatalog::to_json) writes it. `description` and `implies` are optional,
/// and other members are an error.
///
/// ```
/// use tower_api_key::record::ScopeCatalog;
///
/// let catalog: ScopeCatalog = r#"{
///     "scopes": [
///         { "name": "orders:read", "description": "Read orders." },
///         { "name": "orders:write", "implies": ["orders:read"] },
///         { "name": "orders:*" }
///     ]
/// }"#
/// .parse()?;
/// # let _ = catalog;
/// # Ok::<(), tower_api_key::record::InvalidCatalog>(())
/// ```
impl FromStr for ScopeCatalog {
    type Err = InvalidCatalog;

    fn from_str(text: &str) -> Result<Self, InvalidCatalog> {
        let file: File =
            serde_json::from_str(text).map_err(|error| InvalidCatalog(error.to_string()))?;
        if file.scopes.len() > Self::MAX_SCOPES {
            let problem = format!("at most {} scopes are allowed", Self::MAX_SCOPES);
            return Err(InvalidCatalog(problem));
        }
        Self::checked(file.scopes)
    }
}

/// As [`to_json`](ScopeCatalog::to_json) writes it.
impl Serialize for ScopeCatalog {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Written<'c> {
            scopes: Vec<Entry<&'c Scope>>,
        }

        let scopes = self.iter().map(|scope| Entry {
            name: &scope.name,
            description: scope.description.to_string(),
            implies: scope.implies.iter().collect(),
        });
        Written { scopes: scopes.collect() }.serialize(serializer)
    }
}

/// The text is not a [`ScopeCatalog`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidCatalog(String);

impl fmt::Display for InvalidCatalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not a scope catalogue: {}", self.0)
    }
}

impl Error for InvalidCatalog {}
