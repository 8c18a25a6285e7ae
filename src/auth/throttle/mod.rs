//! The cost of guessing: limits on look-ups of unknown keys, and on failures per network.

mod client_network;
#[cfg(feature = "legacy-hashes")]
mod cpu_budget;
mod failure_sketch;
mod gcra;
mod retry_filter;
mod unknown_keys;

pub use self::client_network::ClientNetwork;
#[cfg(feature = "legacy-hashes")]
pub(super) use self::cpu_budget::CpuBudget;
pub(super) use self::{
    gcra::Rate,
    unknown_keys::{LookupClass, UnknownKeyLimiter},
};
