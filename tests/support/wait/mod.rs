//! Waiting for events. Each wait has a deadline, after which the test fails and says what it
//! waited for.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::panic, reason = "a wait that is over must fail its test")]

use std::{fmt::Display, panic::Location, time::Duration};

use tokio::time::{Instant, interval, timeout};

/// Longer than any event takes on a busy machine: only a failed test waits this long.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Awaits `event`. Fails the test, and names the line of the caller, if that takes longer than
/// [`PATIENCE`].
#[track_caller]
pub fn within<T>(event: impl IntoFuture<Output = T>) -> impl Future<Output = T> {
    within_time(PATIENCE, event)
}

/// The same as [`within`], for an event that takes longer.
#[track_caller]
pub fn within_time<T>(
    patience: Duration,
    event: impl IntoFuture<Output = T>,
) -> impl Future<Output = T> {
    let caller = Location::caller();
    async move {
        let outcome = timeout(patience, event).await;
        outcome.unwrap_or_else(|_| panic!("{caller} waited in vain for {patience:?}"))
    }
}

/// Polls until `is_so`. Fails the test if that takes longer than [`PATIENCE`].
pub async fn eventually(what: impl Display, mut is_so: impl AsyncFnMut() -> bool) {
    let asking = async {
        let mut again = interval(Duration::from_millis(5));
        while !is_so().await {
            again.tick().await;
        }
    };
    let outcome = timeout(PATIENCE, asking).await;
    outcome.unwrap_or_else(|_| panic!("waited in vain for {PATIENCE:?}: {what}"));
}

/// The deadline of a loop that blocks its thread.
pub struct Deadline {
    what: &'static str,
    begun: Instant,
}

impl Deadline {
    pub fn of(what: &'static str) -> Self {
        Self { what, begun: Instant::now() }
    }

    /// Fails the test if the loop takes longer than [`PATIENCE`].
    #[track_caller]
    pub fn check(&self) {
        assert!(self.begun.elapsed() < PATIENCE, "waited in vain for {PATIENCE:?}: {}", self.what);
    }
}
