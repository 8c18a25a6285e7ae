//! Several nodes, and outages of what they depend on.

#![cfg(test)]

#[path = "../by_hand/mod.rs"]
mod by_hand;
#[path = "../doubles/mod.rs"]
mod doubles;
#[path = "../harness/mod.rs"]
mod harness;
#[path = "../nodes/mod.rs"]
mod nodes;
#[path = "../wait/mod.rs"]
mod wait;

mod failover;
mod feed_outages;
mod fleet;
mod outages;
mod redis_outages;
mod replicas;
mod signals;
