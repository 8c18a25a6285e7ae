/// Bounds on the keys that calling keys make.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) keys_per_consumer: usize,
    pub(super) rotations_per_hour: usize,
}

/// Enough for a customer who gives each of their own customers a key, few enough to list, cache and
/// revoke in a second.
const KEYS_PER_CONSUMER: usize = 1_000;

/// Enough to try out a rotation, and more than any schedule needs.
const ROTATIONS_PER_HOUR: usize = 10;

impl Default for Bounds {
    fn default() -> Self {
        Self { keys_per_consumer: KEYS_PER_CONSUMER, rotations_per_hour: ROTATIONS_PER_HOUR }
    }
}
