//! A fleet under a schedule of faults; an oracle judges every response.
//!
//! ```text
//! cargo test --all-features --test soak                                  # a minute
//! SOAK_SECONDS=3600 SOAK_SEED=7 cargo test --all-features --test soak    # an hour of another
//! schedule SOAK_REPORT=soak.json …                                                # the figures,
//! for docs/soak.md
//! ```
//!
//! Three nodes, each a process, share a PostgreSQL and a Redis. A driver changes keys in code, by
//! SQL and through the admin router of a node; clients send requests over HTTP/1.1 and HTTP/2 to
//! random nodes; faults follow a schedule that the seed decides. The [oracle](oracle) knows when
//! each change was committed and what the manual promises, and nothing about the library.

#![cfg(test)]
#![cfg(all(feature = "admin", feature = "postgres", feature = "redis"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a harness that fails must fail its test, and real time is what is tested"
)]

#[path = "../support/servers/mod.rs"]
mod servers;

mod client;
mod clock;
mod driver;
mod faults;
mod fleet;
mod node;
mod oracle;
mod random;
mod report;
mod uses;

use std::{env, fs, sync::Arc, time::Duration};

use tokio::sync::mpsc;

use self::{
    clock::Clock,
    driver::Driver,
    faults::Faults,
    fleet::{Fleet, Resources},
    oracle::{Oracle, Situation},
    random::Random,
};

/// The number of keys at the beginning.
const KEYS: usize = 400;
const CLIENTS: usize = 12;
/// The test that runs as a node if its settings say so.
const TEST: &str = "every_answer_of_a_fleet_under_faults_is_as_the_manual_promises";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_of_a_fleet_under_faults_is_as_the_manual_promises() {
    if node::run_if_node().await {
        return;
    }
    let setting =
        |name, default| env::var(name).map_or(default, |value| value.parse().expect("a number"));
    let length = Duration::from_secs(setting("SOAK_SECONDS", 60));
    let seed = setting("SOAK_SEED", 1);
    let report = soak(length, seed).await;
    println!("{report}");
    if let Ok(file) = env::var("SOAK_REPORT") {
        fs::write(file, report.to_json()).expect("the report");
    }
    assert!(report.is_right(), "seed {seed}");
}

async fn soak(length: Duration, seed: u64) -> report::Report {
    let clock = Clock::start();
    let fleet = Fleet::start(clock).await;
    let mut random = Random::new(seed);
    let (answers, judged) = mpsc::unbounded_channel();
    let oracle = Oracle::new(clock, node::POLICY, fleet.len());

    let mut driver = Driver::new(&fleet, &oracle, clock, random.fork()).await;
    driver.issue_many(KEYS).await;
    let judge = tokio::spawn(oracle.clone().judge(judged));
    let mut tasks = tokio::task::JoinSet::new();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    for number in 0..CLIENTS {
        let client = client::Client::new(&fleet, &oracle, clock, random.fork(), number);
        tasks.spawn(client.run(answers.clone(), stopped.clone()));
    }
    drop(answers);
    let changes = tokio::spawn(driver.run(stopped));
    let watch = tokio::spawn(watch_machine(oracle.clone(), clock));
    let resources = tokio::spawn(watch_nodes(Arc::clone(&fleet), length));
    let faults = Faults::new(&fleet, &oracle, clock, random.fork()).await;
    let faults = faults.run(length).await;
    // Stop the changes first, so that the last of them is resolved before the last response is
    // judged.
    stop.send_replace(true);
    let changes = changes.await.expect("the driver");
    while let Some(ended) = tasks.join_next().await {
        ended.expect("a client");
    }
    let judgement = judge.await.expect("the judge");
    watch.abort();
    let resources = resources.await.expect("the nodes' resources");
    for node in 0..fleet.len() {
        fleet.signal(node, "TERM").await;
        let written_until = fleet.ended(node).await;
        oracle.node_ended(node, false, written_until);
    }
    let mut session = fleet.session().await;
    let hourly = uses::read(&mut session, uses::HOURLY).await;
    let daily = uses::read(&mut session, uses::DAILY).await;
    let audit = oracle.audit(&hourly, &daily);
    report::Report::new(seed, length, changes, faults, resources, judgement, audit)
}

/// The maximum resources of a node in this time.
async fn watch_nodes(fleet: Arc<Fleet>, length: Duration) -> Resources {
    let mut most = Resources::default();
    let mut turns = tokio::time::interval(Duration::from_secs(1));
    for _ in 0..length.as_secs() {
        turns.tick().await;
        let taken = (0..fleet.len()).filter_map(|node| fleet.resources(node));
        most = taken.fold(most, Resources::or_more);
    }
    most
}

/// Tells the oracle when this process was not scheduled for a while: then the nodes were not
/// either.
async fn watch_machine(oracle: Oracle, clock: Clock) {
    const TICK: Duration = Duration::from_millis(50);
    const LATE: clock::Micros = 300 * clock::MILLI;
    loop {
        let begun = clock.now();
        tokio::time::sleep(TICK).await;
        if clock.now() - begun > LATE {
            let late = oracle.disturb(None, Situation::Frozen, "the machine is overloaded");
            oracle.began(late, begun);
            oracle.end(late);
        }
    }
}
