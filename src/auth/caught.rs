use std::{
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    task::Poll,
};

use crate::store::{StoreError, StoreErrorKind};

/// What `work` returns, an error if it panics. A store or a feed of the
/// application's own shall not take the worker with it.
pub(super) async fn caught<T>(
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let mut work = pin!(work);
    poll_fn(|context| {
        catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context))).unwrap_or_else(|_| {
            Poll::Ready(Err(StoreError::new(StoreErrorKind::Other).because("it panicked")))
        })
    })
    .await
}
