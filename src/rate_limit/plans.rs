use std::{collections::BTreeMap, error::Error, fmt};

use super::{PlanName, RateLimits};

/// Named limits, such as `free` and `pro`, that many keys share: a key names its plan and follows
/// changes of it.
///
/// ```
/// use tower_api_key::rate_limit::{Plans, Quota};
///
/// let plans = Plans::new()
///     .plan("free", Quota::per_minute(60)?.per_consumer())?
///     .plan("pro", Quota::per_minute(600)?.per_consumer())?;
/// # drop(plans);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// A key that moves from `free` to `pro` keeps its bucket, whatever the quotas are called: units
/// taken stay taken.
///
/// If the store defines a plan of the same name, the store's definition wins.
#[derive(Clone, Debug, Default)]
pub struct Plans(BTreeMap<PlanName, RateLimits>);

impl Plans {
    /// No plans.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the plan `name`.
    ///
    /// # Errors
    ///
    /// If the name is taken, empty, longer than 64 characters, or contains characters other than
    /// letters, digits, `-`, `_` and `.`.
    pub fn plan(
        mut self,
        name: impl Into<String>,
        limits: impl Into<RateLimits>,
    ) -> Result<Self, InvalidPlan> {
        let name = PlanName::new(name.into()).map_err(|_| InvalidPlan)?;
        if self.0.contains_key(&name) {
            return Err(InvalidPlan);
        }
        self.0.insert(name, limits.into());
        Ok(self)
    }

    /// The limits of the plan `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&RateLimits> {
        self.0.get(name)
    }
}

/// The name of a plan is taken or invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InvalidPlan;

impl fmt::Display for InvalidPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a plan's name must be unique, and 1 to 64 letters, digits, `-`, `_` or `.`")
    }
}

impl Error for InvalidPlan {}
