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

    /// How old what it last read is, where keys are looked up in the same place; asked after each
    /// `connect` and `next` that succeeded. Default: `None`, what it reads is true now.
    ///
    /// While that is [too old](Staleness::is_too_old) there is a gap, and the store confirms
    /// nothing: see [`FeedHealth::Behind`](crate::auth::FeedHealth::Behind).
    fn staleness(&self) -> Option<Staleness> {
        None
    }
}

/// How old the data of a replica is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Staleness {
    /// All that was committed before it has been applied.
    pub age: Duration,
    /// Whether that is more than is allowed.
    pub is_too_old: bool,
}

impl Staleness {
    /// Data of this age, which is too old or is not.
    #[must_use]
    pub const fn new(age: Duration, is_too_old: bool) -> Self {
        Self { age, is_too_old }
    }
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
    /// A message that is forged, was sent before, or makes no sense. It is
    /// [counted](crate::auth::Health::ignored_messages), and otherwise ignored.
    Junk,
}
