//! Stores: what every store does, PostgreSQL, SQLite, and their tables.

#![cfg(test)]

#[path = "../by_hand/mod.rs"]
mod by_hand;
#[path = "../doubles/mod.rs"]
mod doubles;
#[path = "../harness/mod.rs"]
mod harness;
#[path = "../wait/mod.rs"]
mod wait;

mod batched_lookups;
mod change_feed;
mod harness_proxy;
mod isolation;
mod migrate;
mod postgres;
mod postgres_lookup;
mod sqlite;
mod store_contract;
mod stored;
