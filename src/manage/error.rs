use std::{borrow::Cow, error::Error, fmt, num::NonZeroU32, time::Duration};

use crate::{
    key::RngError,
    record::{KeyId, Scope},
    store::{StoreError, StoreErrorKind},
};

/// A change was not made, or a question not answered.
///
/// It says what was wrong and, where one part of the request was, [which](Self::field). It never
/// holds a key.
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
    /// Whether what failed may pass.
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
        let detail = "the calling key lacks a scope that this needs";
        Self { scope: Some(scope), ..Self::new(ManageErrorKind::Denied, detail) }
    }

    pub(super) fn caller_ended() -> Self {
        Self::new(ManageErrorKind::CallerEnded, "the calling key no longer works")
    }

    pub(super) fn no_such_key() -> Self {
        Self::new(ManageErrorKind::NotFound, "there is no such key")
    }

    /// To the caller, a key of another consumer is one that does not exist.
    pub(super) fn out_of_reach() -> Self {
        let detail = "no such key is within reach of the calling key";
        Self { hidden: true, ..Self::new(ManageErrorKind::Denied, detail) }
    }

    pub(super) fn repeated(id: KeyId) -> Self {
        let detail = "this request was carried out before, and the key was shown then. If it was \
            lost, revoke it and issue another one";
        Self { key_id: Some(id), ..Self::new(ManageErrorKind::Repeated, detail) }
    }

    pub(super) fn idempotency_key_reused() -> Self {
        let detail = "another request was sent under this idempotency key: take a new one";
        Self {
            field: Some("idempotency_key"),
            ..Self::new(ManageErrorKind::IdempotencyKeyReused, detail)
        }
    }

    pub(super) fn outdated(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ManageErrorKind::Outdated, detail)
    }

    pub(super) fn own_keys_only() -> Self {
        let detail = "the calling key can change itself and the keys that it was rotated to, and no \
            other";
        Self::new(ManageErrorKind::Denied, detail)
    }

    /// The database refuses a key.
    pub(super) fn refused(error: Self) -> Self {
        let rule = error.source.as_ref().and_then(|error| error.source());
        let detail = match rule {
            Some(rule) => format!("the database refuses this key: {rule}"),
            None => "the database refuses this key".to_owned(),
        };
        Self { source: error.source, ..Self::new(ManageErrorKind::Invalid, detail) }
    }

    pub(super) fn operators_only() -> Self {
        Self::new(ManageErrorKind::Denied, "that is for operators, not for keys")
    }

    pub(super) fn too_many_keys(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ManageErrorKind::TooManyKeys, detail)
    }

    pub(super) fn too_many_changes(detail: impl Into<Cow<'static, str>>, wait: Duration) -> Self {
        let millis = u32::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u32::MAX);
        let retry_after = Some(NonZeroU32::new(millis).unwrap_or(NonZeroU32::MIN));
        Self { retry_after, ..Self::new(ManageErrorKind::TooManyChanges, detail) }
    }

    /// It was this one of a batch.
    pub(super) fn at(self, index: usize) -> Self {
        Self { index: Some(index), ..self }
    }

    pub(super) fn conflict(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ManageErrorKind::Conflict, detail)
    }

    /// A new key is one that is known.
    pub(super) fn collision() -> Self {
        Self { is_collision: true, ..Self::failed("the random number generator repeats itself") }
    }

    pub(super) const fn is_collision(&self) -> bool {
        self.is_collision
    }

    /// The caller's consumer has too much under way.
    pub(super) fn too_many_at_once() -> Self {
        let detail = "too many requests of this consumer are under way at once: wait for some of \
            them to end";
        Self::new(ManageErrorKind::TooManyAtOnce, detail)
    }

    pub(super) fn failed(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        let detail = "the key store failed";
        Self { source: Some(source.into()), ..Self::new(ManageErrorKind::Store, detail) }
    }

    /// Whether one key was the reason, so that others may fare better without it.
    pub(super) const fn is_of_a_key(&self) -> bool {
        self.is_of_a_key
    }

    /// Whether the audit has to know.
    pub(super) fn is_denial(&self) -> bool {
        matches!(self.kind, ManageErrorKind::Denied | ManageErrorKind::CallerEnded)
    }

    /// Whether trying again may help, where neither the request nor the caller was wrong: the store
    /// or the machine is busy or away.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        self.is_transient
    }

    /// What the caller gets to see of it.
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

    /// What was wrong, in a sentence, and what to do. It is fit for whoever asked.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// Which of a batch was wrong, counted from 0.
    #[must_use]
    pub const fn index(&self) -> Option<usize> {
        self.index
    }

    /// The key that a [repeated](ManageErrorKind::Repeated) request has made.
    #[must_use]
    pub const fn key_id(&self) -> Option<KeyId> {
        self.key_id
    }

    /// How long to wait, where there were [too many](ManageErrorKind::TooManyChanges) changes.
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
                "the key was changed by somebody else: look at it again",
            ),
            StoreErrorKind::Overloaded => (
                ManageErrorKind::Overloaded,
                "too many changes and lists are under way at once: try again in a moment",
            ),
            _ => (ManageErrorKind::Store, "the key store failed"),
        };
        let is_transient =
            matches!(error.kind(), StoreErrorKind::Unavailable | StoreErrorKind::Overloaded);
        let is_of_a_key = matches!(error.kind(), StoreErrorKind::Refused | StoreErrorKind::Corrupt);
        Self { is_transient, is_of_a_key, source: Some(error.into()), ..Self::new(kind, detail) }
    }
}

impl From<RngError> for ManageError {
    fn from(error: RngError) -> Self {
        let detail = "no key was issued";
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

/// Why a change was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ManageErrorKind {
    /// What was asked for makes no sense.
    Invalid,
    /// There is no such key, or it is none of the caller's business: the two look the same.
    NotFound,
    /// The caller may not do that. The attempt is in the audit.
    Denied,
    /// The calling key no longer works: it was revoked or has expired since it was let in.
    CallerEnded,
    /// The key is in a state in which this cannot be done.
    Conflict,
    /// The key was changed by somebody else, and is not what the caller thinks.
    Outdated,
    /// The request was carried out before, and made [a key](ManageError::key_id) that was shown
    /// then.
    Repeated,
    /// Another request was sent under the same idempotency key.
    IdempotencyKeyReused,
    /// The consumer has as many keys as it may have.
    TooManyKeys,
    /// Too many keys of the consumer were made, or the key was rotated too often, in the past hour:
    /// see [`retry_after`](ManageError::retry_after).
    TooManyChanges,
    /// The random number generator failed.
    Rng,
    /// The store failed.
    Store,
    /// The store can be reached, and too much of this process is under way at once. Trying again
    /// will help.
    Overloaded,
    /// Too much of the calling key's consumer is under way at once. Trying again, with less at
    /// once, will help.
    TooManyAtOnce,
}
