//! The layer as gRPC clients see it: tonic's, and grpcio of Python.

#![cfg(test)]

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

mod both_clients;
mod cases;
mod example;
mod grpcio;
mod head;
mod orders;
mod tonic_client;
