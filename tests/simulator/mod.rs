//! What every limiter has to do, one request after the other and from the definitions alone.
//!
//! - **GCRA**: a bucket of `burst` units which gets one back every `interval`. It is kept in
//!   nanoseconds of refilling, so that parts of a unit are exact.
//! - **Sliding window**: a list of what was taken in which slot. A slot is a 32nd of the window,
//!   counted from the origin of the clock. 33 are live: the current one and the 32 before it.
//!
//! Times never go backwards here.

#![allow(dead_code, reason = "not every test uses all of it")]

pub(crate) mod requests;

use std::{
    collections::{BTreeMap, HashMap},
    num::NonZeroU32,
    time::Duration,
};

use tower_api_key::rate_limit::{Algorithm, BucketId, Check, Decision, Decisions, Quota};

const SLOTS: u128 = 32;
const LIVE: u128 = SLOTS + 1;

/// The answer of a limiter, now or later.
pub(crate) async fn decided(check: Check) -> Decisions {
    match check {
        Check::Ready(decisions) => decisions,
        Check::Pending(decisions) => decisions.await,
        other => panic!("{other:?}"),
    }
}

/// A limiter to compare others with.
#[derive(Clone, Default)]
pub(crate) struct Simulator {
    buckets: HashMap<BucketId, Bucket>,
}

impl Simulator {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// `RateLimiter::buckets`: from here on the quotas are these.
    pub(crate) fn buckets(&mut self, quotas: &[(BucketId, Quota)], now: Duration) {
        for (id, quota) in quotas {
            let bucket = self.buckets.entry(id.clone());
            bucket
                .and_modify(|bucket| bucket.change(quota, now.as_nanos()))
                .or_insert_with(|| Bucket::full(quota, now.as_nanos()));
        }
    }

    /// `Buckets::take`: of all of them or of none.
    pub(crate) fn take(
        &mut self,
        quotas: &[(BucketId, Quota)],
        units: NonZeroU32,
        now: Duration,
    ) -> Decisions {
        let (now, units) = (now.as_nanos(), units.get());
        let fits = self.look(quotas, units, now).is_admitted();
        if fits {
            self.each(quotas, |bucket| bucket.book(units.into(), now));
        }
        let decision = |(id, _): &(BucketId, Quota)| {
            let bucket = &self.buckets[id];
            if fits { bucket.standing(now) } else { bucket.look(units, now) }
        };
        quotas.iter().map(decision).collect()
    }

    /// `Buckets::peek`
    pub(crate) fn peek(&self, quotas: &[(BucketId, Quota)], now: Duration) -> Decisions {
        self.look(quotas, 1, now.as_nanos())
    }

    /// `Buckets::charge`: at most until as much is owed as fits into a full bucket.
    pub(crate) fn charge(
        &mut self,
        quotas: &[(BucketId, Quota)],
        units: NonZeroU32,
        now: Duration,
    ) {
        let now = now.as_nanos();
        self.each(quotas, |bucket| bucket.charge(units.get().into(), now));
    }

    /// `Buckets::give_back`: never more than a full bucket.
    pub(crate) fn give_back(
        &mut self,
        quotas: &[(BucketId, Quota)],
        units: NonZeroU32,
        now: Duration,
    ) {
        let now = now.as_nanos();
        self.each(quotas, |bucket| bucket.give_back(units.get().into(), now));
    }

    fn each(&mut self, quotas: &[(BucketId, Quota)], mut action: impl FnMut(&mut Bucket)) {
        for (id, _) in quotas {
            action(self.buckets.get_mut(id).unwrap());
        }
    }

    fn look(&self, quotas: &[(BucketId, Quota)], units: u32, now: u128) -> Decisions {
        quotas.iter().map(|(id, _)| self.buckets[id].look(units, now)).collect()
    }
}

#[derive(Clone)]
struct Bucket {
    quota: Quota,
    counter: Counter,
}

#[derive(Clone)]
enum Counter {
    /// Nanoseconds of refilling that it holds, at a time. Less than nothing is owed.
    Gcra { holds: i128, at: u128 },
    /// Units by the number of the slot that they were taken in.
    Sliding(BTreeMap<u128, u128>),
}

impl Bucket {
    fn full(quota: &Quota, now: u128) -> Self {
        let counter = match quota.algorithm() {
            Algorithm::Gcra => Counter::Gcra { holds: signed(quota.refill_time()), at: now },
            Algorithm::SlidingWindow => Counter::Sliding(BTreeMap::new()),
            other => panic!("{other:?}"),
        };
        Self { quota: quota.clone(), counter }
    }

    /// A window of the same length goes on with what was taken. Anything else is as full as it was,
    /// rounded down, and owes as much.
    fn change(&mut self, quota: &Quota, now: u128) {
        let (earlier, later) = (self.quota.algorithm(), quota.algorithm());
        let goes_on = earlier == later
            && later == Algorithm::SlidingWindow
            && self.quota.window() == quota.window();
        if goes_on || self.quota == *quota {
            self.quota = quota.clone();
            return;
        }
        let (used, of) = match &self.counter {
            Counter::Gcra { .. } => {
                let capacity = signed(self.quota.refill_time());
                (u128::try_from(capacity - self.holds(now)).unwrap(), capacity.unsigned_abs())
            }
            Counter::Sliding(_) => (self.used(now), self.quota.limit().into()),
        };
        let used = used.min(2 * of);
        *self = Self::full(quota, now);
        match &mut self.counter {
            Counter::Gcra { holds, .. } => {
                let used = (used * quota.refill_time().as_nanos()).div_ceil(of);
                *holds -= i128::try_from(used).unwrap();
            }
            Counter::Sliding(_) => {
                self.book((used * u128::from(quota.limit())).div_ceil(of), now);
            }
        }
    }

    /// What it says of a request that it has not admitted yet.
    fn look(&self, units: u32, now: u128) -> Decision {
        let standing = self.standing(now);
        if self.fits(units, now) {
            return standing;
        }
        let wait = match &self.counter {
            _ if units > self.quota.burst_size().get() => Duration::MAX,
            Counter::Gcra { .. } => {
                let needed = signed(self.quota.interval()) * i128::from(units);
                nanos(u128::try_from(needed - self.holds(now)).unwrap())
            }
            Counter::Sliding(taken) => {
                let changes = taken.keys().map(|slot| (slot + LIVE) * self.slot());
                let fits = |at: &u128| *at > now && self.fits(units, *at);
                nanos(changes.filter(fits).min().unwrap() - now)
            }
        };
        Decision::deny_with(standing.remaining(), wait)
    }

    fn fits(&self, units: u32, now: u128) -> bool {
        match &self.counter {
            Counter::Gcra { .. } => {
                self.holds(now) >= signed(self.quota.interval()) * i128::from(units)
            }
            Counter::Sliding(_) => self.used(now) + u128::from(units) <= self.quota.limit().into(),
        }
    }

    /// What is left, and the time until one unit more is.
    fn standing(&self, now: u128) -> Decision {
        match &self.counter {
            Counter::Gcra { .. } => {
                let (holds, unit) = (self.holds(now), signed(self.quota.interval()));
                let left = holds.max(0) / unit;
                let next = if holds == signed(self.quota.refill_time()) {
                    0
                } else {
                    u128::try_from((left + 1) * unit - holds).unwrap()
                };
                Decision::admit(u32::try_from(left).unwrap(), nanos(next))
            }
            Counter::Sliding(taken) => {
                let left = u128::from(self.quota.limit()).saturating_sub(self.used(now));
                let live =
                    taken.iter().filter(|(slot, units)| self.is_live(**slot, now) && **units > 0);
                let next = live.map(|(slot, _)| (slot + LIVE) * self.slot() - now).min();
                Decision::admit(u32::try_from(left).unwrap(), nanos(next.unwrap_or(0)))
            }
        }
    }

    fn book(&mut self, units: u128, now: u128) {
        let (holds, number, unit) =
            (self.holds(now), now / self.slot(), signed(self.quota.interval()));
        match &mut self.counter {
            Counter::Gcra { holds: left, at } => {
                (*left, *at) = (holds - i128::try_from(units).unwrap() * unit, now);
            }
            Counter::Sliding(taken) => *taken.entry(number).or_default() += units,
        }
    }

    fn charge(&mut self, units: u128, now: u128) {
        let room = match &self.counter {
            Counter::Gcra { .. } => {
                let capacity = signed(self.quota.refill_time());
                let room = self.holds(now) + capacity;
                let needed = i128::try_from(units).unwrap() * signed(self.quota.interval());
                if needed > room {
                    self.counter = Counter::Gcra { holds: -capacity, at: now };
                    return;
                }
                units
            }
            Counter::Sliding(_) => {
                (2 * u128::from(self.quota.limit())).saturating_sub(self.used(now))
            }
        };
        self.book(units.min(room), now);
    }

    fn give_back(&mut self, units: u128, now: u128) {
        let (holds, full) = (self.holds(now), signed(self.quota.refill_time()));
        let (unit, oldest) =
            (signed(self.quota.interval()), (now / self.slot()).saturating_sub(SLOTS));
        match &mut self.counter {
            Counter::Gcra { holds: left, at } => {
                (*left, *at) = ((holds + i128::try_from(units).unwrap() * unit).min(full), now);
            }
            // Those that were taken last.
            Counter::Sliding(taken) => {
                let mut rest = units;
                for (_, units) in taken.range_mut(oldest..).rev() {
                    let returned = rest.min(*units);
                    *units -= returned;
                    rest -= returned;
                }
            }
        }
    }

    /// Of a bucket of GCRA.
    fn holds(&self, now: u128) -> i128 {
        match self.counter {
            Counter::Gcra { holds, at } => {
                let refilled = i128::try_from(now - at).unwrap();
                (holds + refilled).min(signed(self.quota.refill_time()))
            }
            Counter::Sliding(_) => 0,
        }
    }

    /// Of a sliding window.
    fn used(&self, now: u128) -> u128 {
        match &self.counter {
            Counter::Gcra { .. } => 0,
            Counter::Sliding(taken) => {
                let live = taken.iter().filter(|(slot, _)| self.is_live(**slot, now));
                live.map(|(_, units)| units).sum()
            }
        }
    }

    fn is_live(&self, slot: u128, now: u128) -> bool {
        slot + LIVE > now / self.slot()
    }

    fn slot(&self) -> u128 {
        self.quota.window().as_nanos().div_ceil(SLOTS)
    }
}

fn signed(duration: Duration) -> i128 {
    i128::try_from(duration.as_nanos()).unwrap()
}

fn nanos(nanos: u128) -> Duration {
    Duration::from_nanos(u64::try_from(nanos).unwrap())
}
