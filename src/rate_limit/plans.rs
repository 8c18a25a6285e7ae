use std::{collections::BTreeMap, error::Error, fmt};

use super::{RateLimits, quota::is_name};

/// Limits with a name, such as `free` and `pro`, which many keys share: a key names its plan, and
/// its limits follow when the plan changes.
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
/// A key that changes from `free` to `pro` goes on with the bucket it has, whatever the quotas are
/// called: what was taken stays taken.
///
/// A plan that the store defines as well is as the store has it.
#[derive(Clone, Debug, Default)]
pub struct Plans(BTreeMap<String, RateLimits>);

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
    /// When the name is taken, empty, longer than 64 characters, or has other characters than
    /// letters, digits, `-`, `_` and `.`.
    pub fn plan(
        mut self,
        name: impl Into<String>,
        limits: impl Into<RateLimits>,
    ) -> Result<Self, InvalidPlan> {
        let name = name.into();
        if !is_name(&name) || self.0.contains_key(&name) {
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

/// The name of a plan is taken, or cannot be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InvalidPlan;

impl fmt::Display for InvalidPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a plan is 1 to 64 letters, digits, `-`, `_` or `.`, and its own")
    }
}

impl Error for InvalidPlan {}
