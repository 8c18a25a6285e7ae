//! Several nodes, and outages of what they depend on.

#![cfg(test)]
#![cfg(all(
    feature = "admin",
    feature = "axum",
    feature = "leaks",
    feature = "postgres",
    feature = "redis",
    feature = "sqlite",
    feature = "test-util",
    feature = "tracing",
    feature = "ws"
))]

#[path = "../support/doubles/mod.rs"]
mod doubles;
#[path = "../support/github/mod.rs"]
mod github;
#[path = "../support/nodes/mod.rs"]
mod nodes;
#[path = "../support/raw_store/mod.rs"]
mod raw_store;
#[path = "../support/servers/mod.rs"]
mod servers;
#[path = "../support/wait/mod.rs"]
mod wait;

mod failover;
mod feed_outages;
mod fleet;
mod outages;
mod redis_outages;
mod replicas;
mod signals;
