//! The layer as gRPC clients see it: tonic's, and grpcio of Python.

#![cfg(test)]
#![cfg(all(
    feature = "admin",
    feature = "axum",
    feature = "grpc",
    feature = "sqlite",
    feature = "test-util",
    feature = "tracing"
))]

#[path = "../support/doubles/mod.rs"]
mod doubles;
#[path = "../support/raw_store/mod.rs"]
mod raw_store;
#[path = "../support/wait/mod.rs"]
mod wait;

/// Made from `examples/grpc/orders.proto`.
#[path = "../../examples/grpc/demo.v1.rs"]
#[allow(clippy::all, clippy::clone_on_ref_ptr, missing_docs, reason = "generated")]
#[allow(rust_2018_idioms, unreachable_pub, unused_qualifications, reason = "generated")]
#[rustfmt::skip]
mod demo;

mod balanced;
mod both_clients;
mod cases;
mod example;
mod generated;
mod grpc_web;
mod grpcio;
mod head;
mod http_handlers;
mod orders;
mod tonic_client;
