//! Stores: what every store does, PostgreSQL, SQLite, and their tables.

#![cfg(test)]
#![cfg(all(
    feature = "admin",
    feature = "axum",
    feature = "postgres",
    feature = "sqlite",
    feature = "test-util",
    feature = "tracing"
))]

#[path = "../support/doubles/mod.rs"]
mod doubles;
#[path = "../support/raw_store/mod.rs"]
mod raw_store;
#[path = "../support/servers/mod.rs"]
mod servers;
#[path = "../support/wait/mod.rs"]
mod wait;

mod batched_lookups;
mod change_feed;
mod feed_contract;
mod harness_proxy;
mod isolation;
mod migrate;
mod postgres;
mod postgres_lookup;
mod sqlite;
mod store_contract;
mod stored;
mod stored_counts;
