use std::{error::Error, fmt};

use crate::store::{StoreError, StoreErrorKind};

/// How an implementation breaks a rule: what was expected and why, and what was found.
///
/// It is not an [`Error`], so that `?` turns every error into one.
pub struct Violation(String);

/// Whether a rule holds.
pub(super) type Checked = Result<(), Violation>;

impl Violation {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl<E: Error> From<E> for Violation {
    /// An operation that should have succeeded failed.
    fn from(error: E) -> Self {
        // `Debug` of a `StoreError` names its kind and its source.
        Self(format!("an operation failed that should have succeeded: {error:?}"))
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The rules that an implementation breaks, at least one.
pub struct Violations(Vec<(&'static str, Violation)>);

impl Violations {
    /// `Ok` if all rules hold.
    pub(super) fn of(
        checked: impl IntoIterator<Item = (&'static str, Checked)>,
    ) -> Result<(), Self> {
        let broken = checked.into_iter().filter_map(|(rule, it)| Some((rule, it.err()?)));
        let broken: Vec<_> = broken.collect();
        if broken.is_empty() { Ok(()) } else { Err(Self(broken)) }
    }

    /// Each broken rule by its name, and how it is broken.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Violation)> {
        self.0.iter().map(|(rule, violation)| (*rule, violation))
    }
}

impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rules are broken", self.0.len())?;
        for (rule, violation) in self.iter() {
            write!(f, "\n\n{rule}: {violation}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Error for Violations {}

/// `why` says what is expected, and the reason.
pub(super) fn expect(holds: bool, why: &str) -> Checked {
    if holds { Ok(()) } else { Err(Violation::new(why)) }
}

pub(super) fn equal<T, U>(found: &T, expected: &U, why: &str) -> Checked
where
    T: PartialEq<U> + fmt::Debug + ?Sized,
    U: fmt::Debug + ?Sized,
{
    if found == expected {
        return Ok(());
    }
    Err(Violation::new(format!("{why}\n  expected: {expected:?}\n     found: {found:?}")))
}

pub(super) fn some<T>(found: Option<T>, why: &str) -> Result<T, Violation> {
    found.ok_or_else(|| Violation::new(format!("{why}\n     found: None")))
}

/// The operation must fail with an error of this kind.
pub(super) fn fails<T: fmt::Debug>(
    result: &Result<T, StoreError>,
    kind: StoreErrorKind,
    why: &str,
) -> Checked {
    match result {
        Err(error) if error.kind() == kind => Ok(()),
        found => Err(Violation::new(format!(
            "{why}\n  expected: an error of kind `{}`\n     found: {found:?}",
            kind.as_str()
        ))),
    }
}
