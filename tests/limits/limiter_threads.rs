//! Many threads on one bucket get everything that is left, and no request more.

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use tower_api_key::rate_limit::{
    LocalRateLimiter, Quota, RateLimiter, RateLimits,
    port::{Buckets, Check, Decisions, Subject},
};

use crate::wait::Deadline;

const THREADS: usize = 64;
const SECOND: Duration = Duration::from_secs(1);
const ONE: NonZeroU32 = NonZeroU32::MIN;

fn decided(check: Check) -> Decisions {
    let Check::Ready(decisions) = check else { panic!("{check:?}") };
    decisions
}

fn admits(buckets: &dyn Buckets, units: NonZeroU32, now: Duration) -> bool {
    decided(buckets.take(units, now)).is_admitted()
}

/// A clock that advances when nothing is left.
struct Clock {
    now: AtomicU64,
    /// The time that each running thread has read. The clock waits for threads that lag too far
    /// behind it.
    readings: Vec<AtomicU64>,
    patience: u64,
}

impl Clock {
    fn new(patience: Duration) -> Self {
        let readings = (0..THREADS).map(|_| AtomicU64::new(u64::MAX)).collect();
        Self { now: AtomicU64::new(0), readings, patience: nanos(patience) }
    }

    fn read(&self, thread: usize) -> Duration {
        loop {
            let now = self.now.load(SeqCst);
            self.readings[thread].store(now, SeqCst);
            if self.now.load(SeqCst) == now {
                return Duration::from_nanos(now);
            }
        }
    }

    fn done(&self, thread: usize) {
        self.readings[thread].store(u64::MAX, SeqCst);
    }

    fn go_on(&self, from: Duration, step: Duration) {
        let (from, next) = (nanos(from), nanos(from + step));
        let earliest = self.readings.iter().map(|reading| reading.load(SeqCst)).min();
        if earliest.is_some_and(|earliest| earliest.saturating_add(self.patience) >= next) {
            let _ = self.now.compare_exchange(from, next, SeqCst, SeqCst);
        } else {
            thread::yield_now();
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap()
}

/// The behaviour of the threads.
struct Hammer {
    elapsed: Duration,
    step: Duration,
    /// The cost of the nth request of each thread.
    units: fn(u64) -> u32,
    /// Whether a request was refused because no other thread would get anything either.
    nothing_left: fn(&Decisions) -> bool,
}

impl Default for Hammer {
    fn default() -> Self {
        Self { elapsed: TEN_WINDOWS, step: SECOND / 3, units: |_| 1, nothing_left: |_| true }
    }
}

/// Lets all threads take what they can. Returns each admitted request: the time it had read, the
/// time of admission, and its cost.
fn hammer(
    buckets: &(dyn Fn(usize) -> Arc<dyn Buckets> + Sync),
    hammer: &Hammer,
) -> Vec<(usize, Duration, u64)> {
    let Hammer { elapsed, step, units, nothing_left } = *hammer;
    let clock = &Clock::new(PATIENCE);
    thread::scope(|scope| {
        let threads = (0..THREADS).map(|thread| {
            scope.spawn(move || {
                let (buckets, mut admitted) = (buckets(thread), Vec::new());
                let deadline = Deadline::of("the threads have taken all there is");
                for turn in 0.. {
                    deadline.check();
                    let now = clock.read(thread);
                    let wanted = NonZeroU32::new(units(turn)).unwrap();
                    let decisions = decided(buckets.take(wanted, now));
                    clock.done(thread);
                    if decisions.is_admitted() {
                        admitted.push((thread, now, u64::from(wanted.get())));
                    } else if !nothing_left(&decisions) {
                        thread::yield_now();
                    } else if now >= elapsed {
                        break;
                    } else {
                        clock.go_on(now, step);
                    }
                }
                admitted
            })
        });
        let threads: Vec<_> = threads.collect();
        let mut admitted: Vec<_> =
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        admitted.sort_unstable_by_key(|(_, at, _)| *at);
        admitted
    })
}

#[track_caller]
fn assert_promised<'a>(
    quota: &Quota,
    admitted: impl IntoIterator<Item = &'a (usize, Duration, u64)>,
) {
    let admitted: Vec<_> = admitted.into_iter().collect();
    for window in [quota.window(), quota.window() * 2, quota.interval(), Duration::ZERO] {
        let (mut from, mut held, most) = (0, 0, quota.most_in(window));
        for (_, at, units) in &admitted {
            held += units;
            while admitted[from].1 + window < *at {
                held -= admitted[from].2;
                from += 1;
            }
            assert!(held <= most, "{held} of at most {most} in {window:?} until {at:?}: {quota:?}");
        }
    }
}

fn total<'a>(admitted: impl IntoIterator<Item = &'a (usize, Duration, u64)>) -> u64 {
    admitted.into_iter().map(|(_, _, units)| units).sum()
}

fn one_for_all(quotas: &[Quota]) -> impl Fn(usize) -> Arc<dyn Buckets> + Sync + use<> {
    let limits = RateLimits::new(quotas.iter().cloned()).unwrap();
    let subject = Subject::of_key("acme", 1);
    let buckets = LocalRateLimiter::new().buckets(&subject, &limits, Duration::ZERO);
    move |_| Arc::clone(&buckets)
}

/// 330 slots of a window of 32 seconds, in which it refills ten times.
const TEN_WINDOWS: Duration = Duration::from_secs(330);
const WINDOW: Duration = Duration::from_secs(32);
/// The number of slots that a request may be late.
const PATIENCE: Duration = Duration::from_secs(31);

#[test]
fn a_sliding_window_gives_away_the_last_unit_and_no_more() {
    for limit in [1, 2, 63, 1_000] {
        let quota = Quota::sliding(limit, WINDOW).unwrap();
        let buckets = one_for_all(std::slice::from_ref(&quota));
        let admitted = hammer(&buckets, &Hammer::default());
        assert_eq!(total(&admitted), 11 * u64::from(limit));
        assert_promised(&quota, &admitted);
    }
}

#[test]
fn a_bucket_of_gcra_gives_away_the_last_unit_and_no_more() {
    for quota in [
        Quota::per(100, SECOND).unwrap(),
        Quota::per(100, SECOND).unwrap().burst(1).unwrap(),
        Quota::at_most(1_000, SECOND).unwrap(),
    ] {
        let buckets = one_for_all(std::slice::from_ref(&quota));
        let (elapsed, step) = (20 * SECOND, quota.interval());
        let admitted = hammer(&buckets, &Hammer { elapsed, step, ..Hammer::default() });
        let (_, last, _) = admitted.last().unwrap();
        assert_eq!(total(&admitted), quota.most_in(*last));
        assert!(*last + quota.interval() >= 20 * SECOND);
        assert_promised(&quota, &admitted);
    }
}

#[test]
fn requests_that_cost_more_than_one_leave_less_than_one_of_them() {
    let quota = Quota::sliding(1_000, WINDOW).unwrap();
    let buckets = one_for_all(std::slice::from_ref(&quota));
    let units = |turn| [1, 7, 3][usize::try_from(turn % 3).unwrap()];
    let admitted = hammer(&buckets, &Hammer { units, ..Hammer::default() });
    assert!(total(&admitted) > 11 * (1_000 - 7), "{}", total(&admitted));
    assert_promised(&quota, &admitted);
}

#[test]
fn stacked_quotas_give_away_what_the_narrowest_has() {
    let quotas = [
        Quota::sliding(1_000, WINDOW).unwrap().named("a").unwrap(),
        Quota::per(400, SECOND).unwrap().burst(20).unwrap().named("b").unwrap(),
        Quota::at_most(20_000, 10 * WINDOW).unwrap().named("c").unwrap(),
    ];
    let admitted =
        hammer(&one_for_all(&quotas), &Hammer { step: SECOND / 50, ..Hammer::default() });
    for quota in &quotas {
        assert_promised(quota, &admitted);
    }
    // The window is used up before the other quota.
    assert!(total(&admitted) >= 10 * 1_000 * 99 / 100, "{}", total(&admitted));
}

#[test]
fn keys_of_one_consumer_share_what_is_theirs_and_keep_what_is_their_own() {
    let own = Quota::sliding(300, WINDOW).unwrap().named("own").unwrap();
    let shared = Quota::sliding(1_000, WINDOW).unwrap().named("shared").unwrap().per_consumer();
    let limits = RateLimits::new([own.clone(), shared.clone()]).unwrap();
    assert_eq!(limits.iter().nth(1).map(Quota::name), Some("shared"));
    let limiter = LocalRateLimiter::new();
    let buckets = |thread: usize| {
        let subject = Subject::of_key("acme", thread as u128 % 8);
        limiter.buckets(&subject, &limits, Duration::ZERO)
    };
    // A key that has used up its own quota leaves the rest to others.
    let nothing_left = |decisions: &Decisions| !decisions[1].is_admitted();
    let admitted = hammer(&buckets, &Hammer { nothing_left, ..Hammer::default() });
    assert_promised(&shared, &admitted);
    for key in 0..8 {
        assert_promised(&own, admitted.iter().filter(|(thread, ..)| thread % 8 == key));
    }
    assert!(total(&admitted) >= 11 * 1_000 * 99 / 100, "{}", total(&admitted));
}

#[test]
fn what_is_given_back_is_neither_lost_nor_doubled() {
    let slots = 30;
    let end = Duration::from_secs(slots);
    let quotas = [
        Quota::sliding(10_000, WINDOW).unwrap().named("a").unwrap(),
        Quota::per(10_000, 1_000_000 * WINDOW).unwrap().named("b").unwrap(),
    ];
    for quotas in [&quotas[..1], &quotas[1..], &quotas[..]] {
        let buckets = &*one_for_all(quotas)(0);
        let (now, kept) = (&AtomicU64::new(0), &AtomicU64::new(0));
        thread::scope(|scope| {
            for thread in 0..THREADS {
                scope.spawn(move || {
                    for turn in 1..=300_u64 {
                        let units = NonZeroU32::new(1 + u32::try_from(turn % 7).unwrap()).unwrap();
                        let at = Duration::from_secs(now.load(SeqCst));
                        assert!(admits(buckets, units, at));
                        if turn % 100 == 0 {
                            kept.fetch_add(units.get().into(), SeqCst);
                        } else {
                            buckets.give_back(units, at);
                        }
                        if thread == 0 {
                            now.store(turn * slots / 300, SeqCst);
                        }
                    }
                });
            }
        });
        // A unit of the second quota refills in 53 minutes.
        let left = 10_000 - u32::try_from(kept.load(SeqCst)).unwrap();
        for decision in decided(buckets.peek(end)).iter() {
            assert_eq!(decision.remaining(), left);
        }
        let decisions = decided(buckets.take(NonZeroU32::new(left).unwrap(), end));
        assert!(decisions.is_admitted());
        assert!(!admits(buckets, ONE, end));
    }
}
