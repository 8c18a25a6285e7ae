use std::{borrow::Borrow, error::Error, fmt};

use super::quota::is_name;

/// The name of a [plan](super::Plans), which follows the same rule as the name of a
/// [quota](super::Quota).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PlanName<S = String>(S);

impl<S: AsRef<str>> PlanName<S> {
    /// Checks the name.
    pub(crate) fn new(name: S) -> Result<Self, InvalidPlanName> {
        if is_name(name.as_ref()) { Ok(Self(name)) } else { Err(InvalidPlanName) }
    }

    pub(crate) fn as_str(&self) -> &str {
        self.0.as_ref()
    }
}

impl<S: AsRef<str>> fmt::Debug for PlanName<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

impl Borrow<str> for PlanName {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

/// The name of a plan is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InvalidPlanName;

impl InvalidPlanName {
    /// The rule, as an error text.
    pub(crate) const RULE: &str = "a plan name must be 1 to 64 letters, digits, `-`, `_` or `.`";
}

impl fmt::Display for InvalidPlanName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::RULE)
    }
}

impl Error for InvalidPlanName {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rate_limit::Quota;

    #[test]
    fn a_plan_can_be_called_whatever_a_quota_can() {
        let quota = Quota::per_second(1).unwrap();
        let (long, longer) = ("a".repeat(64), "a".repeat(65));
        for name in ["", "a", "pro", "Team-5_eu.v2", "a b", "a/b", "a\n", "\0", "é", &long, &longer]
        {
            let plan = PlanName::new(name);
            assert_eq!(plan.is_ok(), quota.clone().named(name).is_ok(), "{name:?}");
            assert!(plan.is_ok_and(|plan| plan.as_str() == name) || !is_name(name));
        }
        assert!(PlanName::new(long).is_ok() && PlanName::new(longer).is_err());
    }
}
