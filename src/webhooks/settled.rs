//! How far the audit can be read without skipping an event.

use std::collections::HashSet;

use crate::store::port::{AuditFrontier, PREPARED};

/// Follows the end of the audit.
///
/// An event is numbered when it is written and seen when its transaction commits, so an event with a
/// lower number may appear after one that was read. The events up to a number are settled once all
/// transactions have ended that were writing when that number was the last.
#[derive(Debug, Default)]
pub(super) struct Settled {
    until: u64,
    /// The end of the audit at an earlier time, and the writers of that time that have not ended.
    pending: Option<(u64, HashSet<String>)>,
}

impl Settled {
    /// Takes note of the audit's end. Returns the last event up to which all can be seen by a
    /// statement that begins afterwards.
    pub(super) fn observe(&mut self, frontier: AuditFrontier) -> u64 {
        let AuditFrontier { last, writers } = frontier;
        let writers: HashSet<String> = writers.into_iter().collect();
        if last < self.until {
            // A standby took over that lacks the last events: their numbers are given again.
            *self = Self { until: last, pending: None };
        }
        if let Some((end, waiting)) = &mut self.pending {
            // A transaction that was prepared has no name of its own: it may be one of them.
            waiting.retain(|writer| writers.contains(writer) || writers.contains(PREPARED));
            if waiting.is_empty() {
                self.until = self.until.max(*end);
                self.pending = None;
            }
        }
        if writers.is_empty() {
            self.until = self.until.max(last);
            self.pending = None;
        } else if self.pending.is_none() {
            self.pending = Some((last, writers));
        }
        self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frontier(last: u64, writers: &[&str]) -> AuditFrontier {
        AuditFrontier::new(last, writers.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn without_writers_everything_is_settled() {
        let mut settled = Settled::default();
        assert_eq!(settled.observe(frontier(0, &[])), 0);
        assert_eq!(settled.observe(frontier(7, &[])), 7);
    }

    #[test]
    fn events_wait_for_the_transactions_that_may_write_earlier_ones() {
        let mut settled = Settled::default();
        assert_eq!(settled.observe(frontier(7, &["3/1"])), 0);
        assert_eq!(settled.observe(frontier(9, &["3/1", "4/1"])), 0);
        // The first has ended; the second began after event 7.
        assert_eq!(settled.observe(frontier(9, &["4/1"])), 7);
        assert_eq!(settled.observe(frontier(9, &["5/1"])), 9);
    }

    #[test]
    fn writers_that_follow_each_other_without_a_pause_do_not_hold_up_events_for_ever() {
        let mut settled = Settled::default();
        let mut until = 0;
        for number in 1..100_u64 {
            let names = [format!("3/{number}"), format!("3/{}", number + 1)];
            until = settled.observe(AuditFrontier::new(number, names.to_vec()));
        }
        assert!(until >= 95, "{until}");
    }

    #[test]
    fn a_prepared_transaction_may_be_any_of_the_writers() {
        let mut settled = Settled::default();
        assert_eq!(settled.observe(frontier(7, &["3/1"])), 0);
        assert_eq!(settled.observe(frontier(7, &[PREPARED])), 0);
        assert_eq!(settled.observe(frontier(7, &["4/1"])), 7);
    }

    #[test]
    fn numbers_that_are_given_again_after_a_fail_over_are_not_settled() {
        let mut settled = Settled::default();
        assert_eq!(settled.observe(frontier(7, &["3/1"])), 0);
        assert_eq!(settled.observe(frontier(7, &["4/1"])), 7);
        assert_eq!(settled.observe(frontier(3, &["2/1"])), 3);
        assert_eq!(settled.observe(frontier(5, &["2/1"])), 3);
        assert_eq!(settled.observe(frontier(5, &[])), 5);
    }
}
