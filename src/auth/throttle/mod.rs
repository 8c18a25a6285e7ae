//! The cost of guessing: limits on look-ups of unknown keys, and on failures per network.

mod client_network;
mod failure_sketch;
mod gcra;
mod retry_filter;
mod unknown_keys;

pub use self::client_network::ClientNetwork;
pub(super) use self::{
    gcra::Rate,
    unknown_keys::{LookupClass, UnknownKeyLimiter},
};
