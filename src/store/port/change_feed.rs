use std::{future::Future, time::Duration};

use crate::{record::KeyId, store::StoreError};

/// Reports changes in the store, whether another node, another program or a person at the database
/// prompt made them.
///
/// [`Worker::run`](crate::auth::Worker::run) drives it: [`connect`](Self::connect), then
/// [`next`](Self::next) until that fails, then `connect` again after a pause that grows with each
/// failure. Changes made while it is disconnected are lost to it, so after each `connect` the store
/// confirms cached records before they are trusted again.
///
/// Both futures may be dropped at any time. `connect` is then called before `next`.
pub trait ChangeFeed: Send + 'static {
    /// Starts listening, or restarts. Changes committed after this returns are reported by
    /// [`next`](Self::next), or `next` fails.
    ///
    /// # Errors
    ///
    /// When it cannot listen. The caller retries.
    fn connect(&mut self) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Waits for the next change.
    ///
    /// # Errors
    ///
    /// When changes may have been missed.
    fn next(&mut self) -> impl Future<Output = Result<Change, StoreError>> + Send;

    /// The age of the data it last read, if keys are looked up on the same replica. Called after
    /// each successful `connect` and `next`. Default: `None`, meaning the data is current.
    ///
    /// While the data is [too old](Staleness::is_too_old), the feed counts as interrupted and the
    /// store confirms nothing: see [`FeedHealth::Behind`](crate::auth::FeedHealth::Behind).
    fn staleness(&self) -> Option<Staleness> {
        None
    }
}

/// The age of a replica's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Staleness {
    /// The replica has applied everything committed longer ago than this.
    pub age: Duration,
    /// Whether the age exceeds the allowed maximum.
    pub is_too_old: bool,
}

impl Staleness {
    /// Data of this age, and whether it is too old.
    #[must_use]
    pub const fn new(age: Duration, is_too_old: bool) -> Self {
        Self { age, is_too_old }
    }
}

/// An event of a [`ChangeFeed`].
///
/// No event can make a key valid: at most the store is queried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// A key was created.
    Created(KeyId),
    /// A key was changed or deleted.
    Changed(KeyId),
    /// Any key may have been changed.
    Everything,
    /// Heartbeat: no change. It arrived this long after it was true.
    Heartbeat {
        /// How far the feed lags behind the store.
        lag: Duration,
    },
    /// A message that is forged, replayed or malformed. It is
    /// [counted](crate::auth::Health::ignored_messages) and otherwise ignored.
    Unrecognized,
}
