use std::{
    num::NonZeroU32,
    sync::{Arc, OnceLock},
    time::Duration,
};

use super::{
    Decision, RateLimiter, RateLimits,
    port::{Buckets, Check, Decisions, Subject},
};
use crate::clock::Clock;

/// Shared by all meters of an authenticator.
pub(crate) struct Meters {
    pub(crate) limiter: Arc<dyn RateLimiter>,
    pub(crate) clock: Arc<dyn Clock>,
}

/// The limits of a key and its live buckets, for as long as the key is cached.
pub(crate) struct Meter {
    meters: Arc<Meters>,
    limits: RateLimits,
    /// `None` if there is no limit.
    buckets: Option<Arc<dyn Buckets>>,
    classes: Classes,
}

/// The buckets of each class of routes that the key has used. A linked list, since there are few.
#[derive(Default)]
struct Classes(OnceLock<Box<Class>>);

struct Class {
    name: Box<str>,
    limits: RateLimits,
    buckets: Option<Arc<dyn Buckets>>,
    more: Classes,
}

impl Meter {
    pub(crate) fn new(
        meters: &Arc<Meters>,
        limits: RateLimits,
        subject: Subject<'_>,
        now: Duration,
    ) -> Self {
        let buckets = buckets(meters, &limits, subject, now);
        Self { meters: Arc::clone(meters), limits, buckets, classes: Classes::default() }
    }

    pub(crate) fn limits(&self) -> &RateLimits {
        &self.limits
    }

    /// `None` if there is no limit.
    pub(crate) fn buckets(&self) -> Option<&Arc<dyn Buckets>> {
        self.buckets.as_ref()
    }

    /// Takes `units`, or peeks if that is `None`. Returns `None` if there is no limit.
    pub(crate) fn ask(&self, units: Option<NonZeroU32>, now: Duration) -> Option<Check> {
        let buckets = self.buckets.as_ref()?;
        Some(match units {
            Some(units) => buckets.take(units, now),
            None => buckets.peek(now),
        })
    }

    pub(crate) fn now(&self) -> Duration {
        self.meters.clock.monotonic()
    }

    /// The buckets for routes of the class `name`, beside those of the key.
    pub(crate) fn buckets_of(
        &self,
        name: &str,
        limits: &RateLimits,
        subject: Subject<'_>,
        now: Duration,
    ) -> Option<&Arc<dyn Buckets>> {
        let mut classes = &self.classes;
        loop {
            let class = classes.0.get_or_init(|| {
                let buckets = buckets(&self.meters, limits, subject.in_class(name), now);
                let (limits, more) = (limits.clone(), Classes::default());
                Box::new(Class { name: name.into(), limits, buckets, more })
            });
            if class.limits == *limits && *class.name == *name {
                return class.buckets.as_ref();
            }
            classes = &class.more;
        }
    }

    /// Adjusts the charge from `taken` to `wanted` units, and returns the state of the quotas after
    /// that.
    pub(crate) fn settle(&self, before: &Decisions, taken: u32, wanted: u32) -> Decisions {
        let Some(buckets) = &self.buckets else { return before.clone() };
        let now = self.now();
        if let Some(missing) = NonZeroU32::new(wanted.saturating_sub(taken)) {
            buckets.charge(missing, now);
        }
        if let Some(too_many) = NonZeroU32::new(taken.saturating_sub(wanted)) {
            buckets.give_back(too_many, now);
        }
        match buckets.peek(now) {
            Check::Ready(decisions) => decisions,
            // Not worth waiting for: an estimate suffices for the client.
            Check::Pending(_) => {
                let after = |before: &Decision| {
                    let left = before.remaining().saturating_add(taken).saturating_sub(wanted);
                    Decision::admit(left, before.next_unit_in())
                };
                before.iter().map(after).collect()
            }
        }
    }
}

fn buckets(
    meters: &Meters,
    limits: &RateLimits,
    subject: Subject<'_>,
    now: Duration,
) -> Option<Arc<dyn Buckets>> {
    (!limits.is_unlimited()).then(|| meters.limiter.buckets(&subject, limits, now))
}
