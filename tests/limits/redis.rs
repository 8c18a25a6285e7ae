//! Limits that a fleet shares, on a real Redis: the commands, the stored state, and the number of
//! calls. Decisions are tested in `limiter_contract.rs`, outages in `redis_outages.rs`.

use std::{
    error::Error,
    num::NonZeroU32,
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::servers::redis::Redis;
use redis::cmd;
use tokio::time::Instant;
use tower_api_key::{
    clock::{Clock, SystemClock},
    rate_limit::{
        Leases, LimiterHealth, OutagePolicy, Quota, RateLimiter, RateLimits, RedisRateLimiter,
        RedisRateLimiterBuilder,
        port::{Buckets, Check, Decisions, Subject},
    },
};

use crate::wait::{eventually, within};

const ONE: NonZeroU32 = NonZeroU32::MIN;
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const PATIENCE: Duration = Duration::from_secs(20);

async fn decided(check: Check) -> Decisions {
    match check {
        Check::Ready(decisions) => decisions,
        Check::Pending(decisions) => decisions.await,
        _ => unreachable!("there is no other"),
    }
}

/// A limiter that decides nothing locally, with a long deadline: a busy machine must not look like
/// an outage.
fn builder(url: &str) -> RedisRateLimiterBuilder {
    RedisRateLimiter::builder(url).when_unavailable(OutagePolicy::Deny).deadline(SECOND)
}

fn limiter(redis: &Redis) -> RedisRateLimiter {
    builder(&redis.url()).build().unwrap()
}

fn leasing(redis: &Redis, leases: Leases) -> RedisRateLimiter {
    builder(&redis.url()).leases(leases).build().unwrap()
}

fn bucket(limiter: &RedisRateLimiter, key: u128, quota: &Quota, now: Duration) -> Arc<dyn Buckets> {
    limiter.buckets(&Subject::of_key("acme", key), &quota.clone().into(), now)
}

async fn admitted(buckets: &Arc<dyn Buckets>, requests: u32, now: Duration) -> u32 {
    let mut admitted = 0;
    for _ in 0..requests {
        admitted += u32::from(decided(buckets.take(ONE, now)).await.is_admitted());
    }
    admitted
}

#[tokio::test]
async fn nodes_share_the_buckets_of_a_prefix() {
    let redis = Redis::start();
    let quota = Quota::per(10, HOUR).unwrap();
    let nodes = [limiter(&redis), limiter(&redis)];
    let buckets = nodes.each_ref().map(|node| bucket(node, 1, &quota, SECOND));
    assert_eq!(admitted(&buckets[0], 4, SECOND).await, 4);
    assert_eq!(admitted(&buckets[1], 20, SECOND).await, 6);
    assert_eq!(admitted(&buckets[0], 1, SECOND).await, 0);
    let other = builder(&redis.url()).prefix("other").build().unwrap();
    assert_eq!(admitted(&bucket(&other, 1, &quota, SECOND), 1, SECOND).await, 1);
}

#[tokio::test]
async fn nothing_of_a_nodes_clock_reaches_redis() {
    let redis = Redis::start();
    for (key, quota) in [(1, Quota::per(10, HOUR).unwrap()), (2, Quota::sliding(10, HOUR).unwrap())]
    {
        let clocks = [Duration::ZERO, HOUR, 1000 * HOUR];
        let mut waits = Vec::new();
        for now in clocks {
            let node = limiter(&redis);
            let buckets = bucket(&node, key, &quota, now);
            let least = if waits.is_empty() { 10 } else { 0 };
            assert_eq!(admitted(&buckets, 20, now).await, least);
            waits.push(decided(buckets.take(ONE, now)).await[0].next_unit_in());
        }
        waits.sort();
        assert!(waits[2] - waits[0] < PATIENCE, "{waits:?}");
    }
}

#[tokio::test]
async fn buckets_outlive_every_node_and_a_redis_that_is_shut_down_in_good_order() {
    let redis = Redis::start();
    let quota = Quota::sliding(10, HOUR).unwrap();
    {
        let node = limiter(&redis);
        assert_eq!(admitted(&bucket(&node, 1, &quota, SECOND), 20, SECOND).await, 10);
    }
    let node = limiter(&redis);
    assert_eq!(admitted(&bucket(&node, 1, &quota, SECOND), 1, SECOND).await, 0);
    redis.stop();
    redis.start_again();
    let node = limiter(&redis);
    assert_eq!(admitted(&bucket(&node, 1, &quota, SECOND), 1, SECOND).await, 0);
}

#[tokio::test]
async fn nothing_stays_behind_longer_than_ten_minutes_after_it_is_full() {
    let redis = Redis::start();
    let clock = SystemClock::new();
    let node = limiter(&redis);
    let quotas = [
        Quota::per(10, Duration::from_millis(500)).unwrap(),
        Quota::sliding(10, Duration::from_millis(500)).unwrap(),
    ];
    for (key, quota) in (0..).zip(quotas) {
        let buckets = bucket(&node, key, &quota, clock.monotonic());
        admitted(&buckets, 20, clock.monotonic()).await;
        buckets.charge(NonZeroU32::new(5).unwrap(), clock.monotonic());
        admitted(&buckets, 1, clock.monotonic()).await;
    }
    let keys = redis.keys();
    assert_eq!(keys.len(), 2, "{keys:?}");
    for key in keys {
        assert!(key.starts_with("tower-api-key:{acme}:k:"), "{key}");
        let lives: u64 = redis.ask(cmd("PTTL").arg(&key));
        // Its debt is half of what it holds.
        assert!((580_000..=601_000).contains(&lives), "{key}: {lives}");
    }
}

#[tokio::test]
async fn all_buckets_of_a_consumer_are_on_one_node_of_a_cluster() {
    let redis = Redis::start_with(&["--cluster-enabled", "yes"]);
    redis.tell("CLUSTER ADDSLOTSRANGE 0 16383");
    eventually("the cluster is up", async || {
        let info: String = redis.ask(cmd("CLUSTER").arg("INFO"));
        info.contains("cluster_state:ok")
    })
    .await;
    let node = limiter(&redis);
    assert_eq!(node.health(), LimiterHealth::Unknown);
    let quota = |name: &'static str| Quota::per(10, HOUR).unwrap().named(name).unwrap();
    let both = [quota("key"), quota("consumer").per_consumer()];
    let both = RateLimits::new(both).unwrap();
    let key = Subject::of_key("a {strange} one:", 1);
    for subject in [key, key.in_class("a {strange} class:")] {
        let buckets = node.buckets(&subject, &both, SECOND);
        assert_eq!(admitted(&buckets, 20, SECOND).await, 10);
    }
    assert!(node.is_shared());
    assert_eq!(node.health(), LimiterHealth::Shared);
    let slot = |key: &String| redis.ask::<u64>(cmd("CLUSTER").arg("KEYSLOT").arg(key));
    let keys = redis.keys();
    assert_eq!(keys.len(), 4);
    assert!(keys.iter().all(|key| slot(key) == slot(&keys[0])), "{keys:?}");
}

#[tokio::test]
async fn passwords_are_used_and_never_told() {
    let redis = Redis::start_with(&["--requirepass", "hunter2"]);
    let addr = redis.addr();
    let log = Arc::new(Mutex::new(Vec::new()));
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer({
            let log = Arc::clone(&log);
            move || Log(Arc::clone(&log))
        })
        .finish();
    let _logging = tracing::subscriber::set_default(subscriber);

    let quota = Quota::per(10, HOUR).unwrap();
    let mut told = String::new();
    for (password, is_right) in [("hunter2", true), ("hunter3", false)] {
        let builder = builder(&format!("redis://default:{password}@{addr}/0"));
        told += &format!("{builder:?}");
        let node = builder.build().unwrap();
        let buckets = bucket(&node, 1, &quota, SECOND);
        assert_eq!(admitted(&buckets, 10, SECOND).await > 0, is_right);
        assert_eq!(node.is_shared(), is_right);
        told += &format!("{node:?}");
    }
    let error = builder("redis://:hunter2@host:port/").build().unwrap_err();
    told += &format!("{error:?} {error} {:?}", error.source());
    told += &String::from_utf8(log.lock().unwrap().clone()).unwrap();
    assert!(told.contains("redis unavailable; outage policy applies"), "{told}");
    assert!(told.contains("redis connected; rate limits are shared"), "{told}");
    assert!(!told.contains("hunter"), "{told}");
}

struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_unix_socket_will_do() {
    let redis = Redis::start();
    let node = builder(&redis.socket_url()).build().unwrap();
    let quota = Quota::per(10, HOUR).unwrap();
    assert_eq!(admitted(&bucket(&node, 1, &quota, SECOND), 20, SECOND).await, 10);
}

#[test]
fn settings_that_make_no_sense_are_refused_with_a_reason() {
    let with = |set: fn(RedisRateLimiterBuilder) -> RedisRateLimiterBuilder| {
        set(RedisRateLimiter::builder("redis://localhost")).build().unwrap_err().to_string()
    };
    assert!(with(|builder| builder.prefix("a{b}")).contains("prefix"));
    assert!(with(|builder| builder.deadline(Duration::ZERO)).contains("`deadline`"));
    assert!(with(|builder| builder.deadline(2 * SECOND)).contains("`deadline`"));
    let long = |builder: RedisRateLimiterBuilder| {
        builder.leases(Leases::default().lifetime(Duration::from_secs(11)))
    };
    assert!(with(long).contains("`lifetime`"));
    for url in ["", "localhost", "http://localhost", "redis://", "redis://localhost/x"] {
        let error = RedisRateLimiter::builder(url).build().unwrap_err();
        assert!(error.to_string().contains("redis://"), "{url}: {error}");
        assert!(error.source().is_some());
    }
}

#[test]
fn without_a_runtime_nothing_breaks() {
    let redis = Redis::start();
    let node = RedisRateLimiter::builder(&redis.url()).build().unwrap();
    let buckets = bucket(&node, 1, &Quota::per(10, HOUR).unwrap(), SECOND);
    buckets.charge(ONE, SECOND);
    buckets.give_back(ONE, SECOND);
    assert!(matches!(buckets.take(ONE, SECOND), Check::Pending(_)));
}

#[tokio::test]
async fn a_request_that_hangs_up_takes_nothing_with_it() {
    let redis = Redis::start();
    let node = leasing(&redis, Leases::default());
    let buckets = bucket(&node, 1, &Quota::per(1000, HOUR).unwrap(), SECOND);
    for _ in 0..100 {
        let Check::Pending(mut decision) = buckets.take(ONE, SECOND) else { continue };
        let waker = std::task::Waker::noop();
        let _ = decision.as_mut().poll(&mut std::task::Context::from_waker(waker));
    }
    eventually("others go on", async || {
        decided(buckets.take(ONE, SECOND)).await.is_admitted() && node.is_shared()
    })
    .await;
}

#[tokio::test]
async fn with_leases_most_requests_are_decided_at_once() {
    let redis = Redis::start();
    let (node, clock) = (leasing(&redis, Leases::default()), SystemClock::new());
    let buckets = bucket(&node, 1, &Quota::per(100_000, HOUR).unwrap(), clock.monotonic());
    let (mut at_once, mut admitted) = (0, 0);
    for _ in 0..20_000 {
        let check = buckets.take(ONE, clock.monotonic());
        at_once += u32::from(matches!(check, Check::Ready(_)));
        admitted += u32::from(decided(check).await.is_admitted());
    }
    assert_eq!(admitted, 20_000);
    assert!(at_once > 19_500, "{at_once}");
    assert!(redis.scripts_run() < 500, "{}", redis.scripts_run());
}

#[tokio::test]
async fn with_leases_a_request_that_is_decided_at_once_allocates_nothing() {
    let redis = Redis::start();
    let node = leasing(&redis, Leases::default());
    for (key, quota) in
        [(1, Quota::per(100_000, HOUR).unwrap()), (2, Quota::sliding(100_000, HOUR).unwrap())]
    {
        let buckets = bucket(&node, key, &quota, SECOND);
        assert_eq!(admitted(&buckets, 2_000, SECOND).await, 2_000);
        let mut at_once = 0;
        let spent = allocation_counter::measure(|| {
            for _ in 0..10 {
                at_once += u32::from(matches!(buckets.take(ONE, SECOND), Check::Ready(_)));
            }
        });
        assert_eq!(at_once, 10);
        assert_eq!(spent.count_total, 0);
    }
}

#[tokio::test]
async fn with_leases_exactly_as_much_passes_in_the_end() {
    let redis = Redis::start();
    let consumer = Quota::sliding(1_500, HOUR).unwrap().named("day").unwrap().per_consumer();
    let key = Quota::per(1_000, HOUR).unwrap();
    let nodes = [(); 3].map(|()| leasing(&redis, Leases::default()));
    let clock = SystemClock::new();
    let mut tasks = tokio::task::JoinSet::new();
    for (at, node) in nodes.iter().enumerate() {
        let limits = RateLimits::new([key.clone(), consumer.clone()]).unwrap();
        let subject = Subject::of_key("acme", at as u128 % 2);
        let buckets = node.buckets(&subject, &limits, clock.monotonic());
        let clock = clock.clone();
        tasks.spawn(async move {
            let mut admitted = 0;
            let begun = Instant::now();
            // Until the unused units of other nodes are put back.
            while begun.elapsed() < 3 * SECOND {
                let check = buckets.take(ONE, clock.monotonic());
                admitted += u32::from(decided(check).await.is_admitted());
                tokio::task::yield_now().await;
            }
            admitted
        });
    }
    let total: u32 = within(tasks.join_all()).await.iter().sum();
    assert_eq!(total, 1_500);
}

#[tokio::test]
async fn with_leases_what_is_not_used_is_put_back() {
    let redis = Redis::start();
    let quota = Quota::per(800, HOUR).unwrap();
    let leases = Leases::default().lifetime(Duration::from_millis(200));
    let (node, asking) = (leasing(&redis, leases), limiter(&redis));
    let clock = SystemClock::new();
    let leased = bucket(&node, 1, &quota, clock.monotonic());
    assert_eq!(admitted(&leased, 30, clock.monotonic()).await, 30);
    let asked = bucket(&asking, 1, &quota, SECOND);
    eventually("all but 30 are there", async || {
        decided(asked.peek(SECOND)).await[0].remaining() == 770
    })
    .await;
    // The reported rest is what is left in the bucket and in the lease.
    let decisions = decided(leased.take(ONE, clock.monotonic())).await;
    assert_eq!(decisions[0].remaining(), 769);
}

#[tokio::test]
async fn with_leases_a_key_that_has_nothing_left_does_not_keep_redis_busy() {
    let redis = Redis::start();
    let (node, now) = (leasing(&redis, Leases::default()), SECOND);
    for (key, quota) in [(1, Quota::per(5, HOUR).unwrap()), (2, Quota::sliding(5, HOUR).unwrap())] {
        let buckets = bucket(&node, key, &quota, now);
        assert_eq!(admitted(&buckets, 6, now).await, 5);
        let before = redis.scripts_run();
        for late in [Duration::ZERO, SECOND / 2, SECOND - Duration::from_millis(1)] {
            assert_eq!(admitted(&buckets, 100, now + late).await, 0);
        }
        assert_eq!(redis.scripts_run(), before);
        let told = decided(buckets.take(ONE, now)).await[0].next_unit_in();
        assert!(told > Duration::from_secs(600), "{told:?}");
        assert_eq!(admitted(&buckets, 1, now + SECOND).await, 0);
        assert_eq!(redis.scripts_run(), before + 1);
    }
}

#[tokio::test]
async fn with_leases_nobody_misses_for_long_what_another_node_holds() {
    let redis = Redis::start();
    let clock = SystemClock::new();
    let quota = Quota::sliding(80, HOUR).unwrap();
    let leases = || Leases::default().lifetime(SECOND / 4);
    let (holding, other) = (leasing(&redis, leases()), leasing(&redis, leases()));
    let [held, wanted] = [&holding, &other].map(|node| bucket(node, 1, &quota, clock.monotonic()));
    // Slices of 1, 2, 4 and 8, and 10 from then on: of the last one, 5 units are held unused.
    assert_eq!(admitted(&held, 75, clock.monotonic()).await, 75);
    assert_eq!(admitted(&wanted, 1, clock.monotonic()).await, 0);
    eventually("it is back", async || admitted(&wanted, 1, clock.monotonic()).await == 1).await;
}
