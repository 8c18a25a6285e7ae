//! Looks up keys that are not cached: single flight, in a task of their own, within a deadline.

mod dyn_store;
mod fetch;
mod id_index;
mod invalidate;
mod key_ended;
mod load;
mod revoked_keys;
mod single_flight;
mod state;
mod stream_retries;

pub(super) use self::{
    dyn_store::{BoxFuture, DynStore},
    state::Lookup,
};
