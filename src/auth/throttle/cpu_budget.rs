//! A budget of processor time.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crate::clock::nanos;

/// A quarter of a core.
const CORE_SHARES: u64 = 4;
/// What may be spent at once after a rest.
const BURST: u64 = 1_000_000_000;

/// Processor time that may be spent: a quarter of a core, and a second at once after a rest.
///
/// What work takes is known only when it is done, so the budget goes into debt and admits no further
/// work until that is paid. The debt is bounded by what is admitted at the same time.
#[derive(Default)]
pub(in crate::auth) struct CpuBudget {
    /// When the burst is full again, by the monotonic clock in nanoseconds.
    full_at: AtomicU64,
}

impl CpuBudget {
    pub(in crate::auth) fn has_left(&self, now: Duration) -> bool {
        let full_at = self.full_at.load(Ordering::Relaxed);
        full_at < nanos(now).saturating_add(BURST * CORE_SHARES)
    }

    pub(in crate::auth) fn spend(&self, spent: Duration, now: Duration) {
        let now = nanos(now);
        let refill = nanos(spent).saturating_mul(CORE_SHARES);
        let spend = |full_at: u64| Some(full_at.max(now).saturating_add(refill));
        // The closure never declines.
        let _ = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend);
    }

    pub(in crate::auth) fn give_back(&self, spent: Duration) {
        let refill = nanos(spent).saturating_mul(CORE_SHARES);
        let give_back = |full_at: u64| Some(full_at.saturating_sub(refill));
        // The closure never declines.
        let _ = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, give_back);
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const MILLI: Duration = Duration::from_millis(1);

    #[test]
    fn a_second_is_spent_at_once_and_then_a_quarter_of_the_time() {
        let (budget, begin) = (CpuBudget::default(), 100 * SECOND);
        for _ in 0..1000 {
            assert!(budget.has_left(begin));
            budget.spend(MILLI, begin);
        }
        for spent in 0..100 {
            let refilled = begin + spent * 4 * MILLI;
            assert!(!budget.has_left(refilled));
            let now = refilled + Duration::from_nanos(1);
            assert!(budget.has_left(now));
            budget.spend(MILLI, now);
        }
    }

    #[test]
    fn debt_is_paid_before_anything_is_admitted() {
        let (budget, now) = (CpuBudget::default(), 100 * SECOND);
        budget.spend(5 * SECOND, now);
        assert!(!budget.has_left(now + 16 * SECOND));
        assert!(budget.has_left(now + 16 * SECOND + MILLI));
    }

    #[test]
    fn what_is_given_back_can_be_spent_again() {
        let (budget, now) = (CpuBudget::default(), 100 * SECOND);
        for _ in 0..100 {
            assert!(budget.has_left(now));
            budget.spend(SECOND, now);
            assert!(!budget.has_left(now));
            budget.give_back(SECOND);
        }
    }

    proptest! {
        /// However junk comes: what is spent in all is at most the burst, a quarter of the time, and
        /// the work that was admitted last.
        #[test]
        fn no_flood_spends_more_than_the_budget(
            steps in vec((0_u64..500, 1_u64..2000), 1..200),
        ) {
            let budget = CpuBudget::default();
            let (mut now, mut spent) = (100 * SECOND, Duration::ZERO);
            for (pause, work) in steps {
                now += Duration::from_millis(pause);
                let work = Duration::from_millis(work);
                if budget.has_left(now) {
                    budget.spend(work, now);
                    spent += work;
                    let most = SECOND + (now - 100 * SECOND) / 4 + work;
                    prop_assert!(spent <= most, "{spent:?} of {most:?}");
                }
            }
        }
    }
}
