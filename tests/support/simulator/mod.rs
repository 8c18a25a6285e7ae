//! A reference limiter: one request after the other, straight from the definitions.
//!
//! - **GCRA**: a bucket of `burst` units which gets one back every `interval`. It is kept in
//!   nanoseconds of refilling, so that parts of a unit are exact.
//! - **Sliding window**: a list of the units taken in each slot. A slot is a 32nd of the window,
//!   counted from the origin of the clock. 33 are live: the current one and the 32 before it.
//!
//! Time never goes backwards here.

#![allow(dead_code, reason = "not every test uses all of it")]

pub(crate) mod changes;
pub(crate) mod requests;

use std::{
    collections::{BTreeMap, HashMap},
    num::NonZeroU32,
    time::Duration,
};

use tower_api_key::rate_limit::{
    Algorithm, Decision, Quota,
    port::{Check, Decisions},
};

const SLOTS: u128 = 32;
const LIVE: u128 = SLOTS + 1;

/// The decisions of a limiter, awaited if pending.
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
    buckets: HashMap<String, Bucket>,
}

impl Simulator {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// `RateLimiter::buckets`, for an unused key.
    pub(crate) fn buckets(&mut self, quotas: &[Quota], now: Duration) {
        let full = |quota: &Quota| (quota.name().to_owned(), Bucket::full(quota, now.as_nanos()));
        self.buckets = quotas.iter().map(full).collect();
    }

    /// Renames the quotas, which changes no bucket.
    pub(crate) fn rename(&mut self, from: &[Quota], to: &[Quota]) {
        let pairs: Vec<_> = from.iter().zip(to).collect();
        let mut renamed = HashMap::new();
        for (from, to) in pairs {
            renamed.insert(to.name().to_owned(), self.buckets.remove(from.name()).unwrap());
        }
        self.buckets = renamed;
    }

    /// Adds a full bucket beside the others.
    pub(crate) fn add_full(&mut self, quota: &Quota, now: Duration) {
        self.buckets.insert(quota.name().to_owned(), Bucket::full(quota, now.as_nanos()));
    }

    /// Adds a bucket that lacks as many units as the one of `other`, with the same algorithm and,
    /// if it is a sliding window, the same window.
    pub(crate) fn add_lacking(&mut self, quota: &Quota, other: &Quota, now: Duration) {
        let bucket = self.buckets[other.name()].as_of(quota, now.as_nanos());
        self.buckets.insert(quota.name().to_owned(), bucket);
    }

    /// Whether `units` fit.
    pub(crate) fn fits(&self, quotas: &[Quota], units: NonZeroU32, now: Duration) -> bool {
        self.look(quotas, units.get(), now.as_nanos()).is_admitted()
    }

    /// Counts units that other quotas admitted, whether they fit or not. A bucket owes at most what
    /// refills in `beyond`, unless it owed more before.
    pub(crate) fn count(
        &mut self,
        quotas: &[Quota],
        units: NonZeroU32,
        beyond: Option<Duration>,
        now: Duration,
    ) {
        let now = now.as_nanos();
        self.each(quotas, |bucket| {
            let before = bucket.holds(now);
            bucket.book(units.get().into(), now);
            if let (Some(beyond), Counter::Gcra { holds, .. }) = (beyond, &mut bucket.counter) {
                *holds = (*holds).max(before.min(-signed(beyond)));
            }
        });
    }

    /// `Buckets::take`: from all of them or from none.
    pub(crate) fn take(&mut self, quotas: &[Quota], units: NonZeroU32, now: Duration) -> Decisions {
        let (now, units) = (now.as_nanos(), units.get());
        let fits = self.look(quotas, units, now).is_admitted();
        if fits {
            self.each(quotas, |bucket| bucket.book(units.into(), now));
        }
        let decision = |quota: &Quota| {
            let bucket = &self.buckets[quota.name()];
            if fits { bucket.rate_limit_status(now) } else { bucket.look(units, now) }
        };
        quotas.iter().map(decision).collect()
    }

    /// `Buckets::peek`
    pub(crate) fn peek(&self, quotas: &[Quota], now: Duration) -> Decisions {
        self.look(quotas, 1, now.as_nanos())
    }

    /// `Buckets::charge`: the debt is at most one full bucket.
    pub(crate) fn charge(&mut self, quotas: &[Quota], units: NonZeroU32, now: Duration) {
        let now = now.as_nanos();
        self.each(quotas, |bucket| bucket.charge(units.get().into(), now));
    }

    /// `Buckets::give_back`: at most up to a full bucket.
    pub(crate) fn give_back(&mut self, quotas: &[Quota], units: NonZeroU32, now: Duration) {
        let now = now.as_nanos();
        self.each(quotas, |bucket| bucket.give_back(units.get().into(), now));
    }

    fn each(&mut self, quotas: &[Quota], mut action: impl FnMut(&mut Bucket)) {
        for quota in quotas {
            action(self.buckets.get_mut(quota.name()).unwrap());
        }
    }

    fn look(&self, quotas: &[Quota], units: u32, now: u128) -> Decisions {
        quotas.iter().map(|quota| self.buckets[quota.name()].look(units, now)).collect()
    }
}

#[derive(Clone)]
struct Bucket {
    quota: Quota,
    counter: Counter,
}

#[derive(Clone)]
enum Counter {
    /// The content at a time, in nanoseconds of refilling. Negative is debt.
    Gcra { holds: i128, at: u128 },
    /// Units taken, by slot number.
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

    fn as_of(&self, quota: &Quota, now: u128) -> Self {
        let mut new = Self::full(quota, now);
        if let (Counter::Gcra { holds, .. }, Counter::Gcra { .. }) =
            (&mut new.counter, &self.counter)
        {
            let lacking = signed(self.quota.refill_time()) - self.holds(now);
            let (unit, other) = (signed(quota.interval()), signed(self.quota.interval()));
            // Rounded up.
            *holds -= (lacking * unit + other - 1) / other;
        } else {
            assert_eq!(self.quota.window(), quota.window());
            new.counter = self.counter.clone();
        }
        new
    }

    /// The decision on a request, without taking its units.
    fn look(&self, units: u32, now: u128) -> Decision {
        let rate_limit_status = self.rate_limit_status(now);
        if self.fits(units, now) {
            return rate_limit_status;
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
        Decision::deny_with(rate_limit_status.remaining(), wait)
    }

    fn fits(&self, units: u32, now: u128) -> bool {
        match &self.counter {
            Counter::Gcra { .. } => {
                self.holds(now) >= signed(self.quota.interval()) * i128::from(units)
            }
            Counter::Sliding(_) => self.used(now) + u128::from(units) <= self.quota.limit().into(),
        }
    }

    /// The units left, and the time until the next one.
    fn rate_limit_status(&self, now: u128) -> Decision {
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
            // The most recent units.
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

    /// The content of a GCRA bucket.
    fn holds(&self, now: u128) -> i128 {
        match self.counter {
            Counter::Gcra { holds, at } => {
                let refilled = i128::try_from(now - at).unwrap();
                (holds + refilled).min(signed(self.quota.refill_time()))
            }
            Counter::Sliding(_) => 0,
        }
    }

    /// The units used in a sliding window.
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
