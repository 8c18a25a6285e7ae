//! The atomics of the ring. `tests/ring` replaces them to try all interleavings.

pub(super) use std::sync::atomic::{AtomicU64, Ordering};
