use std::time::Duration;

/// The decision of a bucket, and its state afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    admitted: bool,
    remaining: u32,
    next_unit_in: Duration,
}

impl Decision {
    /// The request fits; `remaining` units are left, and the next one comes after `next_unit_in`.
    #[must_use]
    pub const fn admit(remaining: u32, next_unit_in: Duration) -> Self {
        Self { admitted: true, remaining, next_unit_in }
    }

    /// The request does not fit until `wait` has passed.
    #[must_use]
    pub const fn deny(wait: Duration) -> Self {
        Self { admitted: false, remaining: 0, next_unit_in: wait }
    }

    /// The request needs more than the `remaining` units, and does not fit until `wait` has passed.
    #[must_use]
    pub const fn deny_with(remaining: u32, wait: Duration) -> Self {
        Self { admitted: false, remaining, next_unit_in: wait }
    }

    /// Whether the request fits.
    #[must_use]
    pub const fn is_admitted(&self) -> bool {
        self.admitted
    }

    /// Units left. If denied, fewer than were asked for.
    #[must_use]
    pub const fn remaining(&self) -> u32 {
        self.remaining
    }

    /// The time until one more unit is available or, if denied, until this request would fit. Zero
    /// if the bucket is full.
    #[must_use]
    pub const fn next_unit_in(&self) -> Duration {
        self.next_unit_in
    }
}
