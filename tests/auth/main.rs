//! Decisions about keys: the cache, the change feed, throttling and the worker.

#![cfg(test)]
#![cfg(all(
    feature = "axum",
    feature = "legacy-hashes",
    feature = "metrics",
    feature = "postgres",
    feature = "sqlite",
    feature = "test-util",
    feature = "tracing"
))]

#[path = "../support/app/mod.rs"]
mod app;
#[path = "../support/doubles/mod.rs"]
mod doubles;
#[path = "../support/raw_store/mod.rs"]
mod raw_store;
#[path = "../support/servers/mod.rs"]
mod servers;
#[path = "../support/wait/mod.rs"]
mod wait;

mod cache;
mod cache_model;
mod cache_threads;
mod count_flushes;
mod feed;
mod flood;
mod legacy_hashes;
mod metric_descriptions;
mod metrics;
mod retirement;
mod throttle;
mod usage_totals;
mod worker;
