//! The life of a key: issuing, changing, auditing, and the HTTP routers that do so.

#![cfg(test)]

#[path = "../by_hand/mod.rs"]
mod by_hand;
#[path = "../desk/mod.rs"]
mod desk;
#[path = "../doubles/mod.rs"]
mod doubles;
#[path = "../harness/mod.rs"]
mod harness;
#[path = "../support/mod.rs"]
mod support;
#[path = "../wait/mod.rs"]
mod wait;

mod account;
mod admin;
mod audit;
mod bounds;
mod grants;
mod listing;
mod manage;
mod openapi;
mod rotation;
mod schemathesis;
