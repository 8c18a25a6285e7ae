//! The layer as a client sees it: HTTP, RFC 6750, scopes, streams, and the contract of a tower service.

#![cfg(test)]

#[path = "../by_hand/mod.rs"]
mod by_hand;
#[path = "../doubles/mod.rs"]
mod doubles;
#[path = "../support/mod.rs"]
mod support;
#[path = "../wait/mod.rs"]
mod wait;

mod http_semantics;
mod panics;
mod rfc6750;
mod scopes;
mod service_contract;
mod status;
mod streams;
