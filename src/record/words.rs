//! A sorted set of short texts: tags, and origins.

use std::sync::Arc;

/// Sorted, without duplicates. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Words(Option<Arc<[Box<str>]>>);

impl Words {
    /// The set of `words`; `None` if there are more than `max` or one of them does not pass.
    pub(super) fn collect(
        words: impl IntoIterator<Item = impl Into<String>>,
        max: usize,
        passes: impl Fn(&str) -> bool,
    ) -> Option<Self> {
        let words = words.into_iter().map(|word| {
            let word: String = word.into();
            passes(&word).then(|| word.into_boxed_str())
        });
        let mut words: Vec<_> = words.collect::<Option<_>>()?;
        words.sort_unstable();
        words.dedup();
        match words.len() {
            0 => Some(Self(None)),
            len if len <= max => Some(Self(Some(words.into()))),
            _ => None,
        }
    }

    pub(super) fn as_slice(&self) -> &[Box<str>] {
        self.0.as_deref().unwrap_or_default()
    }

    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        self.as_slice().iter().map(|word| &**word)
    }

    pub(super) fn contains(&self, word: &[u8]) -> bool {
        self.as_slice().iter().any(|held| held.as_bytes() == word)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    pub(super) fn into_vec(self) -> Vec<String> {
        self.iter().map(str::to_owned).collect()
    }
}
