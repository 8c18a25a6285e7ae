use std::{
    future::Future,
    time::{Duration, SystemTime},
};

use super::manage_keys::ManageKeys;
use crate::{
    record::{AuditEntry, KeyId, WebhookEndpoint, WebhookId},
    store::StoreError,
};

/// Keeps webhook endpoints, and reads the audit for them. Feature `webhooks`.
///
/// [`Webhooks`](crate::webhooks::Webhooks) builds on it.
pub trait WebhookStore: ManageKeys {
    /// Takes or renews the right to deliver for `duration`, by the store's clock. False while another
    /// `holder` has it.
    ///
    /// # Errors
    ///
    /// When the store cannot.
    fn lease_webhooks(
        &self,
        holder: [u8; 16],
        duration: Duration,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Gives up the right to deliver, if `holder` has it.
    ///
    /// # Errors
    ///
    /// When the store cannot.
    fn release_webhooks(
        &self,
        holder: [u8; 16],
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Adds an endpoint for events that are written from now on: the store sets
    /// [`delivered_to`](WebhookEndpoint::delivered_to) and
    /// [`created_at`](WebhookEndpoint::created_at). False if there are `max` endpoints. Writes
    /// `audit` in the same transaction.
    ///
    /// # Errors
    ///
    /// When the store cannot.
    fn add_webhook(
        &self,
        endpoint: &WebhookEndpoint,
        max: usize,
        audit: AuditEntry,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// All endpoints, in the order in which they were added.
    ///
    /// # Errors
    ///
    /// When the store cannot answer.
    fn webhooks(&self) -> impl Future<Output = Result<Vec<WebhookEndpoint>, StoreError>> + Send;

    /// Replaces everything but the id, the address and the filter, and takes the next version. False
    /// if the endpoint is gone or has another version than `endpoint`. Writes `audit`, if there is
    /// one, in the same transaction.
    ///
    /// # Errors
    ///
    /// When the store cannot.
    fn update_webhook(
        &self,
        endpoint: &WebhookEndpoint,
        audit: Option<AuditEntry>,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Removes an endpoint, and returns whether it existed. Writes `audit` in the same transaction.
    ///
    /// # Errors
    ///
    /// When the store cannot.
    fn remove_webhook(
        &self,
        id: WebhookId,
        audit: AuditEntry,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// The last event that can be seen, and the transactions that may still add earlier ones.
    ///
    /// # Errors
    ///
    /// When the store cannot answer.
    fn audit_frontier(&self) -> impl Future<Output = Result<AuditFrontier, StoreError>> + Send;

    /// Events after the event `after` up to the event `until`, oldest first: at most `limit`, and at
    /// most 1 MiB unless the first is larger.
    ///
    /// # Errors
    ///
    /// When the store cannot answer.
    fn audit_after(
        &self,
        after: u64,
        until: u64,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<AuditLine>, StoreError>> + Send;

    /// Writes the events that `notice` stands for into the audit, for at most `limit` keys, each
    /// once, whichever node calls it. Returns how many keys were examined.
    ///
    /// # Errors
    ///
    /// When the store cannot.
    fn write_notices(
        &self,
        notice: Notice,
        now: SystemTime,
        limit: usize,
    ) -> impl Future<Output = Result<usize, StoreError>> + Send;
}

/// Where the audit ends. Feature `webhooks`.
///
/// Events are numbered when they are written and seen when their transaction commits, so an event may
/// appear after later ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuditFrontier {
    /// The last event that can be seen.
    pub last: u64,
    /// Names of the transactions that write to the audit at a time after `last` was read. An event
    /// with a lower number that cannot be seen yet is of one of them.
    pub writers: Vec<String>,
}

impl AuditFrontier {
    /// A frontier.
    #[must_use]
    pub const fn new(last: u64, writers: Vec<String>) -> Self {
        Self { last, writers }
    }
}

/// The name of a writer that may be any: a prepared transaction loses its own.
pub(crate) const PREPARED: &str = "prepared";

/// An event of the audit as stored: also of actions that this release does not know. Feature
/// `webhooks`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuditLine {
    /// Increasing, with gaps.
    pub id: u64,
    /// When it happened, by the store's clock.
    pub at: SystemTime,
    /// The name of the action.
    pub action: String,
    /// As in [`AuditEntry`].
    pub key_id: Option<KeyId>,
    /// As in [`AuditEntry`].
    pub consumer_id: Option<String>,
    /// As in [`AuditEntry`].
    pub actor: String,
    /// As in [`AuditEntry`].
    pub origin: Option<String>,
    /// As in [`AuditEntry`].
    pub reason: Option<String>,
    /// As in [`AuditEntry`].
    pub changes: Option<String>,
}

impl AuditLine {
    /// A line without the optional parts.
    #[must_use]
    pub fn new(
        id: u64,
        at: SystemTime,
        action: impl Into<String>,
        actor: impl Into<String>,
    ) -> Self {
        Self {
            id,
            at,
            action: action.into(),
            key_id: None,
            consumer_id: None,
            actor: actor.into(),
            origin: None,
            reason: None,
            changes: None,
        }
    }
}

/// An event that time brings about, instead of a change. Feature `webhooks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Notice {
    /// A key was used for the first time, since there is an endpoint.
    FirstUse,
    /// A key expires within 30 days.
    ExpiresIn30Days,
    /// A key expires within 7 days.
    ExpiresIn7Days,
    /// A key expires within a day.
    ExpiresInADay,
    /// A rotated key was used in its last 24 hours.
    RetiredUsed,
    /// A key was not used for 90 days, or again for 90 days since the last notice.
    Unused,
}

#[cfg(any(feature = "postgres", feature = "sqlite"))]
const DAY: Duration = Duration::from_secs(86_400);

impl Notice {
    pub(crate) const ALL: [Self; 6] = [
        Self::FirstUse,
        Self::ExpiresIn30Days,
        Self::ExpiresIn7Days,
        Self::ExpiresInADay,
        Self::RetiredUsed,
        Self::Unused,
    ];

    /// Its name in the store.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub(in crate::store) const fn name(self) -> &'static str {
        match self {
            Self::FirstUse => "first_use",
            Self::ExpiresIn30Days => "expiring_30",
            Self::ExpiresIn7Days => "expiring_7",
            Self::ExpiresInADay => "expiring_1",
            Self::RetiredUsed => "retired_used",
            Self::Unused => "unused",
        }
    }

    /// How many days before the expiry, and from when on another notice is due instead.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub(in crate::store) const fn days_ahead(self) -> Option<(u32, u32)> {
        match self {
            Self::ExpiresIn30Days => Some((30, 7)),
            Self::ExpiresIn7Days => Some((7, 1)),
            Self::ExpiresInADay => Some((1, 0)),
            Self::FirstUse | Self::RetiredUsed | Self::Unused => None,
        }
    }
}

/// How long a key is not used until it counts as unused.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(in crate::store) const UNUSED: Duration = DAY.saturating_mul(90);

/// The last part of a rotated key's life, in which its use is told.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(in crate::store) const LAST_USES: Duration = DAY;

/// Uses are written later than they happen: a key that ended a moment ago is looked at, too.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(in crate::store) const LATE_USES: Duration = Duration::from_secs(600);
