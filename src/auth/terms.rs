//! Which limits a key has.

use std::{borrow::Cow, sync::Arc, time::Duration};

use crate::{
    rate_limit::{Meter, Meters, Plans, RateLimits, Subject},
    record::KeyRecord,
};

/// What the limits of a key follow from, beside its record.
pub(super) struct Terms {
    pub(super) meters: Arc<Meters>,
    pub(super) plans: Plans,
    /// Of keys that have neither limits of their own nor a plan.
    pub(super) default: RateLimits,
}

impl Terms {
    /// The limits of the key, with their live buckets.
    pub(super) fn meter(&self, record: &KeyRecord, now: Duration) -> Meter {
        let subject = Subject { consumer: &record.consumer_id, root: record.root_id.as_u128() };
        Meter::new(&self.meters, self.limits(record).into_owned(), subject, now)
    }

    /// Those of its own and those of its plan, of which its own come first where both have one of
    /// the same name.
    fn limits<'a>(&'a self, record: &'a KeyRecord) -> Cow<'a, RateLimits> {
        match (&record.rate_limits, self.plan(record)) {
            (None, None) => Cow::Borrowed(&self.default),
            (Some(limits), None) | (None, Some(limits)) => Cow::Borrowed(limits),
            (Some(own), Some(plan)) => Cow::Owned(own.and(plan)),
        }
    }

    /// As the store has it, else as it is defined in code.
    fn plan<'a>(&'a self, record: &'a KeyRecord) -> Option<&'a RateLimits> {
        let plan = record.plan.as_deref()?;
        record.plan_limits.as_ref().or_else(|| self.plans.get(plan))
    }

    /// Whether the key names a plan that nobody defines.
    pub(super) fn misses_plan(&self, record: &KeyRecord) -> bool {
        record.plan.is_some() && self.plan(record).is_none()
    }
}
