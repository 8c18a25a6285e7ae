//! The clock for times of changes, faults and responses.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Microseconds since the start of the test.
pub(crate) type Micros = u64;

pub(crate) const MILLI: Micros = 1_000;
pub(crate) const SECOND: Micros = 1_000_000;

/// A monotonic clock that remembers this machine's wall clock at its start.
#[derive(Clone, Copy)]
pub(crate) struct Clock {
    origin: Instant,
    wall: SystemTime,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { origin: Instant::now(), wall: SystemTime::now() }
    }

    pub(crate) fn now(&self) -> Micros {
        micros(self.origin.elapsed())
    }

    /// An instant of PostgreSQL's clock, in microseconds since 1970. PostgreSQL runs on this
    /// machine.
    pub(crate) fn of_wall(&self, unix_micros: i64) -> Micros {
        let origin = self.wall.duration_since(UNIX_EPOCH).expect("a wall clock after 1970");
        let since = i128::from(unix_micros) - i128::try_from(origin.as_micros()).expect("a date");
        u64::try_from(since.max(0)).expect("an instant of the test")
    }
}

pub(crate) fn micros(time: Duration) -> Micros {
    u64::try_from(time.as_micros()).expect("less than 584,000 years")
}
