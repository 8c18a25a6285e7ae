//! Responses that go on after the request was checked, and end when the key does.

mod body;
#[cfg(feature = "ws")]
pub mod websocket;

pub use self::body::{KeyEndedError, UntilKeyEnds};
