//! The life of a key: issuing, changing, auditing, and the HTTP routers that do so.

#![cfg(test)]
#![cfg(all(
    feature = "axum",
    feature = "leaks",
    feature = "openapi",
    feature = "postgres",
    feature = "sqlite",
    feature = "test-util",
    feature = "tracing"
))]

#[path = "../support/admin_client/mod.rs"]
mod admin_client;
#[path = "../support/app/mod.rs"]
mod app;
#[path = "../support/doubles/mod.rs"]
mod doubles;
#[path = "../support/github/mod.rs"]
mod github;
#[path = "../support/raw_store/mod.rs"]
mod raw_store;
#[path = "../support/servers/mod.rs"]
mod servers;
#[path = "../support/wait/mod.rs"]
mod wait;

mod account;
mod admin;
mod api_keys;
mod audit;
mod bounds;
mod canaries;
mod grants;
mod in_shadow;
mod key_places;
mod leak_keys;
mod leaks;
mod listing;
mod manage;
mod members;
mod openapi;
mod policy;
mod rotation;
mod schemathesis;
mod scope_catalog;
mod usage;
