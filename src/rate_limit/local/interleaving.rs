//! What other requests do between any two steps of a request.
//!
//! A step is an access to one [`State`](super::state::State). A test says what happens before which
//! step, so it finds each time what threads find once in a thousand runs.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    num::NonZeroU32,
    rc::Rc,
    time::Duration,
};

use super::{BucketSet, LocalRateLimiter};
use crate::rate_limit::{Algorithm, CountedPer, Quota, RateLimits, port::Subject};

type Act = Box<dyn FnOnce()>;

thread_local! {
    /// What others do before each of the next steps.
    static ACTS: RefCell<VecDeque<Vec<Act>>> = const { RefCell::new(VecDeque::new()) };
}

/// Called before each step.
pub(super) fn step() {
    // The acts themselves are not interrupted.
    let mut later = ACTS.take();
    for act in later.pop_front().unwrap_or_default() {
        act();
    }
    ACTS.set(later);
}

/// Until this is dropped, others do not act: they would wait for a lock.
pub(super) struct Locked(VecDeque<Vec<Act>>);

pub(super) fn locked() -> Locked {
    Locked(ACTS.take())
}

impl Drop for Locked {
    fn drop(&mut self) {
        ACTS.set(std::mem::take(&mut self.0));
    }
}

/// The first steps of a request, before each of which others may act.
const STEPS: usize = 8;

/// Runs `request`, and each act before the step with its number.
fn interrupted<T>(acts: Vec<(usize, Act)>, request: impl FnOnce() -> T) -> T {
    let mut steps: VecDeque<Vec<Act>> = (0..STEPS).map(|_| Vec::new()).collect();
    for (at, act) in acts {
        steps[at].push(act);
    }
    ACTS.set(steps);
    let done = request();
    ACTS.set(VecDeque::new());
    done
}

const HOUR: Duration = Duration::from_secs(3600);
/// Time stands still, so nothing refills.
const NOW: u64 = 1_000_000_000_000;
/// The limit of the smallest quota of a list, which decides.
const LIMIT: u32 = 5;

fn sliding(limit: u32) -> Quota {
    Quota::sliding(limit, HOUR).unwrap()
}

fn gcra(limit: u32) -> Quota {
    Quota::per(limit, HOUR).unwrap()
}

fn lists() -> impl Iterator<Item = RateLimits> {
    let lists = [
        vec![sliding(LIMIT)],
        vec![gcra(LIMIT)],
        vec![sliding(LIMIT), sliding(9)],
        vec![gcra(9), gcra(LIMIT)],
        vec![sliding(LIMIT), gcra(9)],
        vec![gcra(LIMIT), sliding(9)],
        vec![sliding(9), sliding(LIMIT).per_consumer()],
        vec![gcra(9), gcra(LIMIT).per_consumer()],
        vec![sliding(9), gcra(LIMIT).per_consumer()],
        vec![sliding(LIMIT).per_consumer()],
        vec![gcra(LIMIT).per_consumer()],
    ];
    let named = |(quota, name): (Quota, &str)| quota.named(name.to_owned()).unwrap();
    lists
        .map(|list| RateLimits::new(list.into_iter().zip(["a", "b"]).map(named)).unwrap())
        .into_iter()
}

/// The buckets of a key, and what has been counted in them.
struct Key {
    limiter: LocalRateLimiter,
    counted: Cell<u32>,
    /// The units that another request took last.
    taken: Cell<u32>,
    /// Sets of buckets that joined later, with their quotas.
    joined: RefCell<Vec<(BucketSet, RateLimits)>>,
    /// The buckets of other keys of the consumer, with a quota of [`JOINED`] for all of them.
    siblings: RefCell<Vec<BucketSet>>,
}

/// The limit of a quota that joins.
const JOINED: u32 = 20;

impl Key {
    fn new() -> Rc<Self> {
        let limiter = LocalRateLimiter::new();
        Rc::new(Self {
            limiter,
            counted: Cell::new(0),
            taken: Cell::new(0),
            joined: RefCell::default(),
            siblings: RefCell::default(),
        })
    }

    fn buckets(&self, quotas: &RateLimits) -> BucketSet {
        self.limiter.set(&Subject::of_key("acme", 1), quotas, Duration::from_nanos(NOW))
    }

    fn take(&self, buckets: &BucketSet, wanted: u32) -> bool {
        let is_admitted = buckets.take_all(units(wanted), NOW).is_admitted();
        if is_admitted {
            self.count(i64::from(wanted));
        }
        is_admitted
    }

    fn count(&self, units: i64) {
        let counted = i64::from(self.counted.get()) + units;
        self.counted.set(counted.try_into().unwrap());
    }

    /// Asserts that quotas that joined for all keys of the consumer have counted the units of this
    /// one, if it has such a quota, too.
    fn check_siblings(&self, quotas: &RateLimits, case: &str) {
        if quotas.iter().any(|quota| quota.counted_per() == CountedPer::Consumer) {
            for sibling in &*self.siblings.borrow() {
                let left = sibling.peek_all(units(1), NOW)[0].remaining();
                let most = JOINED - self.counted.get();
                assert!(left <= most, "{left} left to siblings instead of {most}: {case}");
            }
        }
    }

    /// Asserts that each quota has counted all units. What a request took and undid may stay counted
    /// in a GCRA bucket that others changed meanwhile, or in debt of a window that another list
    /// exceeded meanwhile: at most `undone` units.
    fn check(&self, quotas: &RateLimits, undone: u32, case: &str) {
        self.check_siblings(quotas, case);
        let joined = self.joined.borrow();
        for quotas in joined.iter().map(|(_, quotas)| quotas).chain([quotas]) {
            let decisions = self.buckets(quotas).peek_all(units(1), NOW);
            let is_exact = joined.is_empty() && !quotas.iter().any(is_gcra);
            let undone = if is_exact { 0 } else { undone };
            for (decision, quota) in decisions.iter().zip(quotas.iter()) {
                let most = quota.limit().saturating_sub(self.counted.get());
                let left = decision.remaining();
                assert!(left <= most, "{left} left of {quota:?} instead of {most}: {case}");
                let least = most.saturating_sub(undone);
                assert!(left >= least, "{left} left of {quota:?} instead of {least}: {case}");
            }
        }
    }
}

fn is_gcra(quota: &Quota) -> bool {
    quota.algorithm() == Algorithm::Gcra
}

fn units(units: u32) -> NonZeroU32 {
    NonZeroU32::new(units).unwrap()
}

/// What another request does meanwhile.
#[derive(Clone, Copy, Debug)]
enum Other {
    Take(u32),
    /// Gives back what was taken by the one before.
    GiveBack,
    Charge(u32),
    /// A list with this quota joins, and takes units.
    Join(fn(u32) -> Quota, u32),
    /// A list with this quota joins.
    Load(fn(u32) -> Quota),
    /// Another key of the consumer joins with this quota for all of them.
    LoadSibling(fn(u32) -> Quota),
}

impl Other {
    fn act(self, key: &Rc<Key>, quotas: &RateLimits) -> Act {
        let (key, buckets) = (Rc::clone(key), key.buckets(quotas));
        Box::new(move || match self {
            Self::Take(wanted) => {
                key.taken.set(if key.take(&buckets, wanted) { wanted } else { 0 });
            }
            Self::GiveBack => {
                if let Some(taken) = NonZeroU32::new(key.taken.get()) {
                    buckets.give_back_all(taken, NOW);
                    key.count(-i64::from(taken.get()));
                }
            }
            Self::Charge(charged) => {
                buckets.charge_all(units(charged), NOW);
                key.count(charged.into());
            }
            Self::Join(quota, wanted) => {
                let quotas = RateLimits::from(quota(JOINED));
                let joined = key.buckets(&quotas);
                key.take(&joined, wanted);
                key.joined.borrow_mut().push((joined, quotas));
            }
            Self::Load(quota) => drop(key.buckets(&quota(JOINED).into())),
            Self::LoadSibling(quota) => {
                let quotas = quota(JOINED).per_consumer().into();
                let subject = Subject::of_key("acme", 2);
                let buckets = key.limiter.set(&subject, &quotas, Duration::from_nanos(NOW));
                key.siblings.borrow_mut().push(buckets);
            }
        })
    }
}

/// Runs `request` for each list of quotas, each number of units taken before, and each pair of
/// steps before which the others act.
fn in_all_cases(others: [Other; 2], undone: u32, request: impl Fn(&Key, &BucketSet, &str)) {
    for quotas in lists() {
        for (first, then) in
            (0..STEPS).flat_map(|first| (first..STEPS).map(move |then| (first, then)))
        {
            for before in [0, 2, 4] {
                let key = Key::new();
                let own = key.buckets(&quotas);
                assert!(before == 0 || key.take(&own, before));
                let acts =
                    [first, then].into_iter().zip(others.map(|other| other.act(&key, &quotas)));
                let case =
                    format!("{quotas:?}, {before} taken, {others:?} before {first} and {then}");
                interrupted(acts.collect(), || request(&key, &own, &case));
                key.check(&quotas, undone, &case);
            }
        }
    }
}

#[test]
fn a_request_that_others_overtake_is_counted_or_denied() {
    for (wanted, others) in [(1, [1, 1]), (1, [4, 1]), (2, [3, 2]), (3, [2, 2]), (5, [1, 4])] {
        in_all_cases(others.map(Other::Take), 2 * wanted, |key, own, case| {
            let is_admitted = key.take(own, wanted);
            assert!(key.counted.get() <= LIMIT, "{} taken: {case}", key.counted.get());
            assert!(is_admitted || key.counted.get() + wanted > LIMIT, "denied: {case}");
        });
    }
}

/// What was seen in between is not what is so in the end.
#[test]
fn a_request_whose_rivals_give_back_is_counted_or_denied() {
    for (wanted, taken) in [(1, 1), (1, 4), (2, 4), (3, 3), (5, 1)] {
        in_all_cases([Other::Take(taken), Other::GiveBack], 2 * wanted, |key, own, case| {
            key.take(own, wanted);
            assert!(key.counted.get() <= LIMIT, "{} taken: {case}", key.counted.get());
        });
    }
}

/// Units that are taken without the lock are counted by a quota that joins at the same time.
#[test]
fn a_quota_that_joins_during_a_request_counts_it_and_is_counted() {
    for quota in [sliding, gcra] {
        for (wanted, others) in [(1, 1), (3, 4)] {
            let joins = [Other::Join(quota, others), Other::Take(1)];
            in_all_cases(joins, u32::MAX, |key, own, _| _ = key.take(own, wanted));
            in_all_cases(joins, u32::MAX, |key, own, _| {
                own.charge_all(units(wanted), NOW);
                key.count(wanted.into());
            });
        }
    }
}

#[test]
fn a_charge_during_a_request_is_counted() {
    for (wanted, charged) in [(1, 1), (1, 4), (3, 3)] {
        in_all_cases([Other::Charge(charged), Other::Take(1)], 2 * wanted, |key, own, _| {
            key.take(own, wanted);
        });
    }
}

/// What it took before is undone when it takes again.
#[test]
fn a_request_during_which_quotas_join_is_counted_once() {
    for wanted in [1, 3] {
        for (one, other) in
            [(sliding as fn(u32) -> Quota, gcra as fn(u32) -> Quota), (gcra, sliding)]
        {
            for others in [
                [Other::Load(one), Other::Load(other)],
                [Other::LoadSibling(one), Other::LoadSibling(other)],
            ] {
                in_all_cases(others, 0, |key, own, case| {
                    let fits = key.counted.get() + wanted <= LIMIT;
                    assert_eq!(key.take(own, wanted), fits, "{case}");
                });
                in_all_cases(others, 0, |key, own, _| {
                    own.charge_all(units(wanted), NOW);
                    key.count(wanted.into());
                });
            }
        }
    }
}
