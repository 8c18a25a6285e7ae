//! The layer as a client sees it: HTTP, RFC 6750, scopes, streams, and the contract of a tower
//! service.

#![cfg(test)]
#![cfg(all(feature = "axum", feature = "test-util", feature = "tracing", feature = "ws"))]

#[path = "../support/app/mod.rs"]
mod app;
#[path = "../support/doubles/mod.rs"]
mod doubles;
#[path = "../support/http2/mod.rs"]
mod frames;
#[path = "../support/raw_store/mod.rs"]
mod raw_store;
#[path = "../support/wait/mod.rs"]
mod wait;

mod canary_answers;
mod consumer;
mod counted_requests;
mod drain;
mod expiry;
mod http2;
mod http_semantics;
mod imported_keys;
mod mistakes;
mod other_frameworks;
mod panics;
mod places;
mod rejections;
mod rfc6750;
mod schemes;
mod scopes;
mod service_contract;
mod shadow;
mod spans;
mod status;
mod streams;
mod test_kit;
mod tower_layers;
mod websocket_connections;
mod websocket_protocol;
