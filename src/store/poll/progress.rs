use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use crate::store::port::{Changes, Replica};

/// Maximum number of positions remembered until a replica has applied them.
const MOST_MARKS: usize = 64;

/// An instant that may be earlier than `Instant` can represent.
#[derive(Clone, Copy)]
pub(super) struct Past {
    at: Instant,
    before: Duration,
}

impl Past {
    pub(super) fn age(&self) -> Duration {
        self.at.elapsed().saturating_add(self.before)
    }
}

/// How far a replica is behind, by our own clock. Each end position of the log is stored with the
/// time it was read; once the replica has applied that position, its data is at least as new as
/// that time.
pub(super) struct Progress {
    pub(super) server: i64,
    pub(super) is_replica: bool,
    /// Everything committed before this has been applied.
    pub(super) current: Past,
    /// Later end positions that have not been applied yet. `None` if the position was unavailable.
    pub(super) ahead: VecDeque<(Past, Option<u64>)>,
    /// Whether the first of these has been unapplied for too long.
    pub(super) is_too_late: bool,
}

impl Progress {
    /// Before the first poll, the age is only known from the replica's clocks.
    pub(super) fn begin(asked: Instant, changes: &Changes, end: Option<u64>) -> Self {
        let mut current = Past { at: asked, before: Duration::ZERO };
        let mut ahead = VecDeque::new();
        if let Some(replica) = changes.replica
            && end.is_none_or(|end| end > replica.applied)
        {
            current.before = replica.age.unwrap_or(Duration::MAX);
            ahead.push_back((current, end));
        }
        let server = changes.horizon.server;
        Self { server, is_replica: false, current, ahead, is_too_late: false }
    }

    pub(super) fn go_on(
        mut self,
        asked: Instant,
        replica: Option<Replica>,
        end: Option<u64>,
        max_lag: Duration,
    ) -> Self {
        self.is_replica = replica.is_some();
        if self.ahead.len() >= MOST_MARKS {
            self.ahead.pop_back();
        }
        let now = Past { at: asked, before: Duration::ZERO };
        self.ahead.push_back((now, end));
        let is_applied = |(_, end): &(Past, Option<u64>)| match (replica, end) {
            (None, _) => true,
            (Some(replica), Some(end)) => *end <= replica.applied,
            (Some(_), None) => false,
        };
        if let Some(last) = self.ahead.iter().rposition(is_applied)
            && let Some((mark, _)) = self.ahead.drain(..=last).next_back()
        {
            self.current = mark;
        }
        self.is_too_late = self.ahead.front().is_some_and(|(mark, _)| mark.age() > max_lag);
        self
    }
}
