//! Stored facts about keys: the [`KeyRecord`], its audit trail of [`KeyEvent`]s, and the
//! [`Consumer`] that handlers see.
//!
//! A record holds only facts. [`KeyRecord::status`] evaluates them on every request, so a key
//! expires on time no matter how long its record has been cached.

mod atomic;
mod catalog_file;
mod consumer;
#[cfg(feature = "test-util")]
mod consumer_builder;
mod declared_scope;
mod decoded;
mod event;
mod expiry;
mod into_scope;
mod key_kind;
mod key_record;
mod key_status;
mod metadata;
mod network;
mod scope;
mod scope_catalog;
mod scope_enum;
mod scope_names;
mod tags;
mod text;
mod time;
mod use_counters;
mod web_origins;
#[cfg(feature = "webhooks")]
mod webhook;
mod wildcard;
mod words;

#[cfg(feature = "test-util")]
pub use self::consumer_builder::ConsumerBuilder;
#[cfg(feature = "test-util")]
pub(crate) use self::consumer_builder::valid;
#[cfg(feature = "admin")]
pub(crate) use self::metadata::shown;
#[cfg(feature = "webhooks")]
pub(crate) use self::webhook::event_type;
#[cfg(feature = "webhooks")]
pub use self::webhook::{EventFilter, InvalidWebhook, WebhookEndpoint, WebhookId, WebhookState};
pub use self::{
    catalog_file::InvalidCatalog,
    consumer::{Consumer, KeyEnded},
    declared_scope::DeclaredScope,
    event::{AuditEntry, InvalidAction, KeyAction, KeyEvent},
    into_scope::IntoScope,
    key_kind::{InvalidKeyKind, KeyKind},
    key_record::{InvalidKeyId, KeyId, KeyRecord, Retirement},
    key_status::{InvalidStatus, KeyStatus},
    metadata::{InvalidMetadata, Metadata},
    network::{InvalidNetwork, Network, Networks},
    scope::{InvalidScope, Scope, Scopes},
    scope_catalog::{CatalogScope, ScopeCatalog},
    scope_enum::{ScopeType, UnknownScope},
    tags::{InvalidTag, Tags},
    text::TextRule,
    web_origins::{InvalidWebOrigin, WebOrigins},
};
pub(crate) use self::{
    consumer::{KeyExtension, LookedUpKey, Origin},
    expiry::ExpiresAt,
    key_status::Validity,
    scope_names::ScopeNames,
    text::is_plain,
    time::{read_rfc3339, rfc3339},
    use_counters::{UseCounters, UseRejection},
};
