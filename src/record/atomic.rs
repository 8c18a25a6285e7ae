//! The atomics of the counters. `tests/use_counters.rs` replaces them to try all interleavings.

pub(super) use std::sync::atomic::{AtomicI64, AtomicU8, Ordering};
