use std::{borrow::Cow, error::Error, fmt};

use crate::{key::RngError, record::InvalidWebhook, store::StoreError};

/// Why an endpoint could not be added, changed or tested.
///
/// It says what was wrong and what to do. It contains neither a secret nor a URL.
#[derive(Debug)]
pub struct WebhookError {
    kind: WebhookErrorKind,
    detail: Cow<'static, str>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl WebhookError {
    fn new(kind: WebhookErrorKind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, detail: detail.into(), source: None }
    }

    pub(super) fn invalid(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(WebhookErrorKind::Invalid, detail)
    }

    pub(super) fn not_found() -> Self {
        Self::new(WebhookErrorKind::NotFound, "no such webhook")
    }

    pub(super) fn too_many(max: usize) -> Self {
        let detail = format!("there are {max} webhooks, and there may not be more: remove one");
        Self::new(WebhookErrorKind::TooMany, detail)
    }

    pub(super) fn conflict() -> Self {
        let detail = "the webhook was changed at the same time again and again; try again";
        Self::new(WebhookErrorKind::Conflict, detail)
    }

    /// The kind of the error.
    #[must_use]
    pub const fn kind(&self) -> WebhookErrorKind {
        self.kind
    }
}

impl fmt::Display for WebhookError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl Error for WebhookError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

impl From<StoreError> for WebhookError {
    fn from(error: StoreError) -> Self {
        let this = Self::new(WebhookErrorKind::Store, "the store failed");
        Self { source: Some(Box::new(error)), ..this }
    }
}

impl From<RngError> for WebhookError {
    fn from(error: RngError) -> Self {
        let this = Self::new(WebhookErrorKind::Randomness, "no secret could be generated");
        Self { source: Some(Box::new(error)), ..this }
    }
}

impl From<InvalidWebhook> for WebhookError {
    fn from(error: InvalidWebhook) -> Self {
        Self::invalid(error.to_string())
    }
}

/// The kind of a [`WebhookError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WebhookErrorKind {
    /// A URL, a filter, a certificate or a duration is invalid.
    Invalid,
    /// There is no such endpoint.
    NotFound,
    /// There are as many endpoints as there may be.
    TooMany,
    /// The endpoint keeps being changed concurrently. Retrying may help.
    Conflict,
    /// The store failed.
    Store,
    /// The source of randomness failed.
    Randomness,
}
