//! Catches panics in code supplied by the application: stores, feeds, limiters, clocks, observers.

use std::{
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{Mutex, PoisonError},
    task::Poll,
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    store::{StoreError, StoreErrorKind},
    trace,
};

/// The work panicked. The panic hook has reported the message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panicked;

/// Returns the result of `work`, or an error if it panics.
pub(crate) async fn catch_panic<T>(work: impl Future<Output = T>) -> Result<T, Panicked> {
    let mut work = pin!(work);
    poll_fn(|context| {
        let polled = catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context)));
        polled.map_or(Poll::Ready(Err(Panicked)), |polled| polled.map(Ok))
    })
    .await
}

/// Returns the result of `work`; a panic becomes a store error.
pub(super) async fn caught<T>(
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let panicked = |_| Err(StoreError::new(StoreErrorKind::Other).because("panicked"));
    catch_panic(work).await.unwrap_or_else(panicked)
}

/// Returns the result of `work`; a panic is logged and becomes an error.
pub(crate) fn catch_request_panic<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|_| request_panicked())
}

/// Like [`catch_request_panic`], for a future.
pub(crate) async fn catch_pending_panic<T>(work: impl Future<Output = T>) -> Result<T, Panicked> {
    catch_panic(work).await.map_err(|_| request_panicked())
}

#[cold]
fn request_panicked() -> Panicked {
    static LAST_LOGGED: Throttle = Throttle::new();
    if LAST_LOGGED.is_due() {
        trace::warn!("request check panicked in a limiter or clock; see the panic's own message");
    }
    Panicked
}

/// Limits a log line to one per minute.
#[derive(Debug, Default)]
pub(super) struct Throttle(Mutex<Option<Instant>>);

const ONCE_IN: Duration = Duration::from_secs(60);

impl Throttle {
    pub(super) const fn new() -> Self {
        Self(Mutex::new(None))
    }

    pub(super) fn is_due(&self) -> bool {
        let now = Instant::now();
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = last.is_none_or(|last| now.saturating_duration_since(last) >= ONCE_IN);
        if is_due {
            *last = Some(now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_throttle_lets_one_through_a_minute() {
        let throttle = Throttle::new();
        assert!(throttle.is_due());
        for _ in 0..59 {
            tokio::time::advance(Duration::from_secs(1)).await;
            assert!(!throttle.is_due());
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(throttle.is_due() && !throttle.is_due());
    }

    #[tokio::test]
    async fn a_panic_of_a_future_is_caught_whenever_it_comes() {
        assert!(catch_panic(async { panic!("at once") }).await.is_err());
        let later = catch_panic(async {
            tokio::task::yield_now().await;
            panic!("later")
        });
        assert!(later.await.is_err());
        assert_eq!(catch_panic(async { 7 }).await.ok(), Some(7));
    }
}
