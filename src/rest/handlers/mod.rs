//! What the routes do: reading keys and events, and changing keys.

pub(super) mod read;
pub(super) mod usage;
pub(super) mod write;
