use std::{future::Future, time::Duration};

use super::StoreError;
use crate::record::KeyId;

/// Tells what changed in the store, whoever changed it: another node, another program, a person at
/// the database's prompt.
///
/// [`Worker::run`](crate::auth::Worker::run) drives it: [`connect`](Self::connect), then
/// [`next`](Self::next) until that fails, then `connect` again, after a pause that grows with each
/// failure. Whatever was changed while it was not connected is lost to it: what is cached is
/// confirmed by the store after each `connect`, before it is trusted again.
///
/// Both futures may be dropped at any time. `connect` is then called before `next` is.
pub trait ChangeFeed: Send + 'static {
    /// Begins to listen, anew if it did before. What is committed once this has returned will be
    /// told by [`next`](Self::next), or `next` will fail.
    ///
    /// # Errors
    ///
    /// When it cannot listen. It is called again.
    fn connect(&mut self) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Waits for the next change.
    ///
    /// # Errors
    ///
    /// When changes may have been missed.
    fn next(&mut self) -> impl Future<Output = Result<Change, StoreError>> + Send;
}

/// What a [`ChangeFeed`] tells.
///
/// None of it makes a key work: at most the store is asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// A key that did not exist now does.
    Created(KeyId),
    /// A key was changed or deleted.
    Changed(KeyId),
    /// Any key may have been changed.
    Everything,
    /// Nothing was changed, and that was heard this long after it was true.
    Nothing {
        /// How far the feed lags behind the store.
        lag: Duration,
    },
    /// A message that makes no sense. It is counted, and otherwise ignored.
    Junk,
}
