use std::{
    error::Error,
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use super::{Outcome, RateLimitStatus, RejectionKind, client::PlaceRefusal};
use crate::{
    rate_limit::Quota,
    record::{Consumer, KeyId, KeyStatus, Scope},
    store::{StoreError, StoreErrorKind},
};

/// Why a request was rejected.
///
/// This is for the service itself: metrics, audit, a custom renderer. The response tells the client
/// less.
#[derive(Clone)]
pub struct Rejection {
    kind: RejectionKind,
    details: Option<Arc<Details>>,
}

#[derive(Default)]
struct Details {
    key_id: Option<KeyId>,
    rate_limit_status: Option<RateLimitStatus>,
    /// Violated policies beside the key's own quotas.
    violated: Box<[Arc<str>]>,
    /// How long to wait before a retry can succeed.
    wait: Option<Duration>,
    required: Box<[Scope]>,
    source: Option<StoreError>,
    advice: Option<Advice>,
}

/// For rejections that are made once and serve many requests.
struct Advice {
    text: Box<str>,
    /// The body of the response, once it was needed.
    body: OnceLock<Box<str>>,
}

impl Rejection {
    /// A rejection without details.
    #[must_use]
    pub const fn new(kind: RejectionKind) -> Self {
        Self { kind, details: None }
    }

    /// Counts the request as rejected, which was counted as admitted by the key of `consumer`.
    #[cold]
    pub(crate) fn count_admitted(&self, consumer: &Consumer) {
        let outcome = Outcome::of(self.kind).of_use();
        if let Some(outcome) = outcome
            && self.key_id().is_none_or(|key_id| key_id == consumer.key_id())
        {
            consumer.count_as(outcome);
        }
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

    /// Rejected because of where the request comes from.
    pub(super) fn of_place(refusal: &PlaceRefusal) -> Self {
        let is_of_origin = refusal.reason.is_of_origin();
        let kind = if is_of_origin {
            RejectionKind::OriginNotAllowed
        } else {
            RejectionKind::NetworkNotAllowed
        };
        Self::with(kind, Details { key_id: Some(refusal.key_id), ..Details::default() })
    }

    /// Rejected by the key's own quotas.
    pub(crate) fn rate_limited(rate_limit_status: RateLimitStatus) -> Self {
        let key_id = Some(rate_limit_status.consumer().key_id());
        let wait = Some(rate_limit_status.wait());
        let details = Details {
            key_id,
            rate_limit_status: Some(rate_limit_status),
            wait,
            ..Details::default()
        };
        Self::with(RejectionKind::RateLimited, details)
    }

    /// Rejected by policies beside the key's own quotas.
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

    /// The store is reachable, but overloaded by this process.
    pub(super) fn overloaded(source: StoreError) -> Self {
        let details = Details { source: Some(source), ..Details::default() };
        Self::with(RejectionKind::Overloaded, details)
    }

    /// The key of `key_id`, if it is known, lacks `required` scopes.
    pub(crate) fn insufficient_scope(
        key_id: impl Into<Option<KeyId>>,
        required: impl IntoIterator<Item = Scope>,
    ) -> Self {
        let required = required.into_iter().collect();
        let details = Details { key_id: key_id.into(), required, ..Details::default() };
        Self::with(RejectionKind::InsufficientScope, details)
    }

    /// A mistake of the client; `advice` tells it what to do instead.
    pub(crate) fn advising(kind: RejectionKind, advice: impl Into<Box<str>>) -> Self {
        let advice = Advice { text: advice.into(), body: OnceLock::new() };
        Self::with(kind, Details { advice: Some(advice), ..Details::default() })
    }

    /// The kind of store error that caused this, if any.
    pub(super) fn store_error_kind(&self) -> Option<StoreErrorKind> {
        self.details.as_ref()?.source.as_ref().map(StoreError::kind)
    }

    /// The reason.
    #[must_use]
    pub const fn kind(&self) -> RejectionKind {
        self.kind
    }

    /// The key, if it exists.
    #[must_use]
    pub fn key_id(&self) -> Option<KeyId> {
        self.details.as_ref()?.key_id
    }

    /// The state of the key against its quotas, if those [rate limited](RejectionKind::RateLimited)
    /// the request.
    #[must_use]
    pub fn rate_limit_status(&self) -> Option<&RateLimitStatus> {
        self.details.as_ref()?.rate_limit_status.as_ref()
    }

    /// The names of the violated policies, if the request was [rate
    /// limited](RejectionKind::RateLimited).
    pub fn violated_policies(&self) -> impl Iterator<Item = &str> {
        let beside = self.details.iter().flat_map(|details| details.violated.iter());
        let own = self
            .rate_limit_status()
            .into_iter()
            .flat_map(RateLimitStatus::violated)
            .map(Quota::name);
        own.chain(beside.map(|name| &**name))
    }

    /// The scopes that the route requires, if the key [lacks
    /// one](RejectionKind::InsufficientScope).
    #[must_use]
    pub fn required_scopes(&self) -> &[Scope] {
        self.details.as_ref().map_or(&[], |details| &details.required)
    }

    /// One sentence for the client on how to send its key, if the layer recognised its mistake. It
    /// names the headers that the layer reads, and contains nothing that the client sent.
    #[must_use]
    pub fn advice(&self) -> Option<&str> {
        Some(&self.details.as_ref()?.advice.as_ref()?.text)
    }

    /// The body of the response to a rejection with advice, which `render` makes once.
    pub(crate) fn body_with_advice(&self, render: impl FnOnce() -> String) -> Option<&str> {
        let advice = self.details.as_ref()?.advice.as_ref()?;
        Some(advice.body.get_or_init(|| render().into()))
    }

    /// How long to wait before a retry can succeed. `None` if it never can.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match meaning(self.kind).1 {
            Retry::Never => None,
            Retry::AfterWait => self.details.as_ref()?.wait,
            Retry::After(wait) => Some(wait),
        }
    }
}

/// When a retry of a rejected request can succeed.
enum Retry {
    Never,
    /// After the `wait` of the rejection.
    AfterWait,
    After(Duration),
}

/// The message of a kind, and when a retry can succeed. `layer::response::status_codes` defines the
/// response.
const fn meaning(kind: RejectionKind) -> (&'static str, Retry) {
    const SOON: Retry = Retry::After(Duration::from_secs(1));
    match kind {
        RejectionKind::Missing => ("the request carries no key", Retry::Never),
        RejectionKind::InvalidRequest => {
            ("the request's credentials are ambiguous or malformed", Retry::Never)
        }
        RejectionKind::Malformed => ("not a key of an accepted format", Retry::Never),
        RejectionKind::Unknown => ("the key is unknown", Retry::Never),
        RejectionKind::Revoked => ("the key is revoked", Retry::Never),
        RejectionKind::Expired => ("the key has expired", Retry::Never),
        RejectionKind::Inactive => ("the key is switched off", Retry::Never),
        RejectionKind::NotYetActive => ("the key is not yet active", Retry::Never),
        RejectionKind::InsufficientScope => ("the key lacks a scope", Retry::Never),
        RejectionKind::NetworkNotAllowed => {
            ("the key does not work from this address", Retry::Never)
        }
        RejectionKind::OriginNotAllowed => {
            ("the publishable key does not work for this `Origin`", Retry::Never)
        }
        RejectionKind::RateLimited => ("the key has used up its quota", Retry::AfterWait),
        RejectionKind::TooManyFailures => {
            ("too many unknown keys from this network", Retry::AfterWait)
        }
        RejectionKind::StoreUnavailable => ("the key store is unavailable", SOON),
        RejectionKind::Overloaded => ("too many key look-ups in progress", SOON),
        RejectionKind::LayerMissing => {
            ("this route is not behind an `ApiKeyLayer`; add one", Retry::Never)
        }
        RejectionKind::ForeignLayer => {
            let message =
                "the `ApiKeyLayer` of another authenticator, around this one, took the key";
            (message, Retry::Never)
        }
        RejectionKind::Internal => {
            let message =
                "a rate limiter or clock of the service panicked, or an invalid scope was required";
            (message, Retry::Never)
        }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(meaning(self.kind).0)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rejection_keeps_its_key_its_wait_and_its_cause() {
        let (id, wait) = (KeyId::from_bytes([7; 16]), Duration::from_secs(9));
        let beyond = Rejection::beyond(id, Box::from([Arc::from("search")]), wait);
        assert_eq!((beyond.key_id(), beyond.retry_after()), (Some(id), Some(wait)));
        assert!(beyond.violated_policies().eq(["search"]));

        let scope = Scope::new("orders:read").unwrap();
        let lacking = Rejection::insufficient_scope(id, [scope.clone()]);
        assert_eq!((lacking.key_id(), lacking.required_scopes()), (Some(id), &[scope][..]));
        assert_eq!(Rejection::too_many_failures(wait).retry_after(), Some(wait));
        for (kind, rejection) in [
            (StoreErrorKind::Unavailable, Rejection::store_unavailable as fn(_) -> _),
            (StoreErrorKind::Overloaded, Rejection::overloaded),
        ] {
            let rejection: Rejection = rejection(StoreError::new(kind).because("full"));
            assert_eq!(rejection.store_error_kind(), Some(kind));
            assert!(rejection.source().is_some());
        }
    }
}
