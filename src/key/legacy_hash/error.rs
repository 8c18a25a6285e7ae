use std::{borrow::Cow, error::Error, fmt};

/// Why a text is not a hash that keys can be [verified](super::LegacyHash) with.
///
/// The message never holds the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidLegacyHash {
    pub(super) problem: Cow<'static, str>,
}

impl InvalidLegacyHash {
    pub(super) fn new(problem: impl Into<Cow<'static, str>>) -> Self {
        Self { problem: problem.into() }
    }
}

impl fmt::Display for InvalidLegacyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the hash cannot be used to verify keys: {}", self.problem)
    }
}

impl Error for InvalidLegacyHash {}
