//! Stored facts about keys: the [`KeyRecord`], its audit trail of [`KeyEvent`]s, and the
//! [`Consumer`] that handlers see.
//!
//! A record holds only facts. [`KeyRecord::status`] evaluates them on every request, so a key
//! expires on time no matter how long its record has been cached.

mod consumer;
#[cfg(feature = "test-util")]
mod consumer_builder;
mod decoded;
mod event;
mod expiry;
mod key_record;
mod key_status;
mod metadata;
mod network;
mod scope;
mod tags;
mod text;
mod time;
mod web_origins;
mod words;

#[cfg(feature = "test-util")]
pub use self::consumer_builder::ConsumerBuilder;
#[cfg(feature = "test-util")]
pub(crate) use self::consumer_builder::valid;
#[cfg(feature = "admin")]
pub(crate) use self::metadata::shown;
pub use self::{
    consumer::{Consumer, KeyEnded},
    event::{AuditEntry, InvalidAction, KeyAction, KeyEvent},
    key_record::{InvalidKeyId, KeyId, KeyRecord, Retirement},
    key_status::{InvalidStatus, KeyStatus},
    metadata::{InvalidMetadata, Metadata},
    network::{InvalidNetwork, Network, Networks},
    scope::{InvalidScope, Scope, Scopes},
    tags::{InvalidTag, Tags},
    text::TextRule,
    web_origins::{InvalidKeyKind, InvalidWebOrigin, KeyKind, WebOrigins},
};
pub(crate) use self::{
    consumer::{KeyExtension, LookedUpKey, Origin},
    expiry::ExpiresAt,
    key_status::Validity,
    text::is_plain,
    time::{read_rfc3339, rfc3339},
};
