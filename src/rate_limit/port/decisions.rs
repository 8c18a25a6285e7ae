use std::ops::{Deref, DerefMut};

use smallvec::SmallVec;

use crate::rate_limit::Decision;

/// The decisions of several quotas. The request is admitted if all of them admit it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decisions(SmallVec<[Decision; 1]>);

impl Decisions {
    /// Whether the request fits every quota.
    #[must_use]
    pub fn is_admitted(&self) -> bool {
        self.0.iter().all(Decision::is_admitted)
    }
}

impl Deref for Decisions {
    type Target = [Decision];

    fn deref(&self) -> &[Decision] {
        &self.0
    }
}

impl DerefMut for Decisions {
    fn deref_mut(&mut self) -> &mut [Decision] {
        &mut self.0
    }
}

impl From<Decision> for Decisions {
    fn from(decision: Decision) -> Self {
        Self(SmallVec::from([decision]))
    }
}

impl FromIterator<Decision> for Decisions {
    fn from_iter<I: IntoIterator<Item = Decision>>(decisions: I) -> Self {
        Self(decisions.into_iter().collect())
    }
}
