//! Instants in JSON.

pub(super) use crate::record::{read_rfc3339 as read, rfc3339 as write};
