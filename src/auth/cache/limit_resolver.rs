//! Resolves the limits of a key.

use std::{borrow::Cow, sync::Arc, time::Duration};

use super::interner::Interner;
use crate::{
    rate_limit::{Meter, Meters, Plans, RateLimits, port::Subject},
    record::KeyRecord,
    store::{StoreError, StoreErrorKind},
};

/// Everything besides the record that a key's limits depend on.
pub(in crate::auth) struct LimitResolver {
    pub(in crate::auth) meters: Arc<Meters>,
    pub(in crate::auth) plans: Plans,
    /// For keys that have neither limits of their own nor a plan.
    pub(in crate::auth) default: RateLimits,
    interner: Interner<RateLimits>,
}

impl LimitResolver {
    pub(in crate::auth) fn new(meters: Arc<Meters>, plans: Plans, default: RateLimits) -> Self {
        Self { meters, plans, default, interner: Interner::new() }
    }

    /// The limits of the key, with its live buckets.
    pub(in crate::auth) fn meter(&self, record: &KeyRecord, now: Duration) -> Meter {
        let subject = Subject::of_key(&record.consumer_id, record.root_id.as_u128());
        Meter::new(&self.meters, self.interner.of(&self.limits(record)), subject, now)
    }

    /// Rejects a record whose own quotas plus those of its plan exceed the maximum: dropping one of
    /// them would let more requests through.
    pub(in crate::auth) fn check(
        &self,
        found: Option<KeyRecord>,
    ) -> Result<Option<KeyRecord>, StoreError> {
        match found {
            Some(record) if !self.limits(&record).is_within_bounds() => {
                let id = record.id;
                let problem = format!("key {id} has more than 8 quotas together with its plan");
                Err(StoreError::new(StoreErrorKind::Corrupt).because(problem))
            }
            found => Ok(found),
        }
    }

    /// The key's own limits plus those of its plan; on a name clash, its own wins.
    fn limits<'a>(&'a self, record: &'a KeyRecord) -> Cow<'a, RateLimits> {
        match (&record.rate_limits, self.plan(record)) {
            (None, None) => Cow::Borrowed(&self.default),
            (Some(limits), None) | (None, Some(limits)) => Cow::Borrowed(limits),
            (Some(own), Some(plan)) => Cow::Owned(own.and(plan)),
        }
    }

    /// The plan as the store has it, otherwise as defined in code.
    fn plan<'a>(&'a self, record: &'a KeyRecord) -> Option<&'a RateLimits> {
        let plan = record.plan.as_deref()?;
        record.plan_limits.as_ref().or_else(|| self.plans.get(plan))
    }

    /// Whether the key names an undefined plan.
    pub(in crate::auth) fn misses_plan(&self, record: &KeyRecord) -> bool {
        record.plan.is_some() && self.plan(record).is_none()
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::{
        clock::SystemClock,
        key::KeyHash,
        rate_limit::{LocalRateLimiter, Quota},
        record::KeyId,
    };

    #[test]
    fn keys_with_the_same_limits_share_one_copy() {
        let limiter = Arc::new(LocalRateLimiter::new());
        let meters = Arc::new(Meters { limiter, clock: Arc::new(SystemClock::new()) });
        let limits =
            LimitResolver::new(meters, Plans::new(), Quota::per_minute(60).unwrap().into());
        // `rendered` is computed once per interned copy.
        let copy = |key: u128, limit: Option<u32>| {
            let (id, hash) = (KeyId::from_bytes(key.to_be_bytes()), KeyHash::from_bytes([0; 32]));
            let mut record = KeyRecord::new(id, hash, "acme", SystemTime::UNIX_EPOCH);
            record.rate_limits = limit.map(|limit| Quota::per_minute(limit).unwrap().into());
            let meter = limits.meter(&record, Duration::ZERO);
            *meter.limits().rendered(|_| key).unwrap()
        };
        assert_eq!(copy(1, None), 1);
        assert_eq!(copy(2, None), 1);
        assert_eq!(copy(3, Some(60)), 1);
        assert_eq!(copy(4, Some(61)), 4);
        assert_eq!(copy(5, Some(61)), 4);
    }

    #[test]
    fn the_plan_of_the_store_wins_and_an_undefined_one_is_missed() {
        let limiter = Arc::new(LocalRateLimiter::new());
        let meters = Arc::new(Meters { limiter, clock: Arc::new(SystemClock::new()) });
        let per_minute = |limit| RateLimits::from(Quota::per_minute(limit).unwrap());
        let plans = Plans::new().plan("pro", per_minute(2)).unwrap();
        let limits = LimitResolver::new(meters, plans, per_minute(1));
        let key = |plan: Option<&str>, stored: Option<u32>| {
            let (id, hash) = (KeyId::from_bytes([1; 16]), KeyHash::from_bytes([0; 32]));
            let mut record = KeyRecord::new(id, hash, "acme", SystemTime::UNIX_EPOCH);
            record.plan = plan.map(Into::into);
            record.plan_limits = stored.map(per_minute);
            record
        };
        for (record, limit, is_missed) in [
            (key(None, None), 1, false),
            (key(Some("pro"), None), 2, false),
            (key(Some("pro"), Some(3)), 3, false),
            (key(Some("free"), Some(3)), 3, false),
            (key(Some("free"), None), 1, true),
        ] {
            assert_eq!(*limits.limits(&record), per_minute(limit), "{record:?}");
            assert_eq!(limits.misses_plan(&record), is_missed, "{record:?}");
        }
    }
}
