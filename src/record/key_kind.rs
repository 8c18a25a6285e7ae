use std::{error::Error, fmt, str::FromStr};

/// What a key is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KeyKind {
    /// Known to its owner alone: a service, a build, a person. The default.
    #[default]
    Secret,
    /// In a page or an app that anyone can read. Requests with it need an `Origin` header that is one
    /// of its [origins](super::WebOrigins). Give it only scopes that anyone may have, such as reading what is
    /// public: programs other than browsers can send any `Origin`.
    Publishable,
    /// A trap: it is always refused, as an unknown key is. That it was used is in its
    /// audit, as [`CanaryUsed`](super::KeyAction::CanaryUsed). Put it where only an intruder would
    /// find it.
    Canary,
}

impl KeyKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Secret, Self::Publishable, Self::Canary];

    /// Its name: `secret`, `publishable` or `canary`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Secret => "secret",
            Self::Publishable => "publishable",
            Self::Canary => "canary",
        }
    }
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for KeyKind {
    type Err = InvalidKeyKind;

    fn from_str(name: &str) -> Result<Self, InvalidKeyKind> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name).ok_or(InvalidKeyKind)
    }
}

/// The text does not name a [`KeyKind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InvalidKeyKind;

impl fmt::Display for InvalidKeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("must be secret, publishable or canary")
    }
}

impl Error for InvalidKeyKind {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_has_a_name() {
        for kind in KeyKind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(kind));
        }
        assert!("public".parse::<KeyKind>().is_err());
    }
}
