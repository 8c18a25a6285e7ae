use std::{error::Error, fmt};

/// Why public keys are not available.
#[derive(Debug)]
pub struct PublicKeysError {
    kind: PublicKeysErrorKind,
    source: Option<Box<dyn Error + Send + Sync>>,
}

/// The kind of a [`PublicKeysError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PublicKeysErrorKind {
    /// They could not be fetched.
    Unavailable,
    /// What was fetched or given is not public keys of P-256.
    Invalid,
}

impl PublicKeysError {
    /// An error of this kind.
    #[must_use]
    pub const fn new(kind: PublicKeysErrorKind) -> Self {
        Self { kind, source: None }
    }

    /// Sets the cause.
    #[must_use]
    pub fn because(self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { source: Some(source.into()), ..self }
    }

    /// What went wrong.
    #[must_use]
    pub const fn kind(&self) -> PublicKeysErrorKind {
        self.kind
    }
}

impl fmt::Display for PublicKeysError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            PublicKeysErrorKind::Unavailable => "the public keys could not be fetched",
            PublicKeysErrorKind::Invalid => {
                "not public keys of P-256, in PEM or in the JSON that GitHub publishes"
            }
        })
    }
}

impl Error for PublicKeysError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
