//! Rate limits, in one process and shared through Redis.

#![cfg(test)]

#[path = "../by_hand/mod.rs"]
mod by_hand;
#[path = "../harness/mod.rs"]
mod harness;
#[path = "../redis_limiter/mod.rs"]
mod redis_limiter;
#[path = "../simulator/mod.rs"]
mod simulator;
#[path = "../support/mod.rs"]
mod support;
#[path = "../wait/mod.rs"]
mod wait;

mod limiter_contract;
mod limiter_threads;
mod limits;
mod plans;
mod quota_changes;
mod rate_limit;
mod redis;
mod redis_fleet;
mod redis_quotas;
mod redis_tls;
