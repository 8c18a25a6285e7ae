//! Stored facts about keys: the [`KeyRecord`], its audit trail of [`KeyEvent`]s, and the
//! [`Consumer`] that handlers see.
//!
//! A record holds only facts. [`KeyRecord::status`] evaluates them on every request, so a key
//! expires on time no matter how long its record has been cached.

mod consumer;
mod event;
mod key_record;
mod key_status;
mod metadata;
mod scope;
mod text;
mod time;

#[cfg(feature = "admin")]
pub(crate) use self::metadata::shown;
pub use self::{
    consumer::{Consumer, KeyEnded},
    event::{AuditEntry, InvalidAction, KeyAction, KeyEvent},
    key_record::{InvalidKeyId, KeyId, KeyRecord, Retirement},
    key_status::{InvalidStatus, KeyStatus},
    metadata::{InvalidMetadata, Metadata},
    scope::{InvalidScope, Scope, Scopes},
    text::TextRule,
};
pub(crate) use self::{
    consumer::{KeyExtension, LookedUpKey, Origin},
    key_status::Validity,
    text::is_plain,
    time::{read_rfc3339, rfc3339},
};
