//! Limits that a fleet shares while Redis is down, slow, or misbehaving: no request waits, none is
//! refused that a single node would admit, and sharing resumes within a second.

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::servers::{
    proxy::{Fault, FaultProxy},
    redis::{Impostor, Redis},
};
use axum::{Router, body::Body, routing::get};
use http::{Request, StatusCode};
use tokio::{
    task::JoinSet,
    time::{Instant, interval, timeout},
};
use tower::ServiceExt;
use tower_api_key::{
    ApiKeyLayer, Authenticator,
    clock::{Clock, SystemClock},
    key::KeyFormat,
    manage::{Expiry, KeyIssuer, NewKey},
    rate_limit::{
        Leases, LocalRateLimiter, OutagePolicy, Quota, RateLimiter, RateLimits, RedisRateLimiter,
        port::{Buckets, Check, Decisions, Subject},
    },
    store::MemoryKeyStore,
};

use crate::wait::{PATIENCE, eventually, within};

/// The default.
const DEADLINE: Duration = Duration::from_millis(25);
/// The slack beyond the deadline: timers have a resolution of a millisecond, and work takes time.
const SLACK: Duration = Duration::from_millis(5);
const SECOND: Duration = Duration::from_secs(1);

async fn decided(check: Check) -> Decisions {
    match check {
        Check::Ready(decisions) => decisions,
        Check::Pending(decisions) => decisions.await,
        _ => unreachable!("there is no other"),
    }
}

/// Always the same key, whose quotas admit far fewer than are sent.
const KEY: Subject<'_> = Subject::of_key("acme", 1);

fn quotas() -> RateLimits {
    let second = Quota::per_second(150).unwrap().burst(30).unwrap();
    let sliding = Quota::sliding(40, SECOND / 4).unwrap().per_consumer();
    RateLimits::new([second, sliding]).unwrap()
}

/// Continuous requests, and their results.
struct Load {
    tasks: JoinSet<Seen>,
    /// The lateness of this machine itself: other tests are busy, too.
    lateness: JoinSet<Vec<Duration>>,
    decisions: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
}

/// The decisions of half a second, if the machine keeps up.
const HALF_A_SECOND: u64 = 500;

#[derive(Default)]
struct Seen {
    times: Vec<Duration>,
    admitted: u32,
    /// The decisions of a limiter of one process on the same requests.
    admitted_by_one: u32,
}

impl Seen {
    fn assert_nobody_waited(&self, late: Duration) {
        let p99 = self.times[self.times.len() * 99 / 100];
        assert!(p99 <= DEADLINE + SLACK + late, "{p99:?}, and {late:?} late by itself");
    }
}

impl Load {
    fn start(limiter: &Arc<RedisRateLimiter>) -> Self {
        let (clock, one) = (SystemClock::new(), LocalRateLimiter::new());
        let now = clock.monotonic();
        let (buckets, one) =
            (limiter.buckets(&KEY, &quotas(), now), one.buckets(&KEY, &quotas(), now));
        let (decisions, is_over) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (mut tasks, mut lateness) = (JoinSet::new(), JoinSet::new());
        for _ in 0..4 {
            let (clock, buckets, one) = (clock.clone(), Arc::clone(&buckets), Arc::clone(&one));
            tasks.spawn(ask(clock, buckets, one, Arc::clone(&decisions), Arc::clone(&is_over)));
        }
        lateness.spawn(be_late(Arc::clone(&is_over)));
        Self { tasks, lateness, decisions, is_over }
    }

    /// Waits for this many more decisions.
    async fn is_decided(&self, more: u64) {
        let then = self.decisions.load(Ordering::SeqCst) + more;
        let what = format!("{more} requests are decided");
        eventually(what, async || self.decisions.load(Ordering::SeqCst) >= then).await;
    }

    async fn end(self) -> (Seen, Duration) {
        self.is_over.store(true, Ordering::Release);
        let mut all = Seen::default();
        for seen in within(self.tasks.join_all()).await {
            all.times.extend(seen.times);
            all.admitted += seen.admitted;
            all.admitted_by_one += seen.admitted_by_one;
        }
        all.times.sort();
        let mut late = within(self.lateness.join_all()).await.remove(0);
        late.sort();
        (all, late[late.len() * 99 / 100])
    }
}

async fn ask(
    clock: SystemClock,
    buckets: Arc<dyn Buckets>,
    one: Arc<dyn Buckets>,
    count: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
) -> Seen {
    let (mut pace, mut seen) = (interval(Duration::from_millis(4)), Seen::default());
    while !is_over.load(Ordering::Acquire) {
        pace.tick().await;
        let (now, begun) = (clock.monotonic(), Instant::now());
        let decisions = decided(buckets.take(NonZeroU32::MIN, now)).await;
        seen.times.push(begun.elapsed());
        seen.admitted += u32::from(decisions.is_admitted());
        let decisions = decided(one.take(NonZeroU32::MIN, now)).await;
        seen.admitted_by_one += u32::from(decisions.is_admitted());
        count.fetch_add(1, Ordering::SeqCst);
    }
    seen
}

async fn be_late(is_over: Arc<AtomicBool>) -> Vec<Duration> {
    let (mut late, never) = (Vec::new(), std::future::pending::<()>);
    while !is_over.load(Ordering::Acquire) {
        let begun = Instant::now();
        let _ = timeout(SLACK, never()).await;
        late.push(begun.elapsed().saturating_sub(SLACK));
    }
    late
}

async fn until(limiter: &RedisRateLimiter, is_shared: bool) -> Duration {
    let (mut again, begun) = (interval(Duration::from_millis(2)), Instant::now());
    while limiter.is_shared() != is_shared {
        assert!(begun.elapsed() < PATIENCE, "`is_shared` does not become {is_shared}");
        again.tick().await;
    }
    begun.elapsed()
}

/// How an outage begins and ends.
struct Outage<B, E> {
    url: String,
    begin: B,
    end: E,
    /// Whether nodes decide locally during it.
    is_alone: bool,
}

impl<B: AsyncFn(), E: AsyncFn()> Outage<B, E> {
    /// On a node that asks Redis for each request, and on one that does not.
    async fn is_survived(&self) {
        let asking = RedisRateLimiter::builder(&self.url);
        let leasing = RedisRateLimiter::builder(&self.url).prefix("leases");
        let limiters = [asking, leasing.leases(Leases::default())];
        let limiters = limiters.map(|limiter| Arc::new(limiter.build().unwrap()));
        let loads = limiters.each_ref().map(Load::start);
        let both = async |count| {
            tokio::join!(loads[0].is_decided(count), loads[1].is_decided(count));
        };
        for limiter in &limiters {
            until(limiter, true).await;
        }
        both(HALF_A_SECOND).await;

        (self.begin)().await;
        for limiter in limiters.iter().filter(|_| self.is_alone) {
            until(limiter, false).await;
        }
        both(2 * HALF_A_SECOND).await;
        assert!(limiters.iter().all(|limiter| limiter.is_shared() != self.is_alone));

        (self.end)().await;
        let [asking, leasing] = &limiters;
        let (asking, leasing) = tokio::join!(until(asking, true), until(leasing, true));
        both(HALF_A_SECOND).await;

        for (load, back) in loads.into_iter().zip([asking, leasing]) {
            let (seen, late) = load.end().await;
            seen.assert_nobody_waited(late);
            assert!(back < SECOND + late, "shared again after {back:?}");
            let (admitted, one) = (f64::from(seen.admitted), f64::from(seen.admitted_by_one));
            assert!(admitted >= 0.9 * one, "{admitted}, and {one} by one process");
            assert!(admitted <= 1.15 * one, "{admitted}, and {one} by one process");
        }
    }
}

async fn through_a_proxy(fault: Fault) {
    let redis = Redis::start();
    let proxy = FaultProxy::start(redis.addr()).await;
    let (begin, end) = (async || proxy.set(fault).await, async || proxy.set(Fault::Pass).await);
    Outage { url: proxy.url(&redis.url()), begin, end, is_alone: true }.is_survived().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_refused() {
    through_a_proxy(Fault::Refuse).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_reset() {
    through_a_proxy(Fault::Rst).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_end_in_the_middle_of_an_answer() {
    through_a_proxy(Fault::CutAfter(60)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_network_swallows_everything() {
    through_a_proxy(Fault::BlackHole).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_network_swallows_what_redis_says() {
    through_a_proxy(Fault::Mute).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_takes_200_milliseconds() {
    through_a_proxy(Fault::Delay(Duration::from_millis(200))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_is_killed_and_has_lost_everything_when_it_is_back() {
    let redis = Redis::start();
    let (begin, end) = (async || redis.kill(), async || redis.start_again());
    Outage { url: redis.url(), begin, end, is_alone: true }.is_survived().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_is_restarted() {
    let redis = Redis::start();
    let (begin, end) = (async || redis.stop(), async || redis.start_again());
    Outage { url: redis.socket_url(), begin, end, is_alone: true }.is_survived().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_stands_still() {
    let redis = Redis::start();
    let (begin, end) = (async || redis.signal("STOP"), async || redis.signal("CONT"));
    Outage { url: redis.url(), begin, end, is_alone: true }.is_survived().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_is_a_replica() {
    let redis = Redis::start();
    let begin = async || redis.tell("REPLICAOF 127.0.0.1 1");
    let end = async || redis.tell("REPLICAOF NO ONE");
    Outage { url: redis.url(), begin, end, is_alone: true }.is_survived().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_has_no_memory_left() {
    let redis = Redis::start();
    let begin = async || redis.tell("CONFIG SET maxmemory 1");
    let end = async || redis.tell("CONFIG SET maxmemory 0");
    Outage { url: redis.url(), begin, end, is_alone: true }.is_survived().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_answers_with_errors_or_nonsense() {
    let redis = Redis::start();
    for answer in [
        "-LOADING Redis is loading the dataset in memory",
        "-MOVED 3999 127.0.0.1:6381",
        "-CLUSTERDOWN The cluster is down",
        "-NOSCRIPT No matching script. Please use EVAL.",
        "+OK",
        "$3\r\nlol",
    ] {
        let impostor = Impostor::start(redis.addr()).await;
        let limiter = Arc::new(RedisRateLimiter::builder(&impostor.url()).build().unwrap());
        let load = Load::start(&limiter);
        until(&limiter, true).await;
        impostor.say(Some(answer));
        until(&limiter, false).await;
        load.is_decided(HALF_A_SECOND).await;
        assert!(!limiter.is_shared(), "{answer}");
        impostor.say(None);
        let back = until(&limiter, true).await;
        let (seen, late) = load.end().await;
        assert!(back < SECOND + late, "{answer}: shared again after {back:?}");
        seen.assert_nobody_waited(late);
        redis.tell("FLUSHALL");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_redis_has_lost_the_nodes_know() {
    let redis = Redis::start();
    for lost in ["FLUSHALL", "SCRIPT FLUSH"] {
        // Each time, the units of the requests under way are lost.
        let begin = async || {
            let mut pace = interval(SECOND / 4);
            for _ in 0..4 {
                pace.tick().await;
                redis.tell(lost);
            }
        };
        let outage = Outage { url: redis.url(), begin, end: async || {}, is_alone: false };
        outage.is_survived().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_holds_something_else_is_decided_here_and_the_others_there() {
    let redis = Redis::start();
    let limiter = RedisRateLimiter::builder(&redis.url()).build().unwrap();
    let quota = Quota::per_minute(2).unwrap();
    let bucket =
        |key| limiter.buckets(&Subject::of_key("acme", key), &quota.clone().into(), SECOND);
    redis.tell(&format!("RPUSH tower-api-key:{{acme}}:k:{:032x} x", 1));
    let (spoiled, well) = (bucket(1), bucket(2));
    for _ in 0..20 {
        let decisions = decided(spoiled.take(NonZeroU32::MIN, SECOND)).await;
        assert!(decisions[0].next_unit_in() <= Duration::from_secs(30));
    }
    assert!(!decided(spoiled.take(NonZeroU32::MIN, SECOND)).await.is_admitted());
    assert!(decided(well.take(NonZeroU32::MIN, SECOND)).await.is_admitted());
    assert!(limiter.is_shared());
    assert_eq!(redis.keys().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_chose_so_is_turned_away_for_a_second() {
    let redis = Redis::start();
    let builder = RedisRateLimiter::builder(&redis.url()).when_unavailable(OutagePolicy::Deny);
    let (limiter, clock) = (Arc::new(builder.build().unwrap()), SystemClock::new());
    let buckets = limiter.buckets(&KEY, &quotas(), clock.monotonic());
    let take = async || decided(buckets.take(NonZeroU32::MIN, clock.monotonic())).await;
    eventually("Redis decides", async || take().await.is_admitted()).await;
    redis.kill();
    let denied = take().await;
    assert!(!denied.is_admitted());
    assert!(denied.iter().all(|decision| decision.next_unit_in() == SECOND));
    assert!(!decided(buckets.peek(clock.monotonic())).await.is_admitted());
    redis.start_again();
    eventually("Redis decides again", async || take().await.is_admitted()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_without_its_redis_keeps_the_limit_where_the_nodes_know_how_many_they_are() {
    let closed = crate::servers::Port::reserve();
    let url = format!("redis://{}", closed.addr);
    for quota in [Quota::per_minute(10).unwrap(), Quota::sliding(10, SECOND).unwrap()] {
        let mut admitted = 0;
        for _ in 0..3 {
            let limiter = RedisRateLimiter::builder(&url).nodes(3).build().unwrap();
            let buckets = limiter.buckets(&KEY, &quota.clone().into(), SECOND);
            for _ in 0..20 {
                let decisions = decided(buckets.take(NonZeroU32::MIN, SECOND)).await;
                admitted += u32::from(decisions.is_admitted());
            }
        }
        assert_eq!(admitted, 3 * 4, "a third of 10, rounded up, each");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_the_whole_service_never_see_more_of_an_outage_than_their_limit() {
    let redis = Redis::start();
    let limiter = Arc::new(RedisRateLimiter::builder(&redis.url()).build().unwrap());
    let quota = Quota::per_second(50).unwrap();
    let (store, format) = (MemoryKeyStore::new(), KeyFormat::new("sk_test_").unwrap());
    let (auth, _worker) = Authenticator::builder(store.clone(), format.clone())
        .default_rate_limits(quota.clone())
        .rate_limiter(Arc::clone(&limiter))
        .build();
    let new = NewKey::new("acme", Expiry::Never);
    let key = KeyIssuer::new(store, format).issue(new).await.unwrap().key;
    let app: Router = Router::new().route("/", get(async || "hello")).layer(ApiKeyLayer::new(auth));
    let mut seen = [0_u64; 2];
    let mut request = async || {
        let bearer = format!("Bearer {}", key.expose_secret());
        let request = Request::get("/").header("authorization", bearer).body(Body::empty());
        let request = request.unwrap();
        match app.clone().oneshot(request).await.unwrap().status() {
            StatusCode::OK => seen[0] += 1,
            StatusCode::TOO_MANY_REQUESTS => seen[1] += 1,
            other => panic!("{other}"),
        }
    };
    let mut pace = interval(Duration::from_millis(4));
    let begun = Instant::now();
    for turn in 0..600 {
        match turn {
            150 => redis.kill(),
            300 => redis.start_again(),
            400 => redis.signal("STOP"),
            500 => redis.signal("CONT"),
            _ => {}
        }
        pace.tick().await;
        request().await;
    }
    // All responses arrive within this time.
    let most = quota.most_in(begun.elapsed());
    let [admitted, refused] = seen;
    assert!(admitted <= most, "{admitted} admitted of at most {most}");
    assert!(admitted * 10 >= most * 9, "{admitted} admitted of {most}");
    assert_eq!(admitted + refused, 600);
}
