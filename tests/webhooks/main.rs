//! Webhooks: what a receiver gets, whatever fails on either side.

#![cfg(test)]
#![cfg(all(
    feature = "axum",
    feature = "metrics",
    feature = "postgres",
    feature = "sqlite",
    feature = "test-util",
    feature = "webhooks"
))]

#[path = "../support/servers/mod.rs"]
mod servers;
#[path = "../support/wait/mod.rs"]
mod wait;

mod counted;
mod databases;
mod delivery;
mod endpoints;
mod failures;
mod nodes;
mod notices;
mod order;
mod over_tls;
mod receiver;
mod signatures;
