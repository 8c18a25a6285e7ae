use std::collections::BTreeSet;

/// The consumers whose keys someone may manage: one, several, or all.
///
/// ```
/// use tower_api_key::manage::ConsumerIds;
///
/// assert!(ConsumerIds::from("acme").contains("acme"));
/// assert!(!ConsumerIds::from_iter(["acme", "globex"]).contains("initech"));
/// assert!(ConsumerIds::all().contains("initech"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerIds(Which);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Which {
    All,
    Of(BTreeSet<String>),
}

impl ConsumerIds {
    /// All consumers, including future ones.
    #[must_use]
    pub const fn all() -> Self {
        Self(Which::All)
    }

    /// Whether `id` is one of them.
    #[must_use]
    pub fn contains(&self, id: &str) -> bool {
        match &self.0 {
            Which::All => true,
            Which::Of(ids) => ids.contains(id),
        }
    }

    /// The ids; `None` for all consumers.
    pub(crate) fn ids(&self) -> Option<&BTreeSet<String>> {
        match &self.0 {
            Which::All => None,
            Which::Of(ids) => Some(ids),
        }
    }

    /// The id, if there is exactly one.
    pub(crate) fn only(&self) -> Option<&str> {
        let ids = self.ids()?;
        ids.first().filter(|_| ids.len() == 1).map(String::as_str)
    }
}

impl From<&str> for ConsumerIds {
    fn from(id: &str) -> Self {
        Self::from_iter([id])
    }
}

impl From<String> for ConsumerIds {
    fn from(id: String) -> Self {
        Self::from_iter([id])
    }
}

impl<I: Into<String>> FromIterator<I> for ConsumerIds {
    fn from_iter<T: IntoIterator<Item = I>>(ids: T) -> Self {
        Self(Which::Of(ids.into_iter().map(Into::into).collect()))
    }
}
