//! The ring of slots behind sliding windows, under every interleaving of threads and every memory
//! reordering: each result is one that a sequential order would give.

#![cfg(test)]

#[path = "../../src/rate_limit/local/ring.rs"]
#[allow(
    dead_code,
    unfulfilled_lint_expectations,
    reason = "the model needs less than the limiter, and is a test"
)]
mod ring;

mod interleavings;

/// The atomics of the ring.
mod atomic {
    pub(super) use loom::sync::atomic::{AtomicU64, Ordering};
}
