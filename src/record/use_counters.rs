//! Counts of the uses of a key, between the requests that add to them and the worker that takes them.

use super::atomic::{AtomicI64, AtomicU8, Ordering};

/// How often a key was used since the worker last took the counts.
///
/// A request adds to a count, then reads `told`, and if the worker does not know of the key, tells it.
/// The worker keeps a key that it knows of until it has taken its counts, whether or not the key
/// is still cached, so no count is lost. It clears `told` *before* it takes the counts: a count that
/// it misses was added after that, and its request finds that the worker does not know.
///
/// The pairs of `Acquire` and `Release` at each count make this true: an addition that comes after the
/// worker has taken the count also comes after `told` was cleared.
#[derive(Default)]
pub(crate) struct UseCounters {
    told: AtomicU8,
    admitted: AtomicI64,
    limited: AtomicI64,
    forbidden: AtomicI64,
    refused: AtomicI64,
    /// Units beyond one for each admitted request.
    more_units: AtomicI64,
}

/// What the worker knows: nothing, ...
const NOTHING: u8 = 0;
/// ... that the counts are not zero, ...
const COUNTED: u8 = 1;
/// ... and when the key was used.
const USED: u8 = 2;

/// The outcome of a request that is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UseRejection {
    /// Beyond a quota or a limit.
    Limited,
    /// From where the key does not work, or without a scope that is required.
    Forbidden,
    /// The key is revoked, expired, inactive or not yet active.
    Refused,
}

impl UseCounters {
    /// Counts a request that is let in, and one unit unless it is not charged. Returns whether the
    /// caller has to tell the worker that the key was used.
    #[must_use]
    pub(crate) fn admit(&self, is_charged: bool) -> bool {
        if !is_charged {
            self.more_units.fetch_sub(1, Ordering::Acquire);
        }
        self.admitted.fetch_add(1, Ordering::Acquire);
        let told = self.told.load(Ordering::Relaxed);
        told != USED && self.will_tell(told, USED)
    }

    /// Counts a request that is not let in. Returns whether the caller has to tell the worker.
    #[must_use]
    pub(crate) fn reject(&self, rejection: UseRejection) -> bool {
        self.of(rejection).fetch_add(1, Ordering::Acquire);
        self.is_news()
    }

    /// Counts a request as rejected that was counted as let in. Its units stay.
    #[must_use]
    pub(crate) fn reject_admitted(&self, rejection: UseRejection) -> bool {
        self.admitted.fetch_sub(1, Ordering::Acquire);
        self.more_units.fetch_add(1, Ordering::Acquire);
        self.reject(rejection)
    }

    /// Counts more units, or fewer.
    #[must_use]
    pub(crate) fn add_units(&self, change: i64) -> bool {
        self.more_units.fetch_add(change, Ordering::Acquire);
        self.is_news()
    }

    /// The worker could not be told.
    pub(crate) fn not_told(&self) {
        self.told.store(NOTHING, Ordering::Relaxed);
    }

    /// Takes the counts for the worker, which no longer knows of the key: admitted, limited,
    /// forbidden and refused requests, and units.
    pub(crate) fn take(&self) -> [i64; 5] {
        self.told.store(NOTHING, Ordering::Relaxed);
        let take = |count: &AtomicI64| count.swap(0, Ordering::Release);
        let admitted = take(&self.admitted);
        let units = take(&self.more_units).saturating_add(admitted);
        [admitted, take(&self.limited), take(&self.forbidden), take(&self.refused), units]
    }

    fn of(&self, rejection: UseRejection) -> &AtomicI64 {
        match rejection {
            UseRejection::Limited => &self.limited,
            UseRejection::Forbidden => &self.forbidden,
            UseRejection::Refused => &self.refused,
        }
    }

    fn is_news(&self) -> bool {
        let told = self.told.load(Ordering::Relaxed);
        told == NOTHING && self.will_tell(told, COUNTED)
    }

    /// Whether this caller tells the worker, rather than another one.
    #[cold]
    fn will_tell(&self, told: u8, tells: u8) -> bool {
        self.told.compare_exchange(told, tells, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}
