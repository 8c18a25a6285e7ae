use std::{borrow::Cow, error::Error, fmt, num::NonZeroU32, time::Duration};

use crate::{
    key::RngError,
    rate_limit::InvalidPlanName,
    record::{KeyId, Scope},
    store::{StoreError, StoreErrorKind},
};

/// Why a change or a query failed.
///
/// It says what was wrong and, if it was one part of the request, [which](Self::field). It never
/// contains a key.
#[derive(Debug)]
pub struct ManageError {
    kind: ManageErrorKind,
    field: Option<&'static str>,
    detail: Cow<'static, str>,
    index: Option<usize>,
    key_id: Option<KeyId>,
    scope: Option<Scope>,
    /// In milliseconds, so that the error stays small.
    retry_after: Option<NonZeroU32>,
    hidden: bool,
    is_collision: bool,
    /// Whether the failure is temporary.
    is_transient: bool,
    is_of_a_key: bool,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl ManageError {
    pub(super) fn new(kind: ManageErrorKind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            field: None,
            detail: detail.into(),
            index: None,
            key_id: None,
            scope: None,
            retry_after: None,
            hidden: false,
            is_collision: false,
            is_transient: false,
            is_of_a_key: false,
            source: None,
        }
    }

    pub(super) fn invalid(field: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { field: Some(field), ..Self::new(ManageErrorKind::Invalid, detail) }
    }

    pub(super) fn denied(field: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { field: Some(field), ..Self::new(ManageErrorKind::Denied, detail) }
    }

    pub(super) fn lacks_scope(scope: Scope) -> Self {
        let detail = "the calling key lacks a required scope";
        Self { scope: Some(scope), ..Self::new(ManageErrorKind::Denied, detail) }
    }

    pub(super) fn caller_ended() -> Self {
        Self::new(ManageErrorKind::CallerEnded, "the calling key is no longer valid")
    }

    pub(super) fn no_such_key() -> Self {
        Self::new(ManageErrorKind::NotFound, "key not found")
    }

    /// The audit gets this detail; the caller gets `NotFound`, as for a key that does not exist.
    pub(super) fn out_of_reach() -> Self {
        let detail = "key not found among those that the caller can manage";
        Self { hidden: true, ..Self::new(ManageErrorKind::Denied, detail) }
    }

    pub(super) fn repeated(id: KeyId) -> Self {
        let detail = "this request was already carried out, and its key was shown then: if the key \
            was lost, revoke it and issue another one";
        Self { key_id: Some(id), ..Self::new(ManageErrorKind::Repeated, detail) }
    }

    pub(super) fn idempotency_key_reused() -> Self {
        let detail = "this idempotency key was used for another request: send a new one";
        Self {
            field: Some("idempotency_key"),
            ..Self::new(ManageErrorKind::IdempotencyKeyReused, detail)
        }
    }

    pub(super) fn outdated(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ManageErrorKind::Outdated, detail)
    }

    pub(super) fn own_keys_only() -> Self {
        let detail =
            "the calling key can only change itself and the keys of its own rotation chain";
        Self::new(ManageErrorKind::Denied, detail)
    }

    pub(super) fn grants_nothing() -> Self {
        Self::new(ManageErrorKind::Denied, "the member may not grant anything")
    }

    /// The database refuses a key, with the rule as the reason.
    pub(super) fn refused(error: Self) -> Self {
        let rule = error.source.as_ref().and_then(|error| error.source());
        let detail = match rule {
            Some(rule) => format!("the database refuses this key: {rule}"),
            None => "the database refuses this key".to_owned(),
        };
        Self { source: error.source, ..Self::new(ManageErrorKind::Invalid, detail) }
    }

    pub(super) fn operators_only() -> Self {
        Self::new(ManageErrorKind::Denied, "only operators can do this")
    }

    pub(super) fn exceeds_policy(
        field: &'static str,
        detail: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { field: Some(field), ..Self::new(ManageErrorKind::ExceedsPolicy, detail) }
    }

    pub(super) fn too_many_keys(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ManageErrorKind::TooManyKeys, detail)
    }

    /// Sets the part of the request that was wrong.
    pub(super) fn of(self, field: &'static str) -> Self {
        Self { field: Some(field), ..self }
    }

    pub(super) fn too_many_changes(detail: impl Into<Cow<'static, str>>, wait: Duration) -> Self {
        let millis = u32::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u32::MAX);
        let retry_after = Some(NonZeroU32::new(millis).unwrap_or(NonZeroU32::MIN));
        Self { retry_after, ..Self::new(ManageErrorKind::TooManyChanges, detail) }
    }

    /// Sets the index of the entry of a batch that was wrong.
    pub(super) fn at(self, index: usize) -> Self {
        Self { index: Some(index), ..self }
    }

    pub(super) fn conflict(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ManageErrorKind::Conflict, detail)
    }

    /// A newly generated key or id exists already.
    pub(super) fn collision() -> Self {
        Self { is_collision: true, ..Self::failed("the random number generator repeats values") }
    }

    pub(super) const fn is_collision(&self) -> bool {
        self.is_collision
    }

    /// The caller's consumer has too many requests in progress.
    pub(super) fn too_many_at_once() -> Self {
        let detail =
            "too many concurrent requests of this consumer: wait for some of them to finish";
        Self::new(ManageErrorKind::TooManyAtOnce, detail)
    }

    pub(super) fn failed(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        let detail = "the key store failed";
        Self { source: Some(source.into()), ..Self::new(ManageErrorKind::Store, detail) }
    }

    /// Whether one key caused the failure, so that a batch can succeed without it.
    pub(super) const fn is_of_a_key(&self) -> bool {
        self.is_of_a_key
    }

    /// Whether it is written to the audit.
    pub(super) fn is_denial(&self) -> bool {
        matches!(self.kind, ManageErrorKind::Denied | ManageErrorKind::CallerEnded)
    }

    /// Whether the store or the random number generator failed in a way that a retry may fix, such
    /// as an unavailable or overloaded store.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        self.is_transient
    }

    /// The error as the caller sees it.
    pub(super) fn shown(self) -> Self {
        if self.hidden { Self::no_such_key() } else { self }
    }

    /// What went wrong.
    #[must_use]
    pub const fn kind(&self) -> ManageErrorKind {
        self.kind
    }

    /// The part of the request that was wrong, such as `scopes`.
    #[must_use]
    pub const fn field(&self) -> Option<&'static str> {
        self.field
    }

    /// What was wrong and what to do, in a sentence. It can be shown to the caller.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// Which entry of a batch was wrong, counted from 0.
    #[must_use]
    pub const fn index(&self) -> Option<usize> {
        self.index
    }

    /// The key that the first of two [repeated](ManageErrorKind::Repeated) requests made.
    #[must_use]
    pub const fn key_id(&self) -> Option<KeyId> {
        self.key_id
    }

    /// How long to wait after [too many](ManageErrorKind::TooManyChanges) changes.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after.map(|millis| Duration::from_millis(millis.get().into()))
    }

    /// The scope that the caller lacks, if that is why it was [denied](ManageErrorKind::Denied).
    #[must_use]
    pub const fn required_scope(&self) -> Option<&Scope> {
        self.scope.as_ref()
    }
}

impl From<StoreError> for ManageError {
    fn from(error: StoreError) -> Self {
        let (kind, detail) = match error.kind() {
            StoreErrorKind::Conflict => (
                ManageErrorKind::Outdated,
                "the key was changed by another request: read it and try again",
            ),
            StoreErrorKind::Overloaded => (
                ManageErrorKind::Overloaded,
                "too many concurrent changes and lists: try again in a moment",
            ),
            StoreErrorKind::Unsupported => {
                (ManageErrorKind::Unsupported, "the key store does not support this")
            }
            _ => (ManageErrorKind::Store, "the key store failed"),
        };
        let is_transient =
            matches!(error.kind(), StoreErrorKind::Unavailable | StoreErrorKind::Overloaded);
        let is_of_a_key = matches!(error.kind(), StoreErrorKind::Refused | StoreErrorKind::Corrupt);
        Self { is_transient, is_of_a_key, source: Some(error.into()), ..Self::new(kind, detail) }
    }
}

impl From<InvalidPlanName> for ManageError {
    fn from(_: InvalidPlanName) -> Self {
        Self::invalid("plan", InvalidPlanName::RULE)
    }
}

impl From<RngError> for ManageError {
    fn from(error: RngError) -> Self {
        let detail = "the random number generator failed: no key was issued";
        let new = Self::new(ManageErrorKind::Rng, detail);
        Self { is_transient: true, source: Some(error.into()), ..new }
    }
}

impl fmt::Display for ManageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.field {
            Some(field) => write!(f, "{field}: {}", self.detail),
            None => f.write_str(&self.detail),
        }
    }
}

impl Error for ManageError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// The kind of a [`ManageError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ManageErrorKind {
    /// A value of the request is invalid.
    Invalid,
    /// The key does not exist, or the caller may not manage it: the two look the same.
    NotFound,
    /// The caller may not do that. The attempt is in the audit.
    Denied,
    /// The calling key was revoked, or has expired, since it was authenticated.
    CallerEnded,
    /// The state of the key does not allow the change.
    Conflict,
    /// The key was changed by another request: it no longer has the expected version.
    Outdated,
    /// The request was already carried out and made [a key](ManageError::key_id), which was shown
    /// then.
    Repeated,
    /// The idempotency key was used for another request.
    IdempotencyKeyReused,
    /// The [issue policy](super::IssuePolicy) does not allow the key; the error names the field and
    /// the bound.
    ExceedsPolicy,
    /// The consumer has reached its limit of keys.
    TooManyKeys,
    /// Too many keys of the consumer were made, or the key was rotated too often, in the past hour:
    /// see [`retry_after`](ManageError::retry_after).
    TooManyChanges,
    /// The random number generator failed.
    Rng,
    /// The store failed.
    Store,
    /// The store can be reached, but this process has too many requests to it in progress. A retry
    /// will help.
    Overloaded,
    /// The calling key's consumer has too many requests in progress. A retry with fewer at once
    /// will help.
    TooManyAtOnce,
    /// The store does not keep what was asked for, such as use of keys.
    Unsupported,
}

impl ManageErrorKind {
    /// The kind's name for logs and metrics, such as `not_found`. It never changes.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::NotFound => "not_found",
            Self::Denied => "denied",
            Self::ExceedsPolicy => "exceeds_policy",
            Self::CallerEnded => "caller_ended",
            Self::Conflict => "conflict",
            Self::Outdated => "outdated",
            Self::Repeated => "repeated",
            Self::IdempotencyKeyReused => "idempotency_key_reused",
            Self::TooManyKeys => "too_many_keys",
            Self::TooManyChanges => "too_many_changes",
            Self::Rng => "rng",
            Self::Store => "store",
            Self::Overloaded => "overloaded",
            Self::TooManyAtOnce => "too_many_at_once",
            Self::Unsupported => "unsupported",
        }
    }
}
