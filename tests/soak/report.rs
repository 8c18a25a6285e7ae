//! What the test tells in the end.

use std::{fmt, time::Duration};

use serde::Serialize;

use crate::{driver::Changes, faults::Made, oracle::Judgement};

#[derive(Serialize)]
pub(crate) struct Report {
    seed: u64,
    seconds: u64,
    changes: Changes,
    faults: Made,
    #[serde(flatten)]
    judgement: Judgement,
}

impl Report {
    pub(crate) fn new(
        seed: u64,
        length: Duration,
        changes: Changes,
        faults: Made,
        judgement: Judgement,
    ) -> Self {
        Self { seed, seconds: length.as_secs(), changes, faults, judgement }
    }

    /// No answer was wrong, and there was something to judge.
    pub(crate) fn is_right(&self) -> bool {
        let total = |counts: &std::collections::BTreeMap<String, u64>| counts.values().sum::<u64>();
        self.judgement.wrong_count == 0
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
        for (cause, count) in &judgement.failures_by_cause {
            writeln!(f, "  {count:>6} × {cause}")?;
        }
        for (situation, worst) in &judgement.worst {
            let (delay, bound) = (worst.delay_ms, worst.bound_ms);
            writeln!(f, "  {situation}: {} ms of {bound} ms, {} answers", delay, worst.answers)?;
        }
        for story in &judgement.wrong {
            writeln!(f, "WRONG {story}")?;
        }
        Ok(())
    }
}
