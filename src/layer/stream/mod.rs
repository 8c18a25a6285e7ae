//! Responses that go on after the request was checked, and end when the key does.

mod body;
mod until_key_ends;
#[cfg(feature = "ws")]
pub mod websocket;

pub use self::{
    body::{KeyEndedError, UntilKeyEnds},
    until_key_ends::{UntilKeyEndsFuture, UntilKeyEndsLayer, UntilKeyEndsService},
};
