//! Decisions about keys: the cache, the change feed, throttling and the worker.

#![cfg(test)]

#[path = "../by_hand/mod.rs"]
mod by_hand;
#[path = "../doubles/mod.rs"]
mod doubles;
#[path = "../harness/mod.rs"]
mod harness;
#[path = "../support/mod.rs"]
mod support;
#[path = "../wait/mod.rs"]
mod wait;

mod cache;
mod cache_model;
mod cache_threads;
mod feed;
mod flood;
mod retirement;
mod throttle;
mod worker;
