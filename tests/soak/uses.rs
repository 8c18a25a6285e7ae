//! The ledger of uses, compared with what clients counted.
//!
//! Each answered request is in the ledger once, with three exceptions, and each has its own column in
//! the report: requests without an answer, which may be counted or not; answers of a process that was
//! killed before it wrote them; and a 401 for a key that was deleted, which is an unknown key's.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
};

use serde::Serialize;
use sqlx::{AssertSqlSafe, PgConnection, query_as};

use crate::{
    clock::{Micros, SECOND},
    oracle::Answer,
};

/// Admitted, limited, forbidden and refused requests.
pub(crate) type Counts = [u64; 4];

const ADMITTED: usize = 0;
const FORBIDDEN: usize = 2;
const REFUSED: usize = 3;
const NAMES: [&str; 4] = ["admitted", "limited", "forbidden", "refused"];

/// The counts of keys, by their ids.
pub(crate) type Ledger = BTreeMap<String, [i64; 4]>;

pub(crate) const HOURLY: &str = "api_key_usage_hourly";
pub(crate) const DAILY: &str = "api_key_usage_daily";

/// How long after its answer a request may turn out to be lost.
const MEMORY: Micros = 120 * SECOND;

pub(crate) async fn read(session: &mut PgConnection, table: &str) -> Ledger {
    let sql = format!(
        "select key_id::text, sum(admitted)::bigint, sum(limited)::bigint,
            sum(forbidden)::bigint, sum(refused)::bigint
        from {table} group by key_id"
    );
    let rows: Vec<(String, i64, i64, i64, i64)> =
        query_as(AssertSqlSafe(sql)).fetch_all(session).await.expect("the ledger");
    rows.into_iter().map(|(id, a, l, f, r)| (id, [a, l, f, r])).collect()
}

/// What clients counted.
#[derive(Default)]
pub(crate) struct Uses {
    keys: BTreeMap<usize, KeyUses>,
    recent: VecDeque<Use>,
    losses: Vec<Loss>,
}

#[derive(Clone, Default)]
struct KeyUses {
    answered: Counts,
    /// Answers of a process that may not have written them.
    may_be_lost: Counts,
    unanswered: u64,
}

#[derive(Clone, Copy)]
struct Use {
    node: usize,
    key: usize,
    outcome: usize,
    sent: Micros,
    answered: Micros,
}

/// What a process that has ended did not write: its uses of this time.
struct Loss {
    node: usize,
    from: Micros,
    until: Micros,
}

impl Loss {
    fn has(&self, used: &Use) -> bool {
        used.node == self.node && used.answered >= self.from && used.sent <= self.until
    }
}

impl Uses {
    pub(crate) fn count(&mut self, answer: &Answer) {
        let key = self.keys.entry(answer.key).or_default();
        let Some(response) = &answer.response else {
            key.unanswered += 1;
            return;
        };
        let outcome = match response.status {
            200 => ADMITTED,
            429 => 1,
            403 => FORBIDDEN,
            401 => REFUSED,
            // Not decided, so not counted.
            _ => return,
        };
        key.answered[outcome] += 1;
        let (node, key) = (answer.node, answer.key);
        let used = Use { node, key, outcome, sent: answer.sent, answered: answer.answered };
        if self.losses.iter().any(|loss| loss.has(&used)) {
            self.lost(used);
        }
        self.recent.push_back(used);
        while self.recent.front().is_some_and(|it| it.answered + MEMORY < used.answered) {
            self.recent.pop_front();
        }
    }

    /// A process of the node ended at `until` without writing its uses since `from`.
    pub(crate) fn lose(&mut self, node: usize, from: Micros, until: Micros) {
        let loss = Loss { node, from, until };
        let lost: Vec<_> = self.recent.iter().filter(|used| loss.has(used)).copied().collect();
        lost.into_iter().for_each(|used| self.lost(used));
        self.losses.push(loss);
    }

    fn lost(&mut self, used: Use) {
        self.keys.entry(used.key).or_default().may_be_lost[used.outcome] += 1;
    }

    /// `keys` are their ids, and whether they were deleted.
    pub(crate) fn audit<'a>(
        &self,
        keys: impl Iterator<Item = (&'a str, bool)>,
        hourly: &Ledger,
        daily: &Ledger,
    ) -> Audit {
        let mut audit = Audit { processes_lost: self.losses.len(), ..Audit::default() };
        for (at, (id, was_deleted)) in keys.enumerate() {
            let counted = self.keys.get(&at).cloned().unwrap_or_default();
            let rows = hourly.get(id).copied().unwrap_or_default();
            if daily.get(id).copied().unwrap_or_default() != rows {
                audit.is_wrong(format!("key {id}: hours add up to {rows:?}, and days do not"));
            }
            audit.compare(id, &counted, rows, was_deleted);
        }
        audit
    }
}

/// The result of the comparison.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Audit {
    pub(crate) keys: u64,
    /// Keys whose counts were compared without any exception.
    pub(crate) exact_keys: u64,
    pub(crate) answered: Counts,
    pub(crate) in_ledger: [i64; 4],
    /// Processes that ended without writing all of their uses.
    pub(crate) processes_lost: usize,
    /// Answers that are not in the ledger, and how many of the processes above may be.
    pub(crate) lost: u64,
    pub(crate) may_be_lost: u64,
    /// Uses in the ledger that were not answered, and the requests without an answer.
    pub(crate) counted_unanswered: u64,
    pub(crate) unanswered: u64,
    /// Answers with 401 for keys that were deleted, and which are not in the ledger.
    pub(crate) refused_as_unknown: u64,
    pub(crate) wrong: Vec<String>,
    pub(crate) wrong_count: u64,
}

impl Audit {
    fn compare(&mut self, id: &str, counted: &KeyUses, rows: [i64; 4], was_deleted: bool) {
        self.keys += 1;
        self.unanswered += counted.unanswered;
        let is_exact =
            counted.unanswered == 0 && counted.may_be_lost == Counts::default() && !was_deleted;
        self.exact_keys += u64::from(is_exact);
        let mut more = 0;
        for (outcome, name) in NAMES.iter().enumerate() {
            let (answered, row) = (counted.answered[outcome], rows[outcome]);
            let may_be_lost = counted.may_be_lost[outcome];
            self.answered[outcome] += answered;
            self.in_ledger[outcome] += row;
            self.may_be_lost += may_be_lost;
            let answered = i64::try_from(answered).expect("a count");
            let is_unknown = was_deleted && outcome == REFUSED;
            let least = if is_unknown {
                0
            } else {
                answered - i64::try_from(may_be_lost).expect("a count")
            };
            if row < least {
                self.is_wrong(format!("key {id}: {row} {name}, of {answered} that were answered"));
            }
            let missing = u64::try_from(answered - row).unwrap_or_default();
            if is_unknown {
                self.refused_as_unknown += missing;
            } else {
                self.lost += missing;
            }
            more += u64::try_from(row - answered).unwrap_or_default();
        }
        // A process may have written that a request was let in, and not that it was rejected inside.
        let most = counted.unanswered + counted.may_be_lost[FORBIDDEN];
        if more > most {
            self.is_wrong(format!(
                "key {id}: {more} uses were not answered, of {most}: {rows:?}, {:?}",
                counted.answered
            ));
        }
        self.counted_unanswered += more;
    }

    fn is_wrong(&mut self, problem: String) {
        self.wrong_count += 1;
        if self.wrong.len() < 20 {
            self.wrong.push(problem);
        }
    }
}

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { keys, exact_keys, answered, in_ledger, .. } = self;
        writeln!(f, "ledger: {keys} keys, {exact_keys} of them without any exception")?;
        writeln!(f, "  {NAMES:?}: {answered:?} were answered, {in_ledger:?} are in the ledger")?;
        writeln!(
            f,
            "  {} answers are not: of {} that {} processes had not written when they ended",
            self.lost, self.may_be_lost, self.processes_lost
        )?;
        writeln!(
            f,
            "  {} uses are in it without an answer, of {} requests without one",
            self.counted_unanswered, self.unanswered
        )?;
        writeln!(f, "  {} were refused as keys that are unknown", self.refused_as_unknown)?;
        for problem in &self.wrong {
            writeln!(f, "WRONG {problem}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::{Response, Route};

    fn answer(at: u64, status: Option<u16>) -> Answer {
        let response = status.map(|status| Response {
            status,
            body: None,
            retry_after: None,
            remaining: None,
        });
        let (sent, answered) = (at * SECOND, at * SECOND + 1);
        Answer { node: 0, key: 0, route: Route::Read, sent, answered, response }
    }

    /// One answer a second, with these statuses.
    fn uses(statuses: &[Option<u16>]) -> Uses {
        let mut uses = Uses::default();
        for (at, status) in (1..).zip(statuses) {
            uses.count(&answer(at, *status));
        }
        uses
    }

    fn is_right(uses: &Uses, row: [i64; 4], was_deleted: bool) -> bool {
        let ledger = Ledger::from([("id".to_owned(), row)]);
        uses.audit([("id", was_deleted)].into_iter(), &ledger, &ledger).wrong_count == 0
    }

    #[test]
    fn every_answer_is_in_the_ledger_once() {
        let uses = uses(&[200, 200, 429, 403, 401, 503].map(Some));
        assert!(is_right(&uses, [2, 1, 1, 1], false));
        for wrong in [[1, 1, 1, 1], [3, 1, 1, 1], [2, 0, 1, 1], [2, 1, 1, 2], [2, 1, 0, 1]] {
            assert!(!is_right(&uses, wrong, false), "{wrong:?}");
        }
    }

    #[test]
    fn days_are_the_sums_of_hours() {
        let uses = uses(&[Some(200)]);
        let ledger = |count| Ledger::from([("id".to_owned(), [count, 0, 0, 0])]);
        let key = || [("id", false)].into_iter();
        assert_eq!(uses.audit(key(), &ledger(1), &ledger(1)).wrong_count, 0);
        assert_eq!(uses.audit(key(), &ledger(1), &ledger(2)).wrong_count, 1);
    }

    #[test]
    fn a_request_without_an_answer_is_in_the_ledger_once_or_not() {
        let uses = uses(&[Some(200), None]);
        assert!(is_right(&uses, [1, 0, 0, 0], false) && is_right(&uses, [2, 0, 0, 0], false));
        assert!(is_right(&uses, [1, 0, 0, 1], false));
        assert!(!is_right(&uses, [3, 0, 0, 0], false) && !is_right(&uses, [2, 0, 0, 1], false));
    }

    #[test]
    fn a_killed_node_may_lose_what_it_has_not_written_and_nothing_else() {
        let mut uses = uses(&[Some(200), Some(200), Some(200)]);
        assert!(!is_right(&uses, [2, 0, 0, 0], false));
        uses.lose(1, 0, 9 * SECOND);
        assert!(!is_right(&uses, [2, 0, 0, 0], false), "another node");
        uses.lose(0, 3 * SECOND, 9 * SECOND);
        assert!(is_right(&uses, [2, 0, 0, 0], false) && is_right(&uses, [3, 0, 0, 0], false));
        assert!(!is_right(&uses, [1, 0, 0, 0], false), "it was written");
        // An answer that is judged late.
        uses.count(&answer(4, Some(200)));
        assert!(is_right(&uses, [2, 0, 0, 0], false));
    }

    #[test]
    fn a_deleted_key_is_refused_as_unknown() {
        let uses = uses(&[Some(200), Some(401), Some(401)]);
        assert!(is_right(&uses, [1, 0, 0, 0], true) && is_right(&uses, [1, 0, 0, 2], true));
        assert!(!is_right(&uses, [0, 0, 0, 2], true) && !is_right(&uses, [1, 0, 0, 3], true));
        assert!(!is_right(&uses, [1, 0, 0, 1], false));
    }
}
