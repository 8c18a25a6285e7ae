//! Keys that still have a slow or salted hash of another system: they are verified and moved at their
//! first use.
//!
//! Only keys that the store does not know by their hash get here. A request finds the keys that may
//! be its own by the hint in it, compares it with their hashes on blocking threads, and replaces the
//! hash that matches by the one by which the key is found from then on.
//!
//! Clients that make keys up cause this work, so it is bounded: half of the cores at once, and half a
//! core in the long run for keys that turn out to be unknown.

mod dyn_hashes;
mod left;
mod presented;
mod scan;
mod state;

pub(in crate::auth) use self::{presented::Presented, state::Legacy};
