//! Scenarios of clients whose quotas change, and the invariants of a limiter in all of them.
//!
//! For another limiter:
//!
//! ```ignore
//! use simulator::changes::{check, scenario};
//!
//! proptest! {
//!     #[test]
//!     fn no_change_of_quotas_lets_more_through(scenario in scenario()) {
//!         run(check(&limiter, &scenario));
//!     }
//! }
//! ```
//!
//! The limiter must decide by the times passed to its calls, in the order of the calls (`InOrder`
//! of `redis_limiter` does). Each run has a consumer of its own. The oracle records everything that
//! was admitted, and shares nothing with a limiter except [`Quota::most_in`].

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use proptest::{collection::vec, prelude::*, sample::Index};
use tower_api_key::rate_limit::{
    Algorithm, CountedPer, Decision, Quota, RateLimiter,
    port::{Buckets, Subject},
};

use super::{
    decided,
    requests::{limits, wait},
};

/// A limiter may forget a bucket that was full and unused for this long.
const RETENTION: Duration = Duration::from_secs(600);
/// The longest debt that the other quotas can leave in the slowest quota here.
const LONG: Duration = Duration::from_secs(2_000 * 3600);
const KEYS: u128 = 2;

#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) lists: Vec<Vec<Quota>>,
    pub(crate) steps: Vec<Step>,
}

impl Scenario {
    /// Whether any two rates are equal, or differ by more than roundings do.
    fn rates_differ_or_are_equal(&self) -> bool {
        let rate = |quota: &Quota| match quota.algorithm() {
            Algorithm::SlidingWindow => (u128::from(quota.limit()), quota.window().as_nanos()),
            _ => (1, quota.interval().as_nanos()),
        };
        let rates: Vec<_> = self.lists.iter().flatten().map(rate).collect();
        let is_apart = |(units, nanos): (u128, u128), (others, of): (u128, u128)| {
            let (one, other) = (units * of, others * nanos);
            one == other || one.abs_diff(other) > one / 100_000
        };
        rates.iter().all(|one| rates.iter().all(|other| is_apart(*one, *other)))
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// A key, which may have been rotated since, is loaded with one of the lists.
    Load {
        key: u128,
        list: Index,
    },
    /// One loaded key is evicted.
    Forget(Index),
    Take {
        by: Index,
        units: u32,
    },
    /// Takes everything that is left.
    Drain {
        by: Index,
    },
    /// Gives back the last take.
    GiveBack,
    /// Waits for this many 1000ths of the window of a quota.
    Wait(Index, u32),
    /// Waits as long as the last denied request was told to.
    WaitAsTold,
    Sweep,
}

pub(crate) fn scenario() -> impl Strategy<Value = Scenario> {
    prop_oneof![scenario_of(any_quota().boxed()), scenario_of(tiny_quota().boxed())]
}

fn scenario_of(quota: BoxedStrategy<Quota>) -> impl Strategy<Value = Scenario> {
    let list = vec(quota, 1..=3).prop_map(|quotas| {
        let named = |(at, quota): (usize, Quota)| quota.named(format!("quota.{at}")).unwrap();
        quotas.into_iter().enumerate().map(named).collect::<Vec<_>>()
    });
    let index = any::<Index>;
    // Often a round part of a window, at which slots begin and end.
    let parts = prop_oneof![0..1_500_u32, (0..16_u32).prop_map(|eighths| eighths * 125)];
    let step = prop_oneof![
        4 => (0..KEYS, index()).prop_map(|(key, list)| Step::Load { key, list }),
        1 => index().prop_map(Step::Forget),
        4 => (index(), 1..6_u32).prop_map(|(by, units)| Step::Take { by, units }),
        6 => index().prop_map(|by| Step::Drain { by }),
        1 => Just(Step::GiveBack),
        6 => (index(), parts).prop_map(|(of, parts)| Step::Wait(of, parts)),
        2 => Just(Step::WaitAsTold),
        1 => Just(Step::Sweep),
    ];
    (vec(list, 1..=5), vec(step, 1..40)).prop_map(|(lists, steps)| Scenario { lists, steps })
}

/// A small quota, so that it is used up often.
fn any_quota() -> impl Strategy<Value = Quota> {
    let millis = prop_oneof![100..1_000_u64, 1_000..60_000_u64, 60_000..3_600_000_u64];
    (1..50_u32, millis, 1..50_u32)
        .prop_flat_map(|(limit, millis, burst)| quota(limit, Duration::from_millis(millis), burst))
}

/// A quota whose numbers are often those of another one, as when only the limit of a plan changes.
fn tiny_quota() -> impl Strategy<Value = Quota> {
    let numbers = (prop_oneof![1..6_u32, Just(12)], 1..4_u32, 1..6_u32);
    numbers.prop_flat_map(|(limit, windows, burst)| {
        quota(limit, Duration::from_millis(100) * windows, burst)
    })
}

fn quota(limit: u32, window: Duration, burst: u32) -> impl Strategy<Value = Quota> {
    (0..5_u32, any::<bool>()).prop_map(move |(kind, per_consumer)| {
        let quota = match kind {
            0 => Quota::per(limit, window).unwrap(),
            1 => Quota::per(limit, window).unwrap().burst(burst).unwrap(),
            2 => Quota::at_most(limit, window).unwrap(),
            _ => Quota::sliding(limit, window).unwrap(),
        };
        if per_consumer { quota.per_consumer() } else { quota }
    })
}

/// Everything admitted for a subject, and its quotas at the time.
#[derive(Default)]
struct Record {
    lists: Vec<Vec<Quota>>,
    /// Times and units, minus those given back.
    units: Vec<(Duration, i64)>,
    last: Duration,
    /// Times when a limiter may have forgotten a list of quotas or the subject, unused for
    /// [`RETENTION`].
    pauses: Vec<Duration>,
    /// For each list, how many keys are loaded with it, and since when none is.
    loaded: Vec<(usize, Duration)>,
}

impl Record {
    /// Adds a key with this list, and returns the list's number.
    fn apply(&mut self, list: Vec<Quota>, now: Duration) -> usize {
        let is_unused =
            |(loaded, since): &(usize, Duration)| *loaded == 0 && *since + RETENTION <= now;
        if self.loaded.iter().any(is_unused) {
            self.pauses.push(now);
        }
        let known = self.lists.iter().position(|known| *known == list);
        let at = known.unwrap_or_else(|| {
            self.lists.push(list);
            self.loaded.push((0, now));
            self.lists.len() - 1
        });
        self.loaded[at].0 += 1;
        at
    }

    fn forget(&mut self, list: usize, now: Duration) {
        let (loaded, since) = &mut self.loaded[list];
        (*loaded, *since) = (*loaded - 1, now);
    }

    fn count(&mut self, units: i64, now: Duration) {
        if now >= self.last + RETENTION {
            self.pauses.push(now);
        }
        self.last = now;
        self.units.push((now, units));
    }

    /// Asserts that in any interval that ends now, no more was admitted than the most generous list
    /// allows.
    fn check(&self, whose: &str, scenario: &Scenario) {
        let Some((now, _)) = self.units.last().copied() else { return };
        let mut admitted = 0;
        for (at, (from, units)) in self.units.iter().enumerate().rev() {
            admitted += units;
            let is_first = at == 0 || self.units[at - 1].0 < *from;
            if !is_first {
                continue;
            }
            let of_list = |list: &Vec<Quota>| {
                list.iter().map(|quota| quota.most_in(now - *from)).min().unwrap()
            };
            let most = self.lists.iter().map(of_list).max().unwrap();
            // The bucket was full after each pause.
            let at_once = |list: &Vec<Quota>| {
                list.iter().map(|quota| u64::from(quota.burst_size().get())).min().unwrap()
            };
            let full = self.lists.iter().map(at_once).max().unwrap();
            let pauses = self.pauses.iter().filter(|pause| **pause > *from).count() as u64;
            let most = i64::try_from(most + pauses * full).unwrap();
            assert!(
                admitted <= most,
                "{admitted} of at most {most} of {whose} from {from:?} to {now:?}: {scenario:?}"
            );
        }
    }
}

struct Loaded {
    key: usize,
    list: usize,
    shared_list: Option<usize>,
    is_of_consumer: bool,
    buckets: Arc<dyn Buckets>,
}

struct Run<'a> {
    scenario: &'a Scenario,
    consumer: String,
    keys: Vec<Record>,
    all: Record,
    loaded: Vec<Loaded>,
    now: Duration,
    told: Duration,
    /// The request that was just denied: by which of the loaded keys, and its units.
    denied: Option<(usize, u32)>,
}

impl Run<'_> {
    fn load(&mut self, limiter: &dyn RateLimiter, key: u128, list: &Index) {
        let list = list.get(&self.scenario.lists);
        let limits = limits(list);
        let subject = Subject::of_key(&self.consumer, key);
        let buckets = limiter.buckets(&subject, &limits, self.now);
        let of_consumer = |quota: &&Quota| quota.counted_per() == CountedPer::Consumer;
        let shared: Vec<_> = limits.iter().filter(of_consumer).cloned().collect();
        let is_of_consumer = !shared.is_empty();
        let key = usize::try_from(key).unwrap();
        let list = self.keys[key].apply(limits.iter().cloned().collect(), self.now);
        let shared_list = is_of_consumer.then(|| self.all.apply(shared, self.now));
        self.loaded.push(Loaded { key, list, shared_list, is_of_consumer, buckets });
    }

    async fn take(&mut self, by: usize, units: u32) -> bool {
        let Loaded { key, is_of_consumer, ref buckets, .. } = self.loaded[by];
        let units = NonZeroU32::new(units).unwrap();
        let decisions = decided(buckets.take(units, self.now)).await;
        if !decisions.is_admitted() {
            self.told = wait(&decisions);
            self.denied = Some((by, units.get()));
            return false;
        }
        self.count(key, is_of_consumer, units.get().into());
        self.keys[key].check(&format!("key {key}"), self.scenario);
        if is_of_consumer {
            self.all.check("the consumer", self.scenario);
        }
        true
    }

    /// The time in which a key has paid for whatever it took. A window may be used up and owe its
    /// limit, what it refills in the longest window, and the rest of a unit; and if it began as a
    /// copy of one with a larger limit, what that one had admitted.
    fn rest(&self) -> Duration {
        let all = || self.scenario.lists.iter().flatten();
        let refills = |quota: &Quota| quota.interval().max(quota.refill_time());
        let copied = |quota: &Quota| {
            let alike = all().filter(|other| other.window() == quota.window());
            let most = alike.map(Quota::limit).max().unwrap();
            refills(quota) * most.div_ceil(quota.limit())
        };
        all().map(refills).max().unwrap() * 4 + all().map(copied).max().unwrap()
    }

    /// Asserts that after a rest, each key gets what the smallest quota allows at once, and in the
    /// end what its own do. Until then, a faster quota with a smaller burst may be in force: for
    /// years if its rate is another only by a rounding.
    async fn comes_back(&mut self) {
        let ends = self.scenario.rates_differ_or_are_equal();
        let all = self.scenario.lists.iter().flatten();
        let smallest = all.map(|quota| quota.burst_size().get()).min().unwrap();
        for by in 0..self.loaded.len() {
            self.now += self.rest();
            let Loaded { key, list, ref buckets, .. } = self.loaded[by];
            let left = decided(buckets.peek(self.now)).await;
            let left = left.iter().map(Decision::remaining).min().unwrap();
            assert!(left >= smallest, "{by} has only {left} back: {:?}", self.scenario);
            self.now += LONG;
            let sizes = self.keys[key].lists[list].iter().map(|quota| quota.burst_size().get());
            let (mut admitted, full) = (0, sizes.min().unwrap());
            while self.take(by, 1).await {
                admitted += 1;
            }
            assert!(admitted >= smallest && admitted <= full, "{by}: {:?}", self.scenario);
            assert!(admitted == full || !ends, "{by} is not full: {:?}", self.scenario);
        }
    }

    fn count(&mut self, key: usize, is_of_consumer: bool, units: i64) {
        self.keys[key].count(units, self.now);
        if is_of_consumer {
            self.all.count(units, self.now);
        }
    }
}

/// Asserts that over any interval, no more is admitted for a key or a consumer than the most
/// generous of its lists of quotas allows alone; that a client that waits as told is admitted; and
/// that every bucket refills.
pub(crate) async fn check(limiter: &dyn RateLimiter, scenario: &Scenario) {
    static CONSUMERS: AtomicU32 = AtomicU32::new(0);
    let mut run = Run {
        scenario,
        consumer: format!("changing-{}", CONSUMERS.fetch_add(1, Ordering::Relaxed)),
        keys: (0..KEYS).map(|_| Record::default()).collect(),
        all: Record::default(),
        loaded: Vec::new(),
        now: Duration::from_secs(1_000),
        told: Duration::ZERO,
        denied: None,
    };
    let mut taken = None;
    for step in &scenario.steps {
        let denied = run.denied.take();
        match step {
            Step::Load { key, list } => run.load(limiter, *key, list),
            Step::Wait(of, parts) => {
                let quotas: Vec<_> = scenario.lists.iter().flatten().collect();
                run.now += of.get(&quotas).window() / 1_000 * *parts;
            }
            Step::WaitAsTold if run.told < LONG => {
                run.now += run.told;
                if let Some((by, units)) = denied {
                    let is_admitted = run.take(by, units).await;
                    assert!(is_admitted, "not after {:?}: {scenario:?}", run.told);
                    taken = Some((by, units));
                }
            }
            Step::Sweep => limiter.sweep(run.now),
            Step::GiveBack => {
                if let Some((by, units)) = taken.take() {
                    let Loaded { key, is_of_consumer, ref buckets, .. } = run.loaded[by];
                    buckets.give_back(NonZeroU32::new(units).unwrap(), run.now);
                    run.count(key, is_of_consumer, -i64::from(units));
                }
            }
            Step::WaitAsTold => {}
            _ if run.loaded.is_empty() => {}
            Step::Forget(at) => {
                let gone = run.loaded.remove(at.index(run.loaded.len()));
                run.keys[gone.key].forget(gone.list, run.now);
                if let Some(list) = gone.shared_list {
                    run.all.forget(list, run.now);
                }
                taken = None;
            }
            Step::Take { by, units } => {
                let by = by.index(run.loaded.len());
                taken = run.take(by, *units).await.then_some((by, *units));
            }
            Step::Drain { by } => {
                let by = by.index(run.loaded.len());
                while run.take(by, 1).await {
                    taken = Some((by, 1));
                }
            }
        }
    }
    run.comes_back().await;
}
