use std::{error::Error, fmt, sync::Arc, time::Duration};

use super::Standing;
use crate::{
    rate_limit::Quota,
    record::{KeyId, KeyStatus, Scope},
    store::{StoreError, StoreErrorKind},
};

/// Why a request was turned away.
///
/// It is for the service's own eyes: metrics, audit, a custom renderer. What the client is told is
/// decided where the response is made, and says less.
#[derive(Clone)]
pub struct Rejection {
    kind: RejectionKind,
    details: Option<Arc<Details>>,
}

#[derive(Default)]
struct Details {
    key_id: Option<KeyId>,
    standing: Option<Standing>,
    /// Policies that turned it away beside those of the key.
    violated: Box<[Arc<str>]>,
    /// How long it is turned away for.
    wait: Option<Duration>,
    required: Box<[Scope]>,
    source: Option<StoreError>,
}

impl Rejection {
    /// A rejection without particulars.
    #[must_use]
    pub const fn new(kind: RejectionKind) -> Self {
        Self { kind, details: None }
    }

    fn with(kind: RejectionKind, details: Details) -> Self {
        Self { kind, details: Some(Arc::new(details)) }
    }

    /// `None` for a key that may be used.
    pub(super) fn of_status(status: KeyStatus, key_id: KeyId) -> Option<Self> {
        let kind = match status {
            KeyStatus::Active => return None,
            KeyStatus::Inactive => RejectionKind::Inactive,
            KeyStatus::NotYetActive => RejectionKind::NotYetActive,
            KeyStatus::Expired => RejectionKind::Expired,
            KeyStatus::Revoked => RejectionKind::Revoked,
        };
        Some(Self::with(kind, Details { key_id: Some(key_id), ..Details::default() }))
    }

    /// Turned away by quotas of the key.
    pub(crate) fn rate_limited(standing: Standing) -> Self {
        let key_id = Some(standing.consumer().key_id());
        let wait = Some(standing.wait());
        let details = Details { key_id, standing: Some(standing), wait, ..Details::default() };
        Self::with(RejectionKind::RateLimited, details)
    }

    /// Turned away by policies beside the quotas of the key.
    pub(crate) fn beyond(key_id: KeyId, violated: Box<[Arc<str>]>, wait: Duration) -> Self {
        let (key_id, wait) = (Some(key_id), Some(wait));
        let details = Details { key_id, violated, wait, ..Details::default() };
        Self::with(RejectionKind::RateLimited, details)
    }

    pub(super) fn too_many_failures(wait: Duration) -> Self {
        let details = Details { wait: Some(wait), ..Details::default() };
        Self::with(RejectionKind::TooManyFailures, details)
    }

    pub(super) fn store_unavailable(source: StoreError) -> Self {
        let details = Details { source: Some(source), ..Details::default() };
        Self::with(RejectionKind::StoreUnavailable, details)
    }

    /// The store can be reached, and has too much to do for this process.
    pub(super) fn overloaded(source: StoreError) -> Self {
        let details = Details { source: Some(source), ..Details::default() };
        Self::with(RejectionKind::Overloaded, details)
    }

    /// The key of `key_id` lacks `required` scopes.
    pub(crate) fn insufficient_scope(
        key_id: KeyId,
        required: impl IntoIterator<Item = Scope>,
    ) -> Self {
        let required = required.into_iter().collect();
        let details = Details { key_id: Some(key_id), required, ..Details::default() };
        Self::with(RejectionKind::InsufficientScope, details)
    }

    /// What was wrong with the store, if that is why.
    pub(super) fn store_error_kind(&self) -> Option<StoreErrorKind> {
        self.details.as_ref()?.source.as_ref().map(StoreError::kind)
    }

    /// Why.
    #[must_use]
    pub const fn kind(&self) -> RejectionKind {
        self.kind
    }

    /// The key, where it is one of ours.
    #[must_use]
    pub fn key_id(&self) -> Option<KeyId> {
        self.details.as_ref()?.key_id
    }

    /// Where the key stands with its quotas, if they are what it was [rate
    /// limited](RejectionKind::RateLimited) by.
    #[must_use]
    pub fn standing(&self) -> Option<&Standing> {
        self.details.as_ref()?.standing.as_ref()
    }

    /// The names of the policies that turned it away, if it was [rate
    /// limited](RejectionKind::RateLimited).
    pub fn violated_policies(&self) -> impl Iterator<Item = &str> {
        let beside = self.details.iter().flat_map(|details| details.violated.iter());
        let own = self.standing().into_iter().flat_map(Standing::violated).map(Quota::name);
        own.chain(beside.map(|name| &**name))
    }

    /// The scopes of which the key has too few, if that is
    /// [why](RejectionKind::InsufficientScope).
    #[must_use]
    pub fn required_scopes(&self) -> &[Scope] {
        self.details.as_ref().map_or(&[], |details| &details.required)
    }

    /// How long to wait before a retry can succeed. `None` where it never can.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self.kind {
            RejectionKind::RateLimited | RejectionKind::TooManyFailures => {
                self.details.as_ref()?.wait
            }
            RejectionKind::StoreUnavailable | RejectionKind::Overloaded => {
                Some(Duration::from_secs(1))
            }
            _ => None,
        }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            RejectionKind::Missing => "the request carries no key",
            RejectionKind::InvalidRequest => "the request's credentials are ambiguous or malformed",
            RejectionKind::Malformed => "not a key of an accepted format",
            RejectionKind::Unknown => "the key is unknown",
            RejectionKind::Revoked => "the key is revoked",
            RejectionKind::Expired => "the key has expired",
            RejectionKind::Inactive => "the key is switched off",
            RejectionKind::NotYetActive => "the key is not yet active",
            RejectionKind::InsufficientScope => "the key lacks a scope",
            RejectionKind::RateLimited => "the key has used up its quota",
            RejectionKind::TooManyFailures => "too many unknown keys came from this network",
            RejectionKind::StoreUnavailable => "the key store is not available",
            RejectionKind::Overloaded => "too many keys are being looked up",
            RejectionKind::LayerMissing => "no `ApiKeyLayer` guards this route",
            RejectionKind::Internal => "a limiter or a clock of the service panicked",
        })
    }
}

impl fmt::Debug for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Rejection");
        debug.field("kind", &self.kind);
        if let Some(details) = &self.details {
            debug.field("key_id", &details.key_id);
            if let Some(source) = &details.source {
                debug.field("source", source);
            }
        }
        debug.finish_non_exhaustive()
    }
}

impl Error for Rejection {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.details.as_ref()?.source.as_ref().map(|source| source as _)
    }
}

/// Why a request was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RejectionKind {
    /// No credentials, or of another scheme.
    Missing,
    /// More than one credential, or bytes that no credential can have.
    InvalidRequest,
    /// Not a key of an accepted format.
    Malformed,
    /// No such key.
    Unknown,
    /// Revoked for good.
    Revoked,
    /// Its `expires_at` has come.
    Expired,
    /// Switched off for now.
    Inactive,
    /// Its `not_before` is yet to come.
    NotYetActive,
    /// The key lacks a scope that the route asks for.
    InsufficientScope,
    /// The key has used up a quota.
    RateLimited,
    /// The key is not in the cache, and too many [from the client's
    /// network](super::ClientNetwork) were unknown.
    TooManyFailures,
    /// The store did not answer, or not in time.
    StoreUnavailable,
    /// Too many keys are being looked up at once, or too many were unknown. The store is not down,
    /// so no record is used because of it that should have been confirmed.
    Overloaded,
    /// A route relies on a layer that is not applied to it. A mistake in the service, not of the
    /// client's.
    LayerMissing,
    /// A [limiter](crate::rate_limit::RateLimiter) or a [clock](crate::clock::Clock) of the service's
    /// own panicked. A mistake in the service, not of the client's.
    Internal,
}
