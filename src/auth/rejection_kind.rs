/// Why a request was rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RejectionKind {
    /// No credentials, or credentials of another scheme.
    Missing,
    /// More than one credential, bytes that no credential contains, or a key where the layer does
    /// not read one.
    InvalidRequest,
    /// Not a key of an accepted format.
    Malformed,
    /// No such key.
    Unknown,
    /// Permanently revoked.
    Revoked,
    /// `expires_at` is past.
    Expired,
    /// Temporarily switched off.
    Inactive,
    /// `not_before` is in the future.
    NotYetActive,
    /// The key lacks a scope that the route requires.
    InsufficientScope,
    /// The key has [networks](crate::record::KeyRecord::networks), and the client's address is in none
    /// of them, or is not known. The log says which, as `key refused`.
    NetworkNotAllowed,
    /// The key is [publishable](crate::record::KeyKind::Publishable), and the request has no `Origin`, or
    /// one that the key does not work for.
    OriginNotAllowed,
    /// The key has used up a quota.
    RateLimited,
    /// The key is not cached, and too many keys [from the client's network](super::ClientNetwork)
    /// were unknown.
    TooManyFailures,
    /// The store did not answer in time, or returned an invalid record.
    StoreUnavailable,
    /// Too many look-ups are in progress, or too many keys were unknown. The store is not down, so
    /// a record that is overdue for confirmation is not used instead.
    Overloaded,
    /// A route relies on a layer that is not applied to it. A bug in the service, not an error of
    /// the client.
    LayerMissing,
    /// The layer found no key, because an outer layer with another authenticator took it. A bug in
    /// the service, not an error of the client.
    ForeignLayer,
    /// A [limiter](crate::rate_limit::RateLimiter) or a [clock](crate::clock::Clock) supplied by
    /// the service panicked, or a handler required a scope that is not valid. A bug in the service,
    /// not an error of the client.
    Internal,
}

impl RejectionKind {
    /// All kinds, in the order of their declaration.
    #[cfg(any(test, feature = "metrics"))]
    pub(super) const ALL: [Self; Self::Internal as usize + 1] = [
        Self::Missing,
        Self::InvalidRequest,
        Self::Malformed,
        Self::Unknown,
        Self::Revoked,
        Self::Expired,
        Self::Inactive,
        Self::NotYetActive,
        Self::InsufficientScope,
        Self::NetworkNotAllowed,
        Self::OriginNotAllowed,
        Self::RateLimited,
        Self::TooManyFailures,
        Self::StoreUnavailable,
        Self::Overloaded,
        Self::LayerMissing,
        Self::ForeignLayer,
        Self::Internal,
    ];

    /// The kind's name for logs and metrics, such as `rate_limited`. It never changes.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::InvalidRequest => "invalid_request",
            Self::Malformed => "malformed",
            Self::Unknown => "unknown",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
            Self::Inactive => "inactive",
            Self::NotYetActive => "not_yet_active",
            Self::InsufficientScope => "insufficient_scope",
            Self::NetworkNotAllowed => "network_not_allowed",
            Self::OriginNotAllowed => "origin_not_allowed",
            Self::RateLimited => "rate_limited",
            Self::TooManyFailures => "too_many_failures",
            Self::StoreUnavailable => "store_unavailable",
            Self::Overloaded => "overloaded",
            Self::LayerMissing => "layer_missing",
            Self::ForeignLayer => "foreign_layer",
            Self::Internal => "internal",
        }
    }
}
