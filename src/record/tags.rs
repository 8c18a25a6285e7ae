use std::{error::Error, fmt};

use serde::{Deserialize, Serialize};

use super::words::Words;

/// The tags of a key, sorted: short words by which people and lists find keys, such as `team:billing`
/// or `mobile`. They grant nothing. Cheap to clone.
///
/// A tag is 1 to 64 printable ASCII characters without spaces, commas, quotes and backslashes, so that
/// it needs no quoting on a command line, in a URL or in a list.
///
/// ```
/// use tower_api_key::record::Tags;
///
/// let tags = Tags::parse(["team:billing", "mobile"])?;
/// assert!(tags.contains("mobile") && !tags.contains("Mobile"));
/// assert!(Tags::parse(["two words"]).is_err());
/// # Ok::<(), tower_api_key::record::InvalidTag>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct Tags(Words);

impl Tags {
    /// Maximum tags per key: 32, enough for people, and at most 2 KiB in lists and in the cache.
    pub const MAX_TAGS: usize = 32;

    /// Maximum characters of a tag: 64.
    pub const MAX_LEN: usize = 64;

    /// Validates each of `tags`.
    ///
    /// # Errors
    ///
    /// When one of them is not a valid tag, or there are more than [`MAX_TAGS`](Self::MAX_TAGS).
    pub fn parse<S: Into<String>>(tags: impl IntoIterator<Item = S>) -> Result<Self, InvalidTag> {
        Words::collect(tags, Self::MAX_TAGS, Self::is_valid).map(Self).ok_or(InvalidTag)
    }

    /// Whether `tag` may be a tag.
    fn is_valid(tag: &str) -> bool {
        let is_allowed = |byte: u8| matches!(byte, 0x21..=0x7e) && !b",\"'`\\".contains(&byte);
        (1..=Self::MAX_LEN).contains(&tag.len()) && tag.bytes().all(is_allowed)
    }

    /// The tags in alphabetical order.
    #[must_use]
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        self.0.iter()
    }

    /// Whether the key has `tag`.
    #[must_use]
    pub fn contains(&self, tag: &str) -> bool {
        self.0.contains(tag.as_bytes())
    }

    /// Whether the key has no tags.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl TryFrom<Vec<String>> for Tags {
    type Error = InvalidTag;

    fn try_from(tags: Vec<String>) -> Result<Self, InvalidTag> {
        Self::parse(tags)
    }
}

impl From<Tags> for Vec<String> {
    fn from(tags: Tags) -> Self {
        tags.0.into_vec()
    }
}

/// The text is not a valid tag, or there are too many tags for one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InvalidTag;

impl fmt::Display for InvalidTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "a tag must be 1 to 64 printable ASCII characters without spaces, commas, quotes and \
             backslashes, and a key must have at most 32 tags",
        )
    }
}

impl Error for InvalidTag {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_needs_no_quoting() {
        let long = "a".repeat(65);
        for tag in ["", "a b", "a,b", "a\"b", "a'b", "a`b", "a\\b", "a\n", "ä", "\u{7f}", &long] {
            assert_eq!(Tags::parse([tag]), Err(InvalidTag), "{tag:?}");
        }
        for tag in ["mobile", "team:billing", "a/b@c=d", &"a".repeat(64)] {
            assert!(Tags::parse([tag]).is_ok(), "{tag:?}");
        }
    }

    #[test]
    fn a_key_has_at_most_32_tags_sorted_and_without_doubles() {
        let names = |count: usize| (0..count).map(|at| format!("t{at}"));
        assert_eq!(Tags::parse(names(32).chain(names(32))).unwrap().iter().len(), 32);
        assert_eq!(Tags::parse(names(33)), Err(InvalidTag));
        assert!(serde_json::from_str::<Tags>(r#"["two words"]"#).is_err());
        let tags = Tags::parse(["b", "a", "b"]).unwrap();
        assert_eq!(serde_json::to_string(&tags).unwrap(), r#"["a","b"]"#);
        assert!(Tags::default().is_empty() && !tags.is_empty());
    }
}
