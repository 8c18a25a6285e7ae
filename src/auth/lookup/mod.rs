//! Looks up keys that are not cached: single flight, in a task of their own, within a deadline.

mod dyn_store;
mod fetch;
mod id_index;
mod invalidate;
mod key_ended;
#[cfg(feature = "legacy-hashes")]
mod legacy;
#[cfg(not(feature = "legacy-hashes"))]
#[path = "legacy_off.rs"]
mod legacy;
mod load;
mod revoked_keys;
mod single_flight;
mod state;
mod stream_retries;

pub(super) use self::{
    dyn_store::{BoxFuture, DynStore},
    legacy::{Legacy, Presented},
    state::{Known, Lookup},
};
