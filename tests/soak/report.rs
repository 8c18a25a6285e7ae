//! The report at the end of the test.

use std::{fmt, time::Duration};

use serde::Serialize;

use crate::{driver::Changes, faults::Made, fleet::Resources, oracle::Judgement, uses::Audit};

/// The maximum for any duration. A node has two pools of connections to PostgreSQL, one connection
/// to Redis, and one for each client.
const MOST: Resources = Resources { resident_mib: 128, threads: 16, descriptors: 128 };

#[derive(Serialize)]
pub(crate) struct Report {
    seed: u64,
    seconds: u64,
    changes: Changes,
    faults: Made,
    /// The maximum resources of a node.
    resources: Resources,
    #[serde(flatten)]
    judgement: Judgement,
    /// The ledger of uses, compared with what clients counted.
    ledger: Audit,
}

impl Report {
    pub(crate) fn new(
        seed: u64,
        length: Duration,
        changes: Changes,
        faults: Made,
        resources: Resources,
        judgement: Judgement,
        ledger: Audit,
    ) -> Self {
        Self { seed, seconds: length.as_secs(), changes, faults, resources, judgement, ledger }
    }

    /// No response and no row of the ledger was wrong, no node exceeded its maximum, and there were responses to judge.
    pub(crate) fn is_right(&self) -> bool {
        let total = |counts: &std::collections::BTreeMap<String, u64>| counts.values().sum::<u64>();
        self.judgement.wrong_count == 0
            && self.ledger.wrong_count == 0
            && self.resources.resident_mib <= MOST.resident_mib
            && self.resources.threads <= MOST.threads
            && self.resources.descriptors <= MOST.descriptors
            && self.judgement.judged > 100
            && total(&self.changes) > 10
            && total(&self.faults) > 0
    }

    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("numbers and texts") + "\n"
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, seconds, judgement, .. } = self;
        let Judgement { judged, wrong_count, .. } = judgement;
        writeln!(f, "seed {seed}, {seconds} s: {judged} answers judged, {wrong_count} wrong")?;
        writeln!(f, "answers: {:?}", judgement.by_status)?;
        writeln!(f, "changes: {:?}", self.changes)?;
        writeln!(f, "faults: {:?}", self.faults)?;
        writeln!(f, "a node took {:?} at most, of {MOST:?}", self.resources)?;
        for (cause, count) in &judgement.failures_by_cause {
            writeln!(f, "  {count:>6} × {cause}")?;
        }
        for (situation, worst) in &judgement.worst {
            let (delay, bound) = (worst.delay_ms, worst.bound_ms);
            writeln!(f, "  {situation}: {} ms of {bound} ms, {} answers", delay, worst.answers)?;
        }
        write!(f, "{}", self.ledger)?;
        for story in &judgement.wrong {
            writeln!(f, "WRONG {story}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_of_a_wrong_answer_of_nothing_or_of_a_node_that_took_too_much_is_not_right() {
        let counts = |count| [("made".to_owned(), count)].into();
        let judged = |resources, judged, wrong_count, wrong_rows| {
            let judgement = Judgement { judged, wrong_count, ..Judgement::default() };
            let ledger = Audit { wrong_count: wrong_rows, ..Audit::default() };
            let length = Duration::from_secs(1);
            Report::new(1, length, counts(11), counts(1), resources, judgement, ledger).is_right()
        };
        let report = |resources, count, wrong_count| judged(resources, count, wrong_count, 0);
        assert!(!judged(MOST, 101, 0, 1));
        assert!(report(MOST, 101, 0));
        assert!(!report(MOST, 101, 1));
        assert!(!report(MOST, 100, 0));
        for too_much in [
            Resources { resident_mib: MOST.resident_mib + 1, ..MOST },
            Resources { threads: MOST.threads + 1, ..MOST },
            Resources { descriptors: MOST.descriptors + 1, ..MOST },
        ] {
            assert!(!report(too_much, 101, 0), "{too_much:?}");
        }
    }
}
