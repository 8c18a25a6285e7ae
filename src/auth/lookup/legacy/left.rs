use std::sync::{Mutex, MutexGuard, PoisonError};

/// How many keys have not moved, as last counted.
#[derive(Default)]
pub(super) struct Left(Mutex<Counted>);

#[derive(Default)]
struct Counted {
    /// `None` before the first count.
    count: Option<u64>,
    /// None were left, and none came since.
    is_none: bool,
    /// How often keys came.
    arrivals: u64,
}

/// A count in progress: how often keys had come when it began.
pub(super) struct Counting(u64);

impl Left {
    /// Whether none is left. Requests then make no query for them.
    pub(super) fn is_none(&self) -> bool {
        self.counted_so_far().is_none
    }

    #[cfg(feature = "metrics")]
    pub(super) fn count(&self) -> Option<u64> {
        self.counted_so_far().count
    }

    /// Keys may have been imported.
    pub(super) fn may_have_grown(&self) {
        let mut counted = self.counted_so_far();
        counted.is_none = false;
        counted.arrivals += 1;
    }

    pub(super) fn begin(&self) -> Counting {
        Counting(self.counted_so_far().arrivals)
    }

    /// Ends a count. Keys that came meanwhile are not in it.
    pub(super) fn counted(&self, Counting(arrivals): Counting, left: u64) {
        let mut counted = self.counted_so_far();
        counted.count = Some(left);
        counted.is_none = left == 0 && counted.arrivals == arrivals;
    }

    fn counted_so_far(&self) -> MutexGuard<'_, Counted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_is_left_only_if_none_came_since_the_count_began() {
        let left = Left::default();
        assert!(!left.is_none(), "not counted yet");
        left.counted(left.begin(), 1);
        assert!(!left.is_none());
        left.counted(left.begin(), 0);
        assert!(left.is_none());
        left.may_have_grown();
        assert!(!left.is_none());
        let counting = left.begin();
        left.may_have_grown();
        left.counted(counting, 0);
        assert!(!left.is_none(), "one came meanwhile");
    }
}
