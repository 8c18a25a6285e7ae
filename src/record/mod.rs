//! What is known of a key: its [`KeyRecord`] in the store, the [`KeyEvent`]s of its life, and the
//! [`Consumer`] a handler sees.
//!
//! A record is facts. Whether the key may be used is judged from them on every request
//! ([`KeyRecord::status`]), so that a key expires on time however long its record was cached.

mod consumer;
mod event;
mod key_record;
mod metadata;
mod plan;
mod scope;
mod time;

#[cfg(feature = "admin")]
pub(crate) use self::metadata::shown;
pub use self::{
    consumer::{Consumer, Revoked},
    event::{AuditEntry, InvalidAction, KeyAction, KeyEvent},
    key_record::{InvalidKeyId, KeyId, KeyRecord, KeyStatus, Retirement},
    metadata::{InvalidMetadata, Metadata},
    scope::{InvalidScope, Scope, Scopes},
};
pub(crate) use self::{
    consumer::{Known, Live, Origin},
    key_record::Validity,
    plan::{MAX_TEXT, PLAN_NAMES, is_plan_name},
    time::rfc3339,
};
