//! The atomics of the ring: `tests/ring.rs` puts others in their place, to try all orders of events.

pub(super) use std::sync::atomic::{AtomicU64, Ordering};
