//! Quotas that change, or that differ between nodes, on a real Redis: no more passes than the most
//! generous of them allows, and every bucket refills.

use std::{
    num::NonZeroU32,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use crate::{
    servers::redis::{Impostor, Redis},
    wait::within,
};
use proptest::{collection::vec, prelude::*, sample::Index};
use redis::cmd;
use tower_api_key::rate_limit::{
    Leases, OutagePolicy, Quota, RateLimiter, RateLimits, RedisRateLimiter,
    RedisRateLimiterBuilder,
    port::{Buckets, Check, Decisions, Subject},
};

const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
/// The start of the tests, by their own clock.
const START: Duration = Duration::from_secs(1_000_000_000);

/// The cell of the key with the root 1. The connection has a key as well, which lives for 1 ms.
const CELL: &str = "tower-api-key:{acme}:k:00000000000000000000000000000001";

async fn decided(check: Check) -> Decisions {
    match check {
        Check::Ready(decisions) => decisions,
        Check::Pending(decisions) => decisions.await,
        _ => unreachable!("there is no other"),
    }
}

/// A node that decides nothing locally, has a long deadline, and counts by the times passed to it.
fn builder(redis: &Redis) -> RedisRateLimiterBuilder {
    RedisRateLimiter::builder(&redis.url())
        .when_unavailable(OutagePolicy::Deny)
        .deadline(SECOND)
        .callers_time()
}

/// A node that has connected, as connecting may take too long on a busy machine.
async fn node(redis: &Redis) -> RedisRateLimiter {
    within(async {
        loop {
            let node = builder(redis).build().unwrap();
            let first = buckets(&node, u128::MAX, &[per(1, SECOND, 1)], START);
            if decided(first.peek(START)).await.is_admitted() {
                return node;
            }
        }
    })
    .await
}

fn limits(quotas: impl IntoIterator<Item = Quota>) -> RateLimits {
    let quotas = quotas.into_iter().enumerate();
    RateLimits::new(quotas.map(|(at, quota)| quota.named(format!("q{at}")).unwrap())).unwrap()
}

fn buckets(
    node: &RedisRateLimiter,
    root: u128,
    quotas: &[Quota],
    now: Duration,
) -> Arc<dyn Buckets> {
    node.buckets(&Subject::of_key("acme", root), &limits(quotas.to_vec()), now)
}

async fn admits(buckets: &Arc<dyn Buckets>, units: u32, now: Duration) -> bool {
    decided(buckets.take(NonZeroU32::new(units).unwrap(), now)).await.is_admitted()
}

/// Takes everything that is left, in as many requests as the number has set bits.
async fn drain(buckets: &Arc<dyn Buckets>, now: Duration) -> u64 {
    let decisions = decided(buckets.peek(now)).await;
    let left = decisions.iter().map(|decision| decision.remaining()).min().unwrap();
    let mut taken = 0;
    for bit in (0..=u32::BITS - left.leading_zeros()).rev() {
        let Some(units) = 1_u32.checked_shl(bit) else { continue };
        while admits(buckets, units, now).await {
            taken += u64::from(units);
            assert!(taken <= 2 * u64::from(left), "{left} units do not end");
        }
    }
    taken
}

fn per(limit: u32, window: Duration, burst: u32) -> Quota {
    Quota::per(limit, window).unwrap().burst(burst).unwrap()
}

fn sliding(limit: u32, window: Duration) -> Quota {
    Quota::sliding(limit, window).unwrap()
}

mod passes_no_more {
    use super::*;

    #[tokio::test]
    async fn when_two_keys_of_a_consumer_differ_in_their_burst() {
        let redis = Redis::start();
        let nodes = [node(&redis).await, node(&redis).await];
        let window = Duration::from_secs(20);
        let [wide, narrow] = [2000, 10].map(|burst| per(2000, window, burst).per_consumer());
        let wide = buckets(&nodes[0], 1, &[wide], START);
        let narrow = buckets(&nodes[1], 2, &[narrow], START);
        let mut passed = 0;
        for step in 0..=300 {
            let now = START + step * Duration::from_millis(20);
            passed += u64::from(admits(&narrow, 1, now).await);
            passed += drain(&wide, now).await;
        }
        assert!((2_590..=2_600).contains(&passed), "{passed}");
    }

    #[tokio::test]
    async fn when_a_quota_gets_another_name() {
        let redis = Redis::start();
        let node = node(&redis).await;
        let mut passed = 0;
        for turn in 0..50 {
            let quota = Quota::per(10, HOUR).unwrap().named(format!("n{turn}")).unwrap();
            let subject = Subject::of_key("acme", 1);
            passed += drain(&node.buckets(&subject, &quota.into(), START), START).await;
        }
        assert_eq!(passed, 10);
    }

    #[tokio::test]
    async fn when_a_window_follows_a_larger_one_of_its_length_and_a_longer_one() {
        let redis = Redis::start();
        let node = node(&redis).await;
        let list = [sliding(2, 2 * SECOND), sliding(2, SECOND)];
        for (key, joined) in (1..).zip([0, 500, 990, 1_500]) {
            let before = buckets(&node, key, &list, START);
            assert_eq!(drain(&before, START).await, 2);
            let joined = START + joined * MILLI;
            let after = buckets(&node, key, &[sliding(1, SECOND)], joined);
            let mut now = joined;
            while now < START + 2 * SECOND {
                assert!(
                    !admits(&after, 1, now).await,
                    "{:?} after {:?}",
                    now - START,
                    joined - START
                );
                now += 70 * MILLI;
            }
            assert!(admits(&after, 1, joined + 3_400 * MILLI).await);
        }
    }

    #[tokio::test]
    async fn when_siblings_have_windows_of_other_lengths() {
        let redis = Redis::start();
        let nodes = [node(&redis).await, node(&redis).await];
        let mut passed = 0;
        for turn in 0..19 {
            let quota = sliding(100, 10 * SECOND + turn * 64 * MILLI).per_consumer();
            let key = buckets(&nodes[turn as usize % 2], turn.into(), &[quota], START);
            passed += drain(&key, START + turn * MILLI).await;
        }
        assert_eq!(passed, 100);
    }

    #[tokio::test]
    async fn when_two_keys_count_days_that_differ_by_an_hour() {
        let redis = Redis::start();
        let node = node(&redis).await;
        let [day, longer] = [24, 25].map(|hours| sliding(1_000, hours * HOUR).per_consumer());
        let keys = [buckets(&node, 1, &[day], START), buckets(&node, 2, &[longer], START)];
        let mut passed = 0;
        for minute in (0..24 * 60).step_by(20) {
            for key in &keys {
                passed += drain(key, START + minute * MINUTE).await;
            }
        }
        assert_eq!(passed, 1_000);
    }

    #[tokio::test]
    async fn when_the_algorithm_changes_or_a_list_becomes_another() {
        let redis = Redis::start();
        let node = node(&redis).await;
        let lists = [
            vec![per(100, HOUR, 100)],
            vec![sliding(100, HOUR)],
            vec![Quota::at_most(100, HOUR).unwrap().burst(50).unwrap()],
            vec![per(20, SECOND, 20), sliding(100, HOUR)],
            vec![sliding(99, HOUR)],
        ];
        let mut passed = 0;
        for (turn, list) in (0..15).zip(lists.iter().cycle()) {
            let now = START + turn * MILLI;
            passed += drain(&buckets(&node, 1, list, now), now).await;
        }
        assert_eq!(passed, 100);
    }

    #[tokio::test]
    async fn when_the_owner_of_a_quota_changes_back_and_forth() {
        let redis = Redis::start();
        let node = node(&redis).await;
        let owners = [per(10, HOUR, 10), per(10, HOUR, 10).per_consumer()];
        let mut passed = 0;
        for (turn, owner) in (0..240).zip(owners.iter().cycle()) {
            let now = START + turn * MINUTE;
            let key = buckets(&node, 1, std::slice::from_ref(owner), now);
            passed += drain(&key, now).await;
        }
        assert!((48..=49).contains(&passed), "{passed}");
        // Keys that share the quota do not pay for another key's own quota.
        let sibling = buckets(&node, 2, &owners[1..], START + 4 * HOUR);
        assert!(drain(&sibling, START + 4 * HOUR).await > 0);
    }

    #[tokio::test]
    async fn while_nodes_of_two_configurations_roll_out() {
        let redis = Redis::start();
        let nodes = [node(&redis).await, node(&redis).await];
        let lists = [vec![per(60, MINUTE, 60)], vec![per(600, HOUR, 20), sliding(55, MINUTE)]];
        let both = [0, 1].map(|at| buckets(&nodes[at], 1, &lists[at], START));
        let mut passed = 0;
        for step in 0..200 {
            for key in &both {
                passed += drain(key, START + step * 300 * MILLI).await;
            }
        }
        assert!((118..=120).contains(&passed), "{passed}");
    }

    #[tokio::test]
    async fn when_the_clock_of_redis_steps_back() {
        let redis = Redis::start();
        let node = node(&redis).await;
        for (key, quota) in [(1, per(10, HOUR, 10)), (2, sliding(10, HOUR))] {
            let key = buckets(&node, key, std::slice::from_ref(&quota), START);
            assert_eq!(drain(&key, START).await, 10);
            let back = START - 24 * HOUR;
            assert_eq!(drain(&key, back).await, 0);
            let early = quota.interval() - MILLI;
            assert_eq!(drain(&key, back + early).await, 0, "{quota:?}");
            // It refills as soon as it would have, and at most one slot later.
            let late = quota.refill_time() + quota.window() / 32;
            assert_eq!(drain(&key, back + late).await, 10, "{quota:?}");
        }
    }
}

mod comes_back {
    use super::*;

    #[tokio::test]
    async fn a_slow_quota_after_a_fast_one_used_far_more_than_it_holds() {
        let redis = Redis::start();
        let node = node(&redis).await;
        for (root, slow) in [(1, per(10, 10 * MINUTE, 10)), (2, sliding(10, 10 * MINUTE))] {
            let fast = per(100, SECOND, 100);
            let slow_key = buckets(&node, root, std::slice::from_ref(&slow), START);
            let fast_key = buckets(&node, root, &[fast], START);
            let mut now = START;
            for _ in 0..50 {
                assert!(drain(&fast_key, now).await > 0);
                assert_eq!(drain(&slow_key, now).await, 0);
                now += SECOND;
            }
            now += slow.refill_time() + SECOND;
            assert_eq!(drain(&slow_key, now).await, 10, "{slow:?}");
        }
    }

    #[tokio::test]
    async fn a_fast_quota_after_a_slow_one_in_its_own_time() {
        let redis = Redis::start();
        let node = node(&redis).await;
        for (root, fast) in [(1, per(100, SECOND, 10)), (2, sliding(10, SECOND / 10))] {
            let slow = buckets(&node, root, &[per(1_000, 1_000 * HOUR, 1_000)], START);
            let fast_key = buckets(&node, root, &[fast], START);
            assert_eq!(drain(&slow, START).await, 1_000);
            assert_eq!(drain(&fast_key, START).await, 0);
            // A thousand units at a hundred a second.
            let now = START + 11 * SECOND;
            assert_eq!(drain(&fast_key, now).await, 10);
            assert_eq!(drain(&slow, now).await, 0);
        }
    }

    #[tokio::test]
    async fn each_of_many_quotas_that_were_tried_one_after_the_other() {
        let redis = Redis::start();
        let node = node(&redis).await;
        let quotas: Vec<_> = (1..=40).map(|n| per(n, 10 * SECOND, n)).collect();
        for quota in &quotas {
            drain(&buckets(&node, 1, std::slice::from_ref(quota), START), START).await;
        }
        let text: String = redis.ask(cmd("GET").arg(CELL));
        assert!(text.len() < 1_500, "{text}");
        let mut now = START;
        for quota in &quotas {
            now += 2 * quota.refill_time() + MINUTE;
            let key = buckets(&node, 1, std::slice::from_ref(quota), now);
            assert_eq!(drain(&key, now).await, u64::from(quota.limit()), "{quota:?}");
        }
    }

    #[tokio::test]
    async fn a_list_of_as_many_quotas_as_a_key_may_have() {
        let redis = Redis::start();
        let node = node(&redis).await;
        let list = |first: u32| -> Vec<_> {
            let quota = |n| if n % 2 == 0 { per(n, MINUTE, n) } else { sliding(n, MINUTE) };
            (first..first + 8).map(quota).collect()
        };
        for first in [20, 40, 10] {
            drain(&buckets(&node, 1, &list(first), START), START).await;
        }
        let now = START + 6 * MINUTE;
        let key = buckets(&node, 1, &list(10), now);
        assert_eq!(drain(&key, now).await, 10);
        assert_eq!(drain(&key, now + 2 * MINUTE).await, 10);
    }

    #[tokio::test]
    async fn the_memory_of_a_cell_ten_minutes_after_it_is_full() {
        let redis = Redis::start();
        let node = node(&redis).await;
        let key = buckets(&node, 1, &[per(10, MINUTE, 10), sliding(100, HOUR)], START);
        assert_eq!(drain(&key, START).await, 10);
        let lives: u64 = redis.ask(cmd("PTTL").arg(CELL));
        let most = u64::try_from((HOUR / 32 * 33 + 10 * MINUTE).as_millis()).unwrap();
        assert!((most - 200_000..=most).contains(&lives), "{lives} of {most}");
    }
}

mod one_subject {
    use super::*;

    /// By the clock of Redis, and deciding locally if Redis does not.
    fn alone(url: &str) -> RedisRateLimiter {
        RedisRateLimiter::builder(url).deadline(SECOND).build().unwrap()
    }

    #[tokio::test]
    async fn whose_calls_fail_takes_redis_from_no_other() {
        let redis = Redis::start();
        let impostor = Impostor::start(redis.addr()).await;
        let node = alone(&impostor.url());
        let quota = RateLimits::from(Quota::per(10, HOUR).unwrap());
        let hostile = node.buckets(&Subject::of_key("hostile", 1), &quota, START);
        let good = node.buckets(&Subject::of_key("good", 1), &quota, START);
        assert!(admits(&good, 1, START).await);
        impostor.say_to("{hostile}:k:00000000000000000000000000000001\r", "-ERR it took too long");
        let mut passed = 0;
        for _ in 0..100 {
            passed += u32::from(admits(&hostile, 1, START).await);
            assert!(node.is_shared());
        }
        assert_eq!(passed, 10, "this node decides for it");
        let other = alone(&redis.url());
        let elsewhere = other.buckets(&Subject::of_key("good", 1), &quota, START);
        assert_eq!(drain(&elsewhere, START).await, 9);
        assert!(!admits(&good, 1, START).await, "Redis decides for the other");
    }

    #[tokio::test]
    async fn with_too_many_quotas_is_decided_here_without_a_call() {
        let redis = Redis::start();
        let node = alone(&redis.url());
        let list = |count: u32| limits((1..=count).map(|n| per(10 + n, HOUR, 10 + n)));
        // Its own quotas and its plan's: as many as are refused where they are combined.
        let of_plan = (1..=8).map(|n| per(20 + n, HOUR, 20 + n).named(format!("p{n}")).unwrap());
        let many = list(8).and(&RateLimits::new(of_plan).unwrap());
        let hostile = node.buckets(&Subject::of_key("hostile", 1), &many, START);
        assert_eq!(drain(&hostile, START).await, 11);
        assert_eq!(redis.scripts_run(), 0);
        let good = node.buckets(&Subject::of_key("good", 1), &list(8), START);
        assert_eq!(drain(&good, START).await, 11);
        assert!(node.is_shared() && redis.scripts_run() > 0);
    }

    #[tokio::test]
    async fn whose_cell_a_later_version_has_written_is_decided_here_and_left_as_it_is() {
        let redis = Redis::start();
        for text in
            ["2 1 2 3", "1 0 0 0 1 x 1", "1 0 0 0 1 g 1 2", "1 0 0 0 0 0", "gcra 10 1 1", ""]
        {
            redis.ask::<redis::Value>(cmd("SET").arg(CELL).arg(text));
            let node = alone(&redis.url());
            let quota = [Quota::per(10, HOUR).unwrap()];
            let spoiled = buckets(&node, 1, &quota, START);
            assert_eq!(drain(&spoiled, START).await, 10, "{text}: this node decides");
            assert_eq!(drain(&buckets(&node, 2, &quota, START), START).await, 10);
            assert!(node.is_shared(), "{text}");
            assert_eq!(redis.ask::<String>(cmd("GET").arg(CELL)), text);
            let denies = node_that_denies(&redis);
            assert_eq!(drain(&buckets(&denies, 1, &quota, START), START).await, 0, "{text}");
            redis.tell("FLUSHALL");
        }
    }

    fn node_that_denies(redis: &Redis) -> RedisRateLimiter {
        let builder = RedisRateLimiter::builder(&redis.url()).deadline(SECOND);
        builder.when_unavailable(OutagePolicy::Deny).build().unwrap()
    }
}

/// The actions of nodes with one consumer.
#[derive(Clone, Debug)]
struct Story {
    lists: Vec<Vec<Quota>>,
    owners: Owners,
    steps: Vec<Step>,
}

#[derive(Clone, Copy, Debug)]
enum Owners {
    Key,
    /// Two keys share it.
    Consumer,
    /// The quota changes from list to list.
    Mixed,
}

#[derive(Clone, Debug)]
struct Step {
    list: Index,
    node: bool,
    key: bool,
    gap: Gap,
    /// Or one.
    takes_all: bool,
}

/// The time since the previous step.
#[derive(Clone, Debug)]
enum Gap {
    None,
    Millis(u64),
    /// This many 100ths of the time in which a quota of the list refills.
    Refill(Index, u32),
}

fn quota() -> impl Strategy<Value = Quota> {
    let limit = prop_oneof![1..6_u32, 1..200_u32];
    let millis = prop_oneof![100..300_u64, 100..20_000_u64];
    (limit, millis, 1..100_u32, 0..4_u32).prop_filter_map(
        "a quota",
        |(limit, millis, burst, kind)| {
            let window = Duration::from_millis(millis);
            let quota = match kind {
                0 => Quota::per(limit, window),
                1 => Quota::per(limit, window).and_then(|quota| quota.burst(burst)),
                2 => Quota::at_most(limit, window),
                _ => Quota::sliding(limit, window),
            };
            quota.ok()
        },
    )
}

fn story() -> impl Strategy<Value = Story> {
    let gap = prop_oneof![
        3 => Just(Gap::None),
        2 => (0..300_u64).prop_map(Gap::Millis),
        3 => (any::<Index>(), 0..150_u32).prop_map(|(of, parts)| Gap::Refill(of, parts)),
    ];
    let step = (any::<Index>(), any::<(bool, bool)>(), gap, any::<bool>());
    let step = step.prop_map(|(list, (node, key), gap, takes_all)| Step {
        list,
        node,
        key,
        gap,
        takes_all,
    });
    let owners = prop_oneof![Just(Owners::Key), Just(Owners::Consumer), Just(Owners::Mixed)];
    let list = prop_oneof![3 => vec(quota(), 1..2), 2 => vec(quota(), 1..4)];
    (vec(list, 2..4), owners, vec(step, 4..16)).prop_map(|(lists, owners, steps)| Story {
        lists,
        owners,
        steps,
    })
}

/// Runs of one test share a server, as nodes do.
static REDIS: LazyLock<Redis> = LazyLock::new(Redis::start);

impl Story {
    fn lists(&self) -> Vec<Vec<Quota>> {
        let owned = |(at, list): (usize, &Vec<Quota>)| {
            let is_shared = match self.owners {
                Owners::Key => false,
                Owners::Consumer => true,
                Owners::Mixed => at % 2 == 0,
            };
            let owned = |quota: &Quota| {
                if is_shared { quota.clone().per_consumer() } else { quota.clone() }
            };
            list.iter().map(owned).collect()
        };
        self.lists.iter().enumerate().map(owned).collect()
    }

    /// `held_for`: how long a unit may be used after it was taken from Redis.
    async fn keeps_the_promise(&self, nodes: &[RedisRateLimiter; 2], held_for: Duration) {
        let consumer = new_consumer();
        let (lists, mut now) = (self.lists(), START);
        let mut taken: Vec<(Duration, u64)> = Vec::new();
        for step in &self.steps {
            let list = step.list.get(&lists);
            now += match &step.gap {
                Gap::None => Duration::ZERO,
                Gap::Millis(millis) => Duration::from_millis(*millis),
                Gap::Refill(of, parts) => of.get(list).refill_time() / 100 * *parts,
            };
            let root = u128::from(matches!(self.owners, Owners::Consumer) && step.key);
            let subject = Subject::of_key(&consumer, root);
            let node = &nodes[usize::from(step.node)];
            let buckets = node.buckets(&subject, &limits(list.clone()), now);
            let units = if step.takes_all {
                drain(&buckets, now).await
            } else {
                admits(&buckets, 1, now).await.into()
            };
            if taken.is_empty() {
                // All of it is available, however much of it a node holds.
                let all = list.iter().map(|quota| u64::from(quota.burst_size().get())).min();
                assert_eq!(Some(units), if step.takes_all { all } else { Some(1) }, "{list:?}");
            }
            taken.push((now, units));
        }
        self.assert_promised(&lists, &taken, held_for);
    }

    fn assert_promised(&self, lists: &[Vec<Quota>], taken: &[(Duration, u64)], held_for: Duration) {
        for (at, (from, _)) in taken.iter().enumerate() {
            let mut passed = 0;
            for (until, units) in &taken[at..] {
                passed += units;
                let window = *until - *from + held_for;
                let of_list = |list: &Vec<Quota>| {
                    list.iter().map(|quota| quota.most_in(window)).min().unwrap()
                };
                let most = lists.iter().map(of_list).max().unwrap();
                assert!(passed <= most, "{passed} of at most {most} in {window:?} from {from:?}");
            }
        }
    }

    /// Long after the last request, each list has its full quota.
    async fn comes_back(&self, node: &RedisRateLimiter) {
        let lists = self.lists();
        let mut now = START + 24 * HOUR;
        for list in &lists {
            let consumer = new_consumer();
            let subject = Subject::of_key(&consumer, 1);
            drain(&node.buckets(&subject, &limits(list.clone()), now), now).await;
            for other in &lists {
                drain(&node.buckets(&subject, &limits(other.clone()), now), now).await;
            }
            let most = lists.iter().flatten().map(Quota::refill_time).max().unwrap();
            now += 3 * most + 20 * MINUTE;
            let all = list.iter().map(Quota::burst_size).min().unwrap();
            let buckets = node.buckets(&subject, &limits(list.clone()), now);
            assert_eq!(drain(&buckets, now).await, u64::from(all.get()), "{list:?}");
        }
    }
}

/// An unused key.
fn new_consumer() -> String {
    static CONSUMERS: AtomicU32 = AtomicU32::new(0);
    format!("consumer-{}", CONSUMERS.fetch_add(1, Ordering::Relaxed))
}

fn run(story: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(story);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn whatever_quotas_nodes_apply_no_more_passes_than_the_most_generous_allows(story in story()) {
        run(async { story.keeps_the_promise(&[node(&REDIS).await, node(&REDIS).await], Duration::ZERO).await });
    }

    #[test]
    fn with_leases_no_more_passes_than_in_a_window_that_is_longer_by_their_lifetime(story in story()) {
        let lifetime = Duration::from_secs(10);
        let leasing = || builder(&REDIS).leases(Leases::default().lifetime(lifetime)).build().unwrap();
        run(async { story.keeps_the_promise(&[leasing(), leasing()], lifetime).await });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn keys_that_are_loaded_with_other_quotas_and_give_back_pass_no_more_and_come_back(
        scenario in crate::simulator::changes::scenario(),
    ) {
        run(crate::simulator::changes::check(&crate::redis_limiter::limiter(), &scenario));
    }

    #[test]
    fn whatever_quotas_were_applied_each_comes_back(story in story()) {
        run(async { story.comes_back(&node(&REDIS).await).await });
    }
}
