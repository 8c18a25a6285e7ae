use std::{convert::Infallible, future::Future};

use super::{Change, ChangeFeed, manage_keys::ManageKeys};
use crate::store::StoreError;

/// A store with everything that [`ApiKeys`](crate::ApiKeys) sets up around one: its tables and its
/// change feed.
///
/// The stores of this crate implement it. A store of your own without tables or a feed needs two
/// lines: `type Feed = Infallible;`, and a [`change_feed`](Self::change_feed) that returns `None`.
pub trait Backend: ManageKeys + Clone {
    /// The feed of changes that other processes make; [`Infallible`] if there is none.
    type Feed: ChangeFeed;

    /// Creates the tables, or brings them up to date. Default: does nothing.
    ///
    /// Any number of processes may call it concurrently.
    ///
    /// # Errors
    ///
    /// When the store cannot.
    fn migrate(&self) -> impl Future<Output = Result<(), StoreError>> + Send {
        async { Ok(()) }
    }

    /// The feed that suits the store; `None` if no other process can change its keys.
    fn change_feed(&self) -> Option<Self::Feed>;
}

/// The feed of a store that has none.
impl ChangeFeed for Infallible {
    async fn connect(&mut self) -> Result<(), StoreError> {
        match *self {}
    }

    async fn next(&mut self) -> Result<Change, StoreError> {
        match *self {}
    }
}
