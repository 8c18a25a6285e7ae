//! The cost of limits that a fleet shares: a decision compared with any other Redis call, and the
//! number of calls per request.
//!
//! `cargo bench --bench redis --features redis` starts a Redis of its own; with `REDIS_URL` it uses
//! that one, and leaves keys behind there until their buckets are full. All cases are interleaved
//! in one run, and the results are medians.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a benchmark that fails ends, and the time is what it is about"
)]

#[path = "../tests/support/servers/mod.rs"]
mod harness;

use std::{
    env,
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use redis::{Client, Cmd, aio::MultiplexedConnection, cmd};
use tokio::runtime::Builder;
use tower_api_key::{
    clock::{Clock, SystemClock},
    rate_limit::{
        Leases, Quota, RateLimiter, RateLimits, RedisRateLimiter,
        port::{Buckets, Check, Subject},
    },
};

use self::harness::redis::Redis;

const ROUNDS: usize = 21;
const ONE_AFTER_THE_OTHER: usize = 400;
const AT_ONCE: usize = 64;
const TIMES_AT_ONCE: usize = 40;

fn main() {
    // As `cargo test --benches` calls it.
    if env::args().any(|argument| argument == "--test") {
        return;
    }
    let (redis, url) = match env::var("REDIS_URL") {
        Ok(url) => (None, url),
        Err(_) => {
            let redis = Redis::start();
            let url = redis.url();
            (Some(redis), url)
        }
    };
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(run(redis.as_ref(), &url));
}

enum Case {
    Command(MultiplexedConnection, Cmd),
    Take(Arc<dyn Buckets>, SystemClock),
}

impl Case {
    async fn once(&self) {
        match self {
            Self::Command(connection, command) => {
                let () = command.query_async(&mut connection.clone()).await.unwrap();
            }
            Self::Take(buckets, clock) => {
                let decisions = match buckets.take(NonZeroU32::MIN, clock.monotonic()) {
                    Check::Ready(decisions) => decisions,
                    Check::Pending(decisions) => decisions.await,
                    _ => unreachable!("there is no other"),
                };
                assert!(decisions.is_admitted());
            }
        }
    }
}

async fn run(redis: Option<&Redis>, url: &str) {
    let client = Client::open(nodelay(url)).unwrap();
    let raw = client.get_multiplexed_async_connection().await.unwrap();
    let script = cmd("SCRIPT").arg("LOAD").arg("return 1").to_owned();
    let hash: String = script.query_async(&mut raw.clone()).await.unwrap();
    let command = |command: &mut Cmd| Case::Command(raw.clone(), command.to_owned());

    let clock = SystemClock::new();
    let limiter = RedisRateLimiter::builder(url).deadline(Duration::from_secs(1)).build().unwrap();
    let leasing = RedisRateLimiter::builder(url).deadline(Duration::from_secs(1));
    let leasing = leasing.leases(Leases::default()).build().unwrap();
    // Too large to be used up.
    let second = Quota::per_second(1_000_000).unwrap();
    let sliding = Quota::sliding(1_000_000_000, Duration::from_secs(60)).unwrap();
    let take = |limiter: &RedisRateLimiter, key: u128, quotas: &[&Quota]| {
        let named = quotas
            .iter()
            .enumerate()
            .map(|(at, quota)| (*quota).clone().named(format!("quota-{at}")).unwrap());
        let limits = RateLimits::new(named).unwrap();
        let buckets = limiter.buckets(&Subject::of_key("bench", key), &limits, clock.monotonic());
        Case::Take(buckets, clock.clone())
    };
    let cases = [
        ("PING", command(&mut cmd("PING"))),
        ("GET", command(cmd("GET").arg("bench"))),
        ("EVALSHA return 1", command(cmd("EVALSHA").arg(&hash).arg(0))),
        ("take, GCRA", take(&limiter, 1, &[&second])),
        ("take, sliding window", take(&limiter, 2, &[&sliding])),
        ("take, both", take(&limiter, 3, &[&second, &sliding])),
        ("take, GCRA, leases", take(&leasing, 4, &[&second])),
        ("take, both, leases", take(&leasing, 5, &[&second, &sliding])),
    ];

    let mut alone = vec![Vec::new(); cases.len()];
    let mut together = alone.clone();
    let mut scripts = vec![0; cases.len()];
    for round in 0..=ROUNDS {
        for (at, (_, case)) in cases.iter().enumerate() {
            let before = redis.map_or(0, Redis::scripts_run);
            let begun = Instant::now();
            for _ in 0..ONE_AFTER_THE_OTHER {
                case.once().await;
            }
            let one = begun.elapsed() / u32::try_from(ONE_AFTER_THE_OTHER).unwrap();
            let begun = Instant::now();
            for _ in 0..TIMES_AT_ONCE {
                join_all((0..AT_ONCE).map(|_| case.once())).await;
            }
            let of_many = begun.elapsed() / u32::try_from(TIMES_AT_ONCE * AT_ONCE).unwrap();
            // The first request connects and warms up.
            if round > 0 {
                alone[at].push(one);
                together[at].push(of_many);
                scripts[at] += redis.map_or(0, Redis::scripts_run) - before;
            }
        }
    }
    println!("{:<22} {:>10} {:>14} {:>16}", "", "one", "of 64 at once", "scripts/request");
    let requests = ROUNDS * (ONE_AFTER_THE_OTHER + TIMES_AT_ONCE * AT_ONCE);
    for (at, (name, _)) in cases.iter().enumerate() {
        let (one, of_many) = (median(&mut alone[at]), median(&mut together[at]));
        let scripts = scripts[at] as f64 / requests as f64;
        println!("{name:<22} {one:>10.1?} {of_many:>14.1?} {scripts:>16.4}");
    }
}

/// As in the limiter: small requests are sent at once (`TCP_NODELAY`).
fn nodelay(url: &str) -> redis::ConnectionInfo {
    let info = redis::IntoConnectionInfo::into_connection_info(url).unwrap();
    let settings = info.tcp_settings().clone().set_nodelay(true);
    info.set_tcp_settings(settings)
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
