//! Rows of the SQL stores in portable types, and error details that are safe to show.

mod error;
mod event;
mod key;
mod legacy;
mod plan;
mod poll;
mod time;
mod usage;
mod uuid;
mod value;
#[cfg(feature = "webhooks")]
mod webhook;

#[cfg(feature = "webhooks")]
pub(super) use self::webhook::{Due, Endpoint, Lines, Position, entries};
pub(super) use self::{
    error::{DatabaseRefusal, corrupt, ended},
    event::{Event, EventRows},
    key::{Row, TEXTS, answering},
    legacy::{count, digests, legacy_keys},
    plan::{Plan, plans},
    poll::{Polled, changes, from},
    time::{micros, micros_up, time},
    usage::{BatchId, HourRow, batch_id, hour_rows},
    uuid::Uuid,
    value::{bounded, claimed, counts, json, key_id},
};
