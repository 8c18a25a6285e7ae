//! Three processes and one Redis: together they admit what was promised, and all of it.
//!
//! Windows are of 4 s here, so that it does not take long. With `FLEET_WINDOW_MS=60000 cargo test
//! --all-features --test redis_fleet -- --nocapture` they are minutes.

use std::{
    env,
    io::{Read, Write},
    num::NonZeroU32,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use crate::servers::redis::Redis;
use serde::{Deserialize, Serialize};
use tokio::{
    io::AsyncReadExt,
    task::JoinSet,
    time::{interval, timeout},
};
use tower_api_key::{
    clock::{Clock, SystemClock},
    rate_limit::{
        Leases, LocalRateLimiter, OutagePolicy, Quota, RateLimiter, RedisRateLimiter,
        port::{Check, Subject},
    },
};

const NODES: usize = 3;
const LIMIT: u32 = 1_000;
const WINDOWS: u32 = 3;
/// Concurrent requests of each node.
const CLIENTS: usize = 4;
const SETTINGS: &str = "FLEET_NODE";

#[derive(Clone, Serialize, Deserialize)]
struct Settings {
    redis: String,
    quota: Quota,
    leases: bool,
    /// The interval of a client's requests.
    pace: Duration,
}

/// The time of a decision: some time between these two, in microseconds.
type Asked = (u64, u64);

#[derive(Default, Serialize, Deserialize)]
struct Report {
    admitted: Vec<Asked>,
    denied: Vec<Asked>,
}

impl Report {
    fn add(&mut self, other: Self) {
        self.admitted.extend(other.admitted);
        self.denied.extend(other.denied);
    }
}

/// Runs the node if this process was started as one; returns whether it was, after its end. A node
/// makes as many requests as it can.
async fn run_if_node() -> bool {
    let Ok(settings) = env::var(SETTINGS) else { return false };
    run_node(serde_json::from_str(&settings).unwrap()).await;
    true
}

async fn run_node(settings: Settings) {
    // Lateness of a busy machine shows in the sum.
    let mut builder = RedisRateLimiter::builder(&settings.redis)
        .when_unavailable(OutagePolicy::Deny)
        .deadline(Duration::from_secs(1));
    if settings.leases {
        builder = builder.leases(Leases::default());
    }
    let (limiter, clock) = (builder.build().unwrap(), SystemClock::new());
    let subject = Subject::of_key("acme", 1);
    let buckets = limiter.buckets(&subject, &settings.quota.clone().into(), clock.monotonic());
    let is_over = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let (buckets, clock) = (Arc::clone(&buckets), clock.clone());
        let (is_over, mut pace) = (Arc::clone(&is_over), interval(settings.pace));
        clients.spawn(async move {
            let mut report = Report::default();
            while !is_over.load(Ordering::Acquire) {
                pace.tick().await;
                let before = micros(&clock);
                let decisions = match buckets.take(NonZeroU32::MIN, clock.monotonic()) {
                    Check::Ready(decisions) => decisions,
                    Check::Pending(decisions) => decisions.await,
                    _ => unreachable!("there is no other"),
                };
                let asked = (before, micros(&clock));
                let of_this =
                    if decisions.is_admitted() { &mut report.admitted } else { &mut report.denied };
                of_this.push(asked);
            }
            report
        });
    }
    // It ends with the test, or when the test stops it.
    let mut nothing = [0];
    let _ = tokio::io::stdin().read(&mut nothing).await;
    is_over.store(true, Ordering::Release);
    let mut report = Report::default();
    clients.join_all().await.into_iter().for_each(|of_one| report.add(of_one));
    let report = serde_json::to_string(&report).unwrap();
    writeln!(std::io::stdout(), "\nreport {report}").unwrap();
}

/// A clock that all processes of a machine share.
fn micros(clock: &SystemClock) -> u64 {
    let now = clock.now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    u64::try_from(now.as_micros()).unwrap()
}

struct Node(Child);

impl Node {
    fn start(settings: &Settings) -> Self {
        // The test of this file that runs as a node if the settings are set.
        let test = ["redis_fleet::a_fleet_keeps_a_sliding_window", "--exact", "--nocapture"];
        let child = Command::new(env::current_exe().unwrap())
            .args(test)
            .env(SETTINGS, serde_json::to_string(settings).unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        Self(child.unwrap())
    }

    fn end(mut self) -> Report {
        drop(self.0.stdin.take());
        let mut said = String::new();
        self.0.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(self.0.wait().unwrap().success(), "{said}");
        let report = said.lines().find_map(|line| line.strip_prefix("report "));
        let report = report.unwrap_or_else(|| panic!("the node did not run: {said}"));
        serde_json::from_str(report).unwrap()
    }
}

fn window() -> Duration {
    let millis = env::var("FLEET_WINDOW_MS").map_or(4_000, |millis| millis.parse().unwrap());
    Duration::from_millis(millis)
}

async fn a_fleet_keeps(quota: Quota, leases: bool) {
    let (redis, window) = (Redis::start(), quota.window());
    // All clients together make four times as many requests as are admitted, and at least 500 a
    // second.
    let clients = u32::try_from(NODES * CLIENTS).unwrap();
    let pace = (window / LIMIT / 4 * clients).min(Duration::from_millis(24));
    let settings = Settings { redis: redis.url(), quota: quota.clone(), leases, pace };
    let nodes = [(); NODES].map(|()| Node::start(&settings));
    let _ = timeout(window * WINDOWS + window / 2, std::future::pending::<()>()).await;
    let mut report = Report::default();
    for node in nodes {
        let of_node = node.end();
        assert!(!of_node.admitted.is_empty(), "a node was let in nothing at all");
        report.add(of_node);
    }
    let held_for = if leases { Duration::from_secs(1) } else { Duration::ZERO };
    let worst = most_used(&quota, &report.admitted, held_for);

    let (total, all) = (report.admitted.len(), admitted_by_one(&quota, &report));
    let (asked, scripts) = (total + report.denied.len(), redis.scripts_run());
    println!(
        "{:?}{}: {NODES} nodes asked {asked} times in {:?}: {total} let in, one process would {all} \
         ({:.1} %); at most {:.1} % of the bound in any window; {:.2} scripts per request let in, \
         {:.2} per request",
        quota.algorithm(),
        if leases { " with leases" } else { "" },
        window * WINDOWS + window / 2,
        100.0 * total as f64 / all as f64,
        100.0 * worst,
        scripts as f64 / total as f64,
        scripts as f64 / asked as f64,
    );
    assert!(total * 100 >= all * 99, "{total} of {all}");
}

/// The number of the same requests that a single process would admit.
fn admitted_by_one(quota: &Quota, report: &Report) -> usize {
    let mut asked: Vec<_> = report.admitted.iter().chain(&report.denied).copied().collect();
    asked.sort_unstable();
    let limiter = LocalRateLimiter::new();
    let time = |(before, _): &Asked| Duration::from_micros(*before);
    let subject = Subject::of_key("acme", 1);
    let buckets = limiter.buckets(&subject, &quota.clone().into(), time(&asked[0]));
    let is_admitted = |asked: &&Asked| match buckets.take(NonZeroU32::MIN, time(asked)) {
        Check::Ready(decisions) => decisions.is_admitted(),
        _ => unreachable!("it is decided at once"),
    };
    asked.iter().filter(is_admitted).count()
}

/// The largest share of the bound used in any window, which must be at most all of it. A window
/// counts what was certainly admitted in it.
fn most_used(quota: &Quota, admitted: &[Asked], held_for: Duration) -> f64 {
    let mut worst = 0.0_f64;
    for window in [quota.window(), quota.window() / 2, quota.window() / 7, quota.window() * 2] {
        let length = u64::try_from(window.as_micros()).unwrap();
        let bound = quota.most_in(window + held_for);
        let mut by_end = admitted.to_vec();
        by_end.sort_by_key(|(_, after)| *after);
        let mut begins: Vec<u64> = admitted.iter().map(|(before, _)| *before).collect();
        begins.sort_unstable();
        // Every relevant window begins with a request.
        for begin in begins.into_iter().step_by(7) {
            let within = by_end.iter().take_while(|(_, after)| *after <= begin + length);
            let held = within.filter(|(before, _)| *before >= begin).count() as u64;
            assert!(held <= bound, "{held} of at most {bound} in {window:?}: {quota:?}");
            worst = worst.max(held as f64 / bound as f64);
        }
    }
    worst
}

#[tokio::test]
async fn a_fleet_keeps_a_quota_that_refills_evenly() {
    let quota = Quota::per(LIMIT, window()).unwrap();
    tokio::join!(a_fleet_keeps(quota.clone(), false), a_fleet_keeps(quota, true));
}

#[tokio::test]
async fn a_fleet_keeps_a_sliding_window() {
    if run_if_node().await {
        return;
    }
    let quota = Quota::sliding(LIMIT, window()).unwrap();
    tokio::join!(a_fleet_keeps(quota.clone(), false), a_fleet_keeps(quota, true));
}
