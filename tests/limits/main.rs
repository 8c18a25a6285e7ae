//! Rate limits, in one process and shared through Redis.

#![cfg(test)]
#![cfg(all(
    feature = "axum",
    feature = "postgres",
    feature = "redis",
    feature = "test-util",
    feature = "tracing"
))]

#[path = "../support/app/mod.rs"]
mod app;
#[path = "../support/raw_store/mod.rs"]
mod raw_store;
#[path = "../support/redis_limiter/mod.rs"]
mod redis_limiter;
#[path = "../support/servers/mod.rs"]
mod servers;
#[path = "../support/simulator/mod.rs"]
mod simulator;
#[path = "../support/wait/mod.rs"]
mod wait;

mod changed_lists;
mod changed_quotas;
mod decisions;
mod limiter_contract;
mod limiter_threads;
mod limits;
mod offered_contract;
mod owed_units;
mod plans;
mod quota_changes;
mod rate_limit;
mod redis;
mod redis_fleet;
mod redis_quotas;
